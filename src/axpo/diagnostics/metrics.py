"""Rollouts of a step -> flat numbers to log. Every key is explained in `docs/metrics.md`.

A rate with nothing to count is None, not zero. Unless a key says otherwise, it counts the original siblings only: the
continuations are tool-using by construction and would raise every rate they entered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from axpo.diagnostics.zoom import ZoomCounts, add_counts, count_zooms
from axpo.measures.rates import RATES, GroupCounts, count_rollouts, rate_of
from axpo.types import (
    ContinuationGroup,
    FailureKind,
    ImageRef,
    Problem,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    SegmentKind,
    StopReason,
    ToolResult,
)

Metrics = dict[str, float | int | None]


def rollout_metrics(
    groups: Sequence[RolloutGroup],
    continuations: Sequence[ContinuationGroup],
    plan: ResamplePlan,
    num_dropped: int,
    *,
    problems: Sequence[Problem] = (),
    tools: Sequence[str] = (),
) -> Metrics:
    """All numbers of the rollout phase of one step. `problems` with target boxes add the `zoom/` keys; `tools` are the
    names of the tools offered, so that one that was never called is counted too.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    resampled = [rollout for group in continuations for rollout in group.rollouts]
    counts = _count_groups(groups, continuations)
    return {
        "rollout/count": len(rollouts),
        "rollout/dropped": num_dropped,
        **{rule.logged_as: rate_of(name, counts) for name, rule in RATES.items() if rule.logged_as},
        "groups/tool_using": sum(count.tool > 0 for count in counts),
        **_resample_metrics(continuations, plan),
        **tool_metrics(rollouts, tools=tools),
        **length_metrics(rollouts),
        "tokens/generated": sum(rollout.num_sampled_tokens for rollout in (*rollouts, *resampled)),
        "tokens/resampled": sum(rollout.num_sampled_tokens for rollout in resampled),
        **_zoom_step_metrics(groups, problems),
    }


def _count_groups(
    groups: Sequence[RolloutGroup], continuations: Sequence[ContinuationGroup]
) -> tuple[GroupCounts, ...]:
    """Counters of each question, the continuations of its prefixes included."""
    resampled: dict[str, list[Rollout]] = {}
    for branch in continuations:
        resampled.setdefault(branch.prefix.source.id, []).extend(branch.rollouts)
    return tuple(
        count_rollouts(group.rollouts, [branch for source in group.rollouts for branch in resampled.get(source.id, ())])
        for group in groups
    )


def tool_metrics(rollouts: Sequence[Rollout], *, tools: Sequence[str] = ()) -> Metrics:
    """Tool calls, their failures by kind, and what became of the calls of each tool; times in seconds."""
    counts = count_rollouts(rollouts)
    results = [result for rollout in rollouts for result in rollout.tool_results]
    failures = Counter(result.failure.kind for result in results if result.failure is not None)
    metrics: Metrics = {
        "tools/calls": len(results),
        "tools/calls_per_rollout": rate_of("calls_per_rollout", [counts]),
        "tools/failure_rate": rate_of("failure_rate", [counts]),
        "tools/seconds": _mean(result.wall_time_s for result in results),
    }
    # A fault of ours ends the rollout: it is no result of a call, `rollout/dropped` counts it.
    metrics |= {f"tools/failures/{kind}": failures[kind] for kind in FailureKind if kind.is_model_fault}
    for name in sorted({*tools, *filter(None, map(_known_name, results))}):
        of_tool = [result for result in results if _known_name(result) == name]
        times_s = [result.wall_time_s - result.queue_time_s for result in of_tool]
        users = sum(any(_known_name(result) == name for result in rollout.tool_results) for rollout in rollouts)
        metrics |= {
            f"tools/{name}/calls": len(of_tool),
            f"tools/{name}/use_rate": ratio(users, len(rollouts)),
            f"tools/{name}/failures": sum(result.failure is not None for result in of_tool),
            f"tools/{name}/seconds": _mean(times_s),
            f"tools/{name}/seconds_max": max(times_s, default=None),
            f"tools/{name}/queue_seconds": _mean(result.queue_time_s for result in of_tool),
            f"tools/{name}/retried": sum(result.num_tries > 1 for result in of_tool),
            f"tools/{name}/cached": sum(result.is_cached for result in of_tool),
            f"tools/{name}/cut": sum(result.is_cut for result in of_tool),
        }
    return metrics


