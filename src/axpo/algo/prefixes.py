"""Which thinking can be branched, where, and how sure the policy was of the call (arXiv:2605.28774)."""

from __future__ import annotations

import math
from statistics import fmean

from axpo.algo.options import BranchAt, ConfidenceCalls, ScoredCalls, check_choice
from axpo.errors import RecordError
from axpo.types import Rollout, RolloutGroup, Segment, SegmentKind, StopReason, ThinkingPrefix


def is_triggered(group: RolloutGroup) -> bool:
    """True when some sibling used a tool and none that did is correct; siblings without a tool do not count.

    The trigger of arXiv:2605.28774. Deviation: none.

    >>> from axpo.algo.example import build_group
    >>> is_triggered(build_group("q0", tool=[0.0, 0.0], no_tool=[1.0]))
    True
    >>> is_triggered(build_group("q0", tool=[0.0, 1.0]))
    False
    """
    return group.is_triggered


def cut_point(rollout: Rollout, *, call: BranchAt = "first") -> int:
    """Number of tokens that a branch inherits: everything up to and including the call's opening tag.

    The branch point of arXiv:2605.28774, the first call. Deviation: `last` is ours.

    Args:
        rollout: A tool-using rollout.
        call: Which call to cut at. With `last`, earlier calls and their results belong to the prefix.

    Raises:
        RecordError: The rollout opened no tool call.
        ConfigError: Unknown `call`.

    >>> from axpo.algo.example import build_rollout
    >>> rollout = build_rollout("a", calls=[(0.5,), (0.5,)])
    >>> cut_point(rollout), cut_point(rollout, call="last")
    (6, 14)
    """
    check_choice("call", call, BranchAt)
    calls = _tool_calls(rollout)
    return calls[0 if call == "first" else -1][0].stop


def tool_call_confidence(rollout: Rollout, *, calls: ScoredCalls = "first", tags: bool = False) -> float:
    """Arithmetic mean of the probabilities with which the tool-call tokens were sampled.

    The uncertainty score of arXiv:2605.28774. Deviation: the paper leaves open which calls and whether the tags count;
    the body of the first call is our default. A body without tokens (cut off, or closed at once) leaves nothing to
    average: then the opening tag's own probability stands in, so that the rollout can still be ranked.

    Args:
        rollout: A tool-using rollout.
        calls: The first call, the last one, or the tokens of all calls together.
        tags: Count the opening and closing tags too.

    Returns:
        A probability in 0..1; the lower, the less sure the policy was.

    Raises:
        RecordError: The rollout opened no tool call.
        ConfigError: Unknown `calls`.

    >>> from axpo.algo.example import build_rollout
    >>> round(tool_call_confidence(build_rollout("a", calls=[(0.5, 0.25)])), 3)
    0.375
    """
    check_choice("calls", calls, ScoredCalls)
    every_call = _tool_calls(rollout)
    chosen = {"first": every_call[:1], "last": every_call[-1:], "all": every_call}[calls]
    tokens = [segment for call in chosen for segment in call if tags or segment.kind is SegmentKind.TOOL_CALL]
    tokens = tokens or [call[0] for call in chosen]
    logprobs = [logprob for segment in tokens for logprob in rollout.behavior_logprobs[segment.start : segment.stop]]
    # A `Rollout` has finite log-probs; by rounding one may lie just above zero.
    return min(1.0, fmean(math.exp(logprob) for logprob in logprobs))


def thinking_prefixes(
    group: RolloutGroup, *, branch_at: BranchAt = "first", calls: ConfidenceCalls = "first", tags: bool = False
) -> tuple[ThinkingPrefix, ...]:
    """The prefixes of a triggered group that can be resampled, least confident first; of any other group none.

    The candidates of arXiv:2605.28774. Every tool-using sibling is a candidate, malformed and cut-off calls
    included, with two exceptions: a rollout that itself inherits a prefix, and one that has nothing left to resample
    with: its token limit fell exactly on the opening tag, or its call was one more than the turn limit allows.

    Args:
        group: The siblings of one question.
        branch_at: The call that is resampled.
        calls: Whose confidence ranks: `first` is the call that is resampled (so the last one with
            `branch_at="last"`), `all` every call of the rollout.
        tags: Count the tags' probabilities too.

    Returns:
        Ascending in confidence, equal ones by rollout id.

    Raises:
        ConfigError: Unknown option.

    >>> from axpo.algo.example import build_group
    >>> [(p.source.id, p.num_tokens) for p in thinking_prefixes(build_group("q0", tool=[0.0, 0.0], no_tool=[1.0]))]
    [('q0/0', 6), ('q0/1', 6)]
    """
    check_choice("branch_at", branch_at, BranchAt)
    check_choice("calls", calls, ConfidenceCalls)
    if not is_triggered(group):
        return ()
    scored_calls = "all" if calls == "all" else branch_at
    prefixes = [
        ThinkingPrefix(
            source=rollout,
            num_tokens=cut_point(rollout, call=branch_at),
            confidence=tool_call_confidence(rollout, calls=scored_calls, tags=tags),
        )
        for rollout in group.tool_using
        if rollout.prefix is None
    ]
    resumable = filter(_is_resumable, prefixes)
    return tuple(sorted(resumable, key=lambda prefix: (prefix.confidence, prefix.source.id)))


def _is_resumable(prefix: ThinkingPrefix) -> bool:
    """False when a continuation would meet the source's limit at once: no token, or no tool turn, is left for it."""
    source = prefix.source
    if source.stop_reason is StopReason.TOKEN_LIMIT:
        return prefix.num_tokens < len(source.token_ids)
    if source.stop_reason is StopReason.TURN_LIMIT:
        return any(s.kind is SegmentKind.TOOL_RESULT and s.start >= prefix.num_tokens for s in source.segments)
    return True


def _tool_calls(rollout: Rollout) -> list[list[Segment]]:
    """The segments of each call, opening tag first."""
    calls: list[list[Segment]] = []
    for segment in rollout.segments:
        if segment.kind is SegmentKind.TOOL_OPEN:
            calls.append([segment])
        elif segment.kind in (SegmentKind.TOOL_CALL, SegmentKind.TOOL_CLOSE):
            if not calls:
                raise RecordError(f"Rollout {rollout.id}: {segment.kind} at {segment.start} before any tool_open")
            calls[-1].append(segment)
    if not calls:
        raise RecordError(f"Rollout {rollout.id}: has no tool_open segment; only a tool-using rollout can be branched")
    return calls
