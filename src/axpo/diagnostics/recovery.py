"""What AXPO would resample on rollouts that somebody else sampled, and what may come of it (Proposition 1).

Proposition 1 of arXiv:2605.28774 compares continuing a failed prefix, right with probability p(t_1), with sampling
whole rollouts anew, right through a tool with probability q p_tool: if p(t_1) >= q p_tool, then n continuations find at
least one right tool use at least as often as n new rollouts. A dump knows neither p(t_1) nor the p_tool of a question
that always failed, so the expectation here rests on four assumptions, `ASSUMPTIONS`. It is an estimate to plan with,
not a measurement: for that, prefixes have to be continued (D4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

ASSUMPTIONS = (
    "A prefix succeeds as often as the tool-using rollouts of its question do: p(t_1) = p_tool, what Proposition 1 has "
    "on average. AXPO picks the least confident prefixes, for which nothing is proven.",
    "p_tool differs between questions like a Beta distribution with the mean and the within-question correlation of "
    "this dump, so a question that failed k times out of k is expected to be harder than the mean.",
    "Given its question, continuations succeed independently of each other and of the rollouts seen.",
    "The budget is floor(r * rollouts of the step); prefixes are chosen breadth-first over the triggered questions.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the budget would buy over all steps; expectations are None where the dump does not allow them."""

    budget_frac: float
    num_continuations: int
    """K"""
    num_steps: int
    num_triggered: int
    num_candidates: int
    num_prefixes: int
    """Chosen under the budget."""
    num_questions: int
    """Triggered questions with at least one chosen prefix."""
    expected_recovered: float | None
    """Of these questions, with at least one right continuation."""
    expected_fresh: float | None
    """The same when as many whole rollouts were sampled anew: the other side of Proposition 1."""
    tool_use_rate: float | None
    """q"""
    tool_success: float | None
    """Mean p_tool, over tool-using rollouts."""
    correlation: float | None
    """Within-question correlation of the success of tool-using rollouts, 0..1."""
    assumptions: tuple[str, ...] = ASSUMPTIONS
    why_not: str = ""
    """Why there are no expectations."""


@dataclass(slots=True)
class SuccessSums:
    """Successes s of the k tool-using rollouts of each question, as sums."""

    num_questions: int = 0
    tries: float = 0.0
    successes: float = 0.0
    tries_squared: float = 0.0
    weighted_squares: float = 0.0
    """sum s^2 / k"""

    def add(self, successes: int, tries: int) -> None:
        """One question with `tries` > 0."""
        self.num_questions += 1
        self.tries += tries
        self.successes += successes
        self.tries_squared += tries * tries
        self.weighted_squares += successes * successes / tries

    def merge(self, other: SuccessSums) -> None:
        """The questions of `other` too."""
        self.num_questions += other.num_questions
        self.tries += other.tries
        self.successes += other.successes
        self.tries_squared += other.tries_squared
        self.weighted_squares += other.weighted_squares

    @property
    def mean(self) -> float | None:
        """Successes per try."""
        return self.successes / self.tries if self.tries else None

    @property
    def correlation(self) -> float | None:
        """Within-question correlation by analysis of variance, clipped to 0..1; None when no question was tried twice.

        >>> sums = SuccessSums()
        >>> sums.add(2, 2)
        >>> sums.add(0, 2)
        >>> sums.correlation
        1.0
        """
        groups, tries = self.num_questions, self.tries
        if groups < 2 or tries <= groups:
            return None
        between = (self.weighted_squares - self.successes**2 / tries) / (groups - 1)
        within = (self.successes - self.weighted_squares) / (tries - groups)
        size = (tries - self.tries_squared / tries) / (groups - 1)
        total = between + (size - 1) * within
        return min(1.0, max(0.0, (between - within) / total)) if total > 0 else None


StepNeed = Mapping[tuple[int, int], int]
"""(failed tool-using siblings, candidates) -> triggered questions of one step with these numbers."""


def resample_budget(num_rollouts: int, budget_frac: float) -> int:
    """floor(r * B * N), r taken as the decimal number that was written; equals `axpo.algo.resample_budget`.

    >>> resample_budget(100, 0.29)
    29
    """
    return int(Fraction(str(float(budget_frac))) * num_rollouts)


def plan_step(need: StepNeed, num_slots: int) -> dict[tuple[int, int], float]:
    """Breadth-first allocation of one step: (failed tool-using siblings, prefixes chosen) -> questions.

    Which questions of the last level are served is not known (confidence decides), so each gets its share of it.
    """
    levels = max((candidates for _, candidates in need), default=0)
    left = num_slots
    given: dict[tuple[int, int], float] = dict.fromkeys(need, 0.0)
    for level in range(1, levels + 1):
        wanting = sum(count for (_, candidates), count in need.items() if candidates >= level)
        share = min(1.0, left / wanting)
        for key in given:
            given[key] += share if key[1] >= level else 0.0
        left -= min(left, wanting)
    result: dict[tuple[int, int], float] = {}
    for (tools, candidates), prefixes in given.items():
        full, part = int(prefixes), prefixes - int(prefixes)
        for number, weight in ((full, 1 - part), (full + 1, part)):
            if number > 0 and weight > 0:
                key = (tools, number)
                result[key] = result.get(key, 0.0) + weight * need[tools, candidates]
    return result


