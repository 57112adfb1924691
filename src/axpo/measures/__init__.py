"""Numbers and their uncertainty: one definition of every rate, one method for every 95% confidence interval.

`rates` defines what a rate counts. `estimates` measures numbers on questions and compares them; `sums` does it for
rollouts that come one at a time. `intervals` is the method behind both.
"""
