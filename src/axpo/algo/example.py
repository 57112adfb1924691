"""A step in miniature: builds valid records for doctests, tests and the documentation. Not used by the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from axpo.types import (
    ContinuationGroup,
    PrefixRef,
    Rollout,
    RolloutGroup,
    Segment,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
)

Layout = Sequence[tuple[SegmentKind, Sequence[float]]]
"""Segments in order, each with the probability of every token; the values of prompt and tool results are not read."""

PROMPT = (SegmentKind.PROMPT, (1.0, 1.0, 1.0))
THINKING = (SegmentKind.THINKING, (0.9, 0.8))
TOOL_OPEN = (SegmentKind.TOOL_OPEN, (0.4,))
TOOL_CLOSE = (SegmentKind.TOOL_CLOSE, (1.0,))
TEXT = (SegmentKind.TEXT, (0.9,))
TOOL_RESULT = (SegmentKind.TOOL_RESULT, (1.0, 1.0))
ANSWER = (SegmentKind.ANSWER, (0.9, 0.9))


def build_rollout(
    rollout_id: str,
    *,
    reward: float = 0.0,
    calls: Sequence[Sequence[float]] = (),
    problem_id: str = "q0",
    layout: Layout | None = None,
    stop_reason: StopReason = StopReason.ANSWERED,
) -> Rollout:
    """A sibling: prompt, thinking, then each call with its result, then the answer.

    Args:
        rollout_id: Its id.
        reward: 1.0 right, 0.0 wrong.
        calls: For every tool call the probabilities of its body tokens; empty: it answers without a tool.
        problem_id: The question it belongs to.
        layout: Replaces the layout described above.
        stop_reason: Why it ended.

    >>> rollout = build_rollout("a", calls=[(0.5, 0.25)])
    >>> [f"{s.kind} {s.start}:{s.stop}" for s in rollout.segments[:4]]
    ['prompt 0:3', 'thinking 3:5', 'tool_open 5:6', 'tool_call 6:8']
    """
    parts = layout if layout is not None else [PROMPT, THINKING, *_call_parts(calls), ANSWER]
    segments: list[Segment] = []
    logprobs: list[float] = []
    for kind, probabilities in parts:
        segments.append(Segment(kind=kind, start=len(logprobs), stop=len(logprobs) + len(probabilities)))
        logprobs += [math.log(p) if kind.is_sampled else 0.0 for p in probabilities]
    return Rollout(
        id=rollout_id,
        problem_id=problem_id,
        token_ids=tuple(range(100, 100 + len(logprobs))),
        behavior_logprobs=tuple(logprobs),
        segments=tuple(segments),
        images=(),
        stop_reason=stop_reason,
        final_text="",
        reward=reward,
    )


def _call_parts(calls: Sequence[Sequence[float]]) -> list[tuple[SegmentKind, Sequence[float]]]:
    parts: list[tuple[SegmentKind, Sequence[float]]] = []
    for body in calls:
        parts += [TOOL_OPEN, *([(SegmentKind.TOOL_CALL, body)] if body else [])]
        parts += [TOOL_CLOSE, TEXT, TOOL_RESULT, THINKING]
    return parts


def build_group(problem_id: str, *, tool: Sequence[float] = (), no_tool: Sequence[float] = ()) -> RolloutGroup:
    """Siblings with the given rewards, tool-using ones first; the i-th call has probability 0.5 + 0.01 i.

    >>> group = build_group("q0", tool=[0.0, 0.0], no_tool=[1.0])
    >>> [rollout.id for rollout in group.rollouts], group.is_triggered
    (['q0/0', 'q0/1', 'q0/2'], True)
    """
    with_tool = [
        build_rollout(f"{problem_id}/{i}", reward=reward, calls=[(0.5 + 0.01 * i,)], problem_id=problem_id)
        for i, reward in enumerate(tool)
    ]
    without_tool = [
        build_rollout(f"{problem_id}/{i}", reward=reward, problem_id=problem_id)
        for i, reward in enumerate(no_tool, start=len(tool))
    ]
    return RolloutGroup(problem_id=problem_id, rollouts=(*with_tool, *without_tool))


def build_continuations(prefix: ThinkingPrefix, rewards: Sequence[float]) -> ContinuationGroup:
    """One continuation of a prefix per reward: another call, its result, an answer.

    >>> from axpo.algo.prefixes import thinking_prefixes
    >>> [prefix] = thinking_prefixes(build_group("q0", tool=[0.0]))
    >>> build_continuations(prefix, [0.0, 1.0]).is_recovered
    True
    """
    inherited = [s for s in prefix.source.segments if s.stop <= prefix.num_tokens]
    layout: list[tuple[SegmentKind, Sequence[float]]] = [(s.kind, [1.0] * len(s)) for s in inherited]
    layout += [(SegmentKind.TOOL_CALL, (0.7,)), TOOL_CLOSE, TEXT, TOOL_RESULT, THINKING, ANSWER]
    rollouts = [
        build_rollout(f"{prefix.source.id}+{k}", reward=reward, problem_id=prefix.source.problem_id, layout=layout)
        for k, reward in enumerate(rewards)
    ]
    return ContinuationGroup(prefix=prefix, rollouts=tuple(_inherit(rollout, prefix) for rollout in rollouts))


def _inherit(rollout: Rollout, prefix: ThinkingPrefix) -> Rollout:
    source, cut = prefix.source, prefix.num_tokens
    return replace(
        rollout,
        token_ids=source.token_ids[:cut] + rollout.token_ids[cut:],
        behavior_logprobs=source.behavior_logprobs[:cut] + rollout.behavior_logprobs[cut:],
        prefix=PrefixRef(source_id=source.id, num_tokens=cut),
    )