def posterior_recovery_probability(num_failed: int, num_samples: int, *, mean: float, correlation: float) -> float:
    """Chance of at least one success in `num_samples` more tries, after `num_failed` tries without any.

    p ~ Beta with this mean and correlation 1 / (a + b + 1); then E[(1 - p)^n] is a quotient of Beta functions.

    >>> posterior_recovery_probability(2, 4, mean=0.5, correlation=0.0)
    0.9375
    >>> round(posterior_recovery_probability(1, 1, mean=0.5, correlation=1 / 3), 4)  # uniform prior, one failure
    0.3333
    """
    failing = 1.0
    for tried in range(num_failed, num_failed + num_samples):
        failing *= 1.0 - _success_after(tried, mean=mean, correlation=correlation)
    return 1.0 - failing


def _success_after(num_failed: int, *, mean: float, correlation: float) -> float:
    """Expected p of a question that failed `num_failed` times out of as many."""
    if correlation <= 0:
        return mean
    if correlation >= 1:
        return mean if num_failed == 0 else 0.0  # a question always succeeds or never does
    return mean * (1 - correlation) / (1 - correlation + correlation * num_failed)


def fresh_probability(num_failed: int, num_samples: int, *, tool_use: float, mean: float, correlation: float) -> float:
    """The same when each new sample uses a tool only with probability `tool_use`.

    Given p it is 1 - (1 - q p)^n: at most n tries that are tools count. The number of tools among the new samples is
    binomial; the failures given that number are the product of `posterior_recovery_probability`.

    >>> round(fresh_probability(0, 2, tool_use=0.5, mean=0.5, correlation=0.0), 4)  # 1 - 0.75^2
    0.4375
    """
    if not 0 < tool_use < 1:
        return posterior_recovery_probability(
            num_failed, num_samples if tool_use >= 1 else 0, mean=mean, correlation=correlation
        )
    log_use, log_not = math.log(tool_use), math.log1p(-tool_use)
    total, failing = 0.0, 1.0
    for used in range(num_samples + 1):
        ways = math.lgamma(num_samples + 1) - math.lgamma(used + 1) - math.lgamma(num_samples - used + 1)
        total += math.exp(ways + used * log_use + (num_samples - used) * log_not) * failing
        failing *= 1.0 - _success_after(num_failed + used, mean=mean, correlation=correlation)
    return max(0.0, 1.0 - total)


def forecast(
    needs: Mapping[int | None, StepNeed],
    num_rollouts: Mapping[int | None, int],
    *,
    budget_frac: float,
    num_continuations: int,
    tool_use_rate: float | None,
    successes: SuccessSums,
) -> Recovery:
    """Plan every step and add up. `needs` and `num_rollouts` are by step."""
    plans: Counter[tuple[int, int]] = Counter()
    num_prefixes = 0
    for step, need in needs.items():
        slots = resample_budget(num_rollouts[step], budget_frac) // num_continuations
        num_prefixes += min(slots, sum(candidates * count for (_, candidates), count in need.items()))
        plans.update(plan_step(need, slots))
    mean, correlation = successes.mean, successes.correlation
    why_not = _why_not(sum(plans.values()), successes)
    expected = fresh = None
    if not why_not and mean is not None and correlation is not None and tool_use_rate is not None:
        spread = {"mean": mean, "correlation": correlation}
        expected = fresh = 0.0
        for (failed, prefixes), count in plans.items():
            num = prefixes * num_continuations
            expected += count * posterior_recovery_probability(failed, num, **spread)
            fresh += count * fresh_probability(failed, num, tool_use=tool_use_rate, **spread)
    return Recovery(
        budget_frac=budget_frac,
        num_continuations=num_continuations,
        num_steps=len(num_rollouts),
        num_triggered=sum(count for need in needs.values() for count in need.values()),
        num_candidates=sum(c * count for need in needs.values() for (_, c), count in need.items()),
        num_prefixes=num_prefixes,
        num_questions=round(sum(plans.values())),
        expected_recovered=expected,
        expected_fresh=fresh,
        tool_use_rate=tool_use_rate,
        tool_success=mean,
        correlation=correlation,
        why_not=why_not,
    )


def _why_not(num_planned: float, successes: SuccessSums) -> str:
    if not num_planned:
        return "Nothing would be resampled."
    if not successes.successes:
        return "No tool-using rollout was right, so nothing tells how often a continuation would be."
    if successes.correlation is None:
        return "No question has two scored tool-using rollouts, so nothing tells how much questions differ."
    return ""