def picture_metrics(problems: Sequence[Problem], *, seen_px: Callable[[ImageRef], int]) -> Metrics:
    """How many pictures questions bring, and how many of them lose more than half of their pixels.

    `seen_px`: pixels of a picture as it reaches the model.
    """
    images = [image for problem in problems for image in problem.images]
    return {
        "images/count": len(images),
        "images/downscaled": _mean(2 * seen_px(image) < image.width_px * image.height_px for image in images),
    }


def length_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """Lengths in tokens and why rollouts ended."""
    prompts = [_num_prompt_tokens(rollout) for rollout in rollouts]
    responses = [len(rollout.token_ids) - prompt for rollout, prompt in zip(rollouts, prompts, strict=True)]
    metrics: Metrics = {
        "length/prompt_mean": _mean(prompts),
        "length/response_mean": _mean(responses),
        "length/response_max": max(responses, default=None),
    }
    return metrics | {f"stop/{reason}": _mean(r.stop_reason is reason for r in rollouts) for reason in StopReason}


def zoom_metrics(counts: ZoomCounts, *, prefix: str = "zoom") -> Metrics:
    """Hit rates of zoom calls and what a hit is worth."""
    num_miss_rollouts = counts.num_tool_rollouts - counts.num_hit_rollouts
    return {
        f"{prefix}/box_hit_rate": ratio(counts.num_hits, counts.num_calls),
        f"{prefix}/hit_any": ratio(counts.num_hit_rollouts, counts.num_tool_rollouts),
        f"{prefix}/accuracy_given_hit": ratio(counts.num_hit_correct, counts.num_hit_rollouts),
        f"{prefix}/accuracy_given_miss": ratio(counts.num_miss_correct, num_miss_rollouts),
    }


def count_group_zooms(
    groups: Sequence[RolloutGroup], metadata_by_id: Mapping[str, Mapping[str, Any]]
) -> ZoomCounts | None:
    """Zoom counts over groups; None when no problem names a target box."""
    counts = [count_zooms(group.rollouts, metadata_by_id.get(group.problem_id, {})) for group in groups]
    known = [count for count in counts if count is not None]
    return add_counts(known) if known else None


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, or None when there is nothing to divide by."""
    return numerator / denominator if denominator else None


def _resample_metrics(continuations: Sequence[ContinuationGroup], plan: ResamplePlan) -> Metrics:
    return {
        "resample/budget": plan.budget,
        "resample/planned": plan.num_planned,
        "resample/used": sum(len(group.rollouts) for group in continuations),
        "resample/triggered": plan.num_triggered,
        "resample/candidates": plan.num_candidates,
        "resample/confidence_mean": _mean(prefix.confidence for prefix in plan.prefixes),
    }


def _zoom_step_metrics(groups: Sequence[RolloutGroup], problems: Sequence[Problem]) -> Metrics:
    counts = count_group_zooms(groups, {problem.id: problem.metadata for problem in problems})
    return zoom_metrics(counts) if counts is not None else {}


def _known_name(result: ToolResult) -> str | None:
    """The tool's name, None when the model made it up: its inventions must not become metric keys."""
    invented = (FailureKind.UNKNOWN_TOOL, FailureKind.MALFORMED_CALL)
    return None if result.failure is not None and result.failure.kind in invented else result.call.name


def _num_prompt_tokens(rollout: Rollout) -> int:
    return sum(len(segment) for segment in rollout.segments if segment.kind is SegmentKind.PROMPT)


def _mean(values: Iterable[float]) -> float | None:
    items = list(values)
    return sum(items) / len(items) if items else None
