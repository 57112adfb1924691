"""Scorers of the benchmarks: a question and a final text in, a verdict with the rule that decided out."""
