"""What an evaluation keeps of each question, and the numbers that follow. Imports no torch: reports read it too.

Every number is total(numerator) / total(denominator) over questions. `axpo.measures.rates` defines the rates that other
outputs have too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.diagnostics.zoom import ZoomCounts, count_zooms
from axpo.errors import DataError
from axpo.evaluation.estimators import pass_at_k
from axpo.measures.estimates import Questions
from axpo.measures.rates import RATES, Addends, GroupCounts, count_rollouts
from axpo.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOutcome:
    """Counts over the samples of one question."""

    problem_id: str
    cluster: str
    """Questions with one label are resampled together; the question's own id when it shares nothing."""
    num_samples: int
    """Samples asked for. Those dropped for a fault of ours stay in it, as wrong."""
    num_rollouts: int
    """Samples that ended."""
    num_correct: int
    num_tool: int
    num_tool_correct: int
    num_tool_calls: int
    num_truncated: int
    response_tokens: int
    zooms: ZoomCounts | None
    """None when the question names no target box."""
    category: str = ""
    """Questions with one label get numbers of their own in addition to those over all."""

    @property
    def counts(self) -> GroupCounts:
        """Counters for the rates of `axpo.measures.rates`."""
        return GroupCounts(
            n=self.num_rollouts,
            scored=self.num_rollouts,
            right=self.num_correct,
            tool=self.num_tool,
            tool_scored=self.num_tool,
            tool_right=self.num_tool_correct,
            answered=self.num_tool_calls,
            truncated=self.num_truncated,
            truncation_known=self.num_rollouts,
            length=self.response_tokens,
            lengths_known=self.num_rollouts,
        )


def question_outcome(
    problem_id: str, rollouts: Sequence[Rollout], *, metadata: Mapping[str, Any], num_samples: int
) -> QuestionOutcome:
    """Count the samples of one question."""
    counts = count_rollouts(rollouts)
    return QuestionOutcome(
        problem_id=problem_id,
        cluster=str(metadata.get("cluster", problem_id)),
        num_samples=num_samples,
        num_rollouts=counts.n,
        num_correct=counts.right,
        num_tool=counts.tool,
        num_tool_correct=counts.tool_right,
        num_tool_calls=counts.answered,
        num_truncated=counts.truncated,
        response_tokens=counts.length,
        zooms=count_zooms(rollouts, metadata),
        category=str(metadata.get("category", "")),
    )


def outcome_metrics(outcomes: Sequence[QuestionOutcome]) -> dict[str, float | int | None]:
    """All `eval/` numbers, each with its 95% interval clustered by `QuestionOutcome.cluster`.

    Raises `DataError` without outcomes.
    """
    metrics: dict[str, float | int | None] = {
        "eval/questions": len(outcomes),
        "eval/samples": _num_samples(outcomes),
        "eval/dropped": sum(outcome.num_samples - outcome.num_rollouts for outcome in outcomes),
    }
    questions = Questions([outcome.cluster for outcome in outcomes])
    for name, addends in metric_addends(outcomes).items():
        interval = questions.ratio(list(map(addends, outcomes)), is_share=is_share(name)).interval
        metrics[f"eval/{name}"] = interval.estimate
        metrics[f"eval/{name}_low"] = interval.low
        metrics[f"eval/{name}_high"] = interval.high
    return metrics


def is_share(name: str) -> bool:
    """True when the number called `name` is in 0..1."""
    return name not in _SHARED or RATES[_SHARED[name]].is_share


def metric_addends(outcomes: Sequence[QuestionOutcome]) -> dict[str, Callable[[QuestionOutcome], Addends]]:
    """The numbers these outcomes allow, by name without `eval/`."""
    num_samples = _num_samples(outcomes)
    named = {f"pass@{k}": _pass_at(k) for k in sorted({1, num_samples})} | _TOOL_METRICS
    if any(outcome.zooms is not None for outcome in outcomes):
        named |= _ZOOM_METRICS
    categories = sorted({outcome.category for outcome in outcomes} - {""})
    split = ("pass@1", f"pass@{num_samples}", "tool_use_rate")
    of_category = {f"{label}/{name}": _within(label, named[name]) for label in categories for name in split}
    return named | of_category if len(categories) > 1 else named


def _within(label: str, addends: Callable[[QuestionOutcome], Addends]) -> Callable[[QuestionOutcome], Addends]:
    return lambda outcome: addends(outcome) if outcome.category == label else (0, 0)


def _num_samples(outcomes: Sequence[QuestionOutcome]) -> int:
    counts = {outcome.num_samples for outcome in outcomes}
    if len(counts) != 1:
        raise DataError(f"evaluation: need questions with one number of samples each, got {sorted(counts) or 'none'}.")
    return counts.pop()


def _pass_at(k: int) -> Callable[[QuestionOutcome], Addends]:
    return lambda outcome: (pass_at_k(outcome.num_samples, outcome.num_correct, k), 1)


def _shared(name: str) -> Callable[[QuestionOutcome], Addends]:
    return lambda outcome: RATES[name].addends(outcome.counts)


_SHARED = {
    name: name
    for name in (
        "tool_use_rate",
        "tool_use_any",
        "calls_per_rollout",
        "accuracy_tool",
        "accuracy_no_tool",
        "truncated",
    )
} | {"response_tokens": "response_length"}
"""Name here -> name in `RATES`."""
_TOOL_METRICS = {name: _shared(rate) for name, rate in _SHARED.items()}


def _of_zooms(count: Callable[[ZoomCounts], Addends]) -> Callable[[QuestionOutcome], Addends]:
    return lambda outcome: count(outcome.zooms) if outcome.zooms is not None else (0, 0)


_ZOOM_METRICS: dict[str, Callable[[QuestionOutcome], Addends]] = {
    "box_hit_rate": _of_zooms(lambda zooms: (zooms.num_hits, zooms.num_calls)),
    "hit_any": _of_zooms(lambda zooms: (zooms.num_hit_rollouts, zooms.num_tool_rollouts)),
    "accuracy_given_hit": _of_zooms(lambda zooms: (zooms.num_hit_correct, zooms.num_hit_rollouts)),
    "accuracy_given_miss": _of_zooms(
        lambda zooms: (zooms.num_miss_correct, zooms.num_tool_rollouts - zooms.num_hit_rollouts)
    ),
}
