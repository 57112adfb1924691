"""What an evaluation keeps of each question, and the numbers that follow. Imports no torch: reports read it too.

Every number is total(numerator) / total(denominator) over questions (see `axpo.evaluation.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.diagnostics.zoom import ZoomCounts, count_zooms
from axpo.errors import DataError
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.statistics import Interval, clustered_bootstrap
from axpo.types import Rollout, SegmentKind

Addends = tuple[float, float]
"""Numerator and denominator that one question adds."""


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
    """Questions with one label get numbers of their own beside those over all."""


def question_outcome(
    problem_id: str, rollouts: Sequence[Rollout], *, metadata: Mapping[str, Any], num_samples: int
) -> QuestionOutcome:
    """Count the samples of one question."""
    prompt = SegmentKind.PROMPT
    return QuestionOutcome(
        problem_id=problem_id,
        cluster=str(metadata.get("cluster", problem_id)),
        num_samples=num_samples,
        num_rollouts=len(rollouts),
        num_correct=sum(rollout.is_correct for rollout in rollouts),
        num_tool=sum(rollout.uses_tool for rollout in rollouts),
        num_tool_correct=sum(rollout.uses_tool and rollout.is_correct for rollout in rollouts),
        num_tool_calls=sum(len(rollout.tool_results) for rollout in rollouts),
        num_truncated=sum(rollout.stop_reason.is_truncated for rollout in rollouts),
        response_tokens=sum(len(s) for rollout in rollouts for s in rollout.segments if s.kind is not prompt),
        zooms=count_zooms(rollouts, metadata),
        category=str(metadata.get("category", "")),
    )


def outcome_metrics(outcomes: Sequence[QuestionOutcome], *, seed: int = 0) -> dict[str, float | int | None]:
    """All `eval/` numbers, each with its 95 % interval clustered by `QuestionOutcome.cluster`.

    Raises `DataError` without outcomes.
    """
    metrics: dict[str, float | int | None] = {
        "eval/questions": len(outcomes),
        "eval/samples": _num_samples(outcomes),
        "eval/dropped": sum(outcome.num_samples - outcome.num_rollouts for outcome in outcomes),
    }
    for name, addends in metric_addends(outcomes).items():
        interval = outcome_interval(outcomes, addends, seed=seed)
        metrics[f"eval/{name}"] = interval.estimate
        metrics[f"eval/{name}_low"] = interval.low
        metrics[f"eval/{name}_high"] = interval.high
    return metrics


def outcome_interval(
    outcomes: Sequence[QuestionOutcome], addends: Callable[[QuestionOutcome], Addends], *, seed: int = 0
) -> Interval:
    """One number with its 95 % interval."""
    clusters = [outcome.cluster for outcome in outcomes]
    return clustered_bootstrap([addends(outcome) for outcome in outcomes], clusters=clusters, seed=seed)


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


_TOOL_METRICS: dict[str, Callable[[QuestionOutcome], Addends]] = {
    "tool_use_rate": lambda outcome: (outcome.num_tool, outcome.num_rollouts),
    "tool_use_any": lambda outcome: (outcome.num_tool > 0, 1),
    "calls_per_rollout": lambda outcome: (outcome.num_tool_calls, outcome.num_rollouts),
    "accuracy_tool": lambda outcome: (outcome.num_tool_correct, outcome.num_tool),
    "accuracy_no_tool": lambda outcome: (
        outcome.num_correct - outcome.num_tool_correct,
        outcome.num_rollouts - outcome.num_tool,
    ),
    "truncated": lambda outcome: (outcome.num_truncated, outcome.num_rollouts),
    "response_tokens": lambda outcome: (outcome.response_tokens, outcome.num_rollouts),
}


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
