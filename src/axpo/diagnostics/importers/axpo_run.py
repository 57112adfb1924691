"""Our own run folders: lines of `axpo.diagnostics.recorder.RolloutRecord`, exact in every field.

Read as plain JSON: building the records would check what the recorder has checked, at ten times the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, read_count, read_reward, read_share
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout
from axpo.types import FailureKind

_INVENTED = (FailureKind.UNKNOWN_TOOL, FailureKind.MALFORMED_CALL)


def _matches(row: Row, names: Names) -> bool:
    return "phase" in row and "segment_texts" in row and isinstance(row.get("rollout"), Mapping)


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    rollout = cast("Mapping[str, Any]", row["rollout"])
    segments = cast("Sequence[Mapping[str, Any]]", rollout["segments"])
    texts = cast("Sequence[str]", row["segment_texts"])
    opens = [position for position, segment in enumerate(segments) if segment["kind"] == "tool_open"]
    thinking = [text for segment, text in zip(segments, texts, strict=True) if segment["kind"] == "thinking"]
    num_prompt = sum(segment["stop"] - segment["start"] for segment in segments if segment["kind"] == "prompt")
    return (
        SeenRollout(
            question=str(rollout["problem_id"]),
            step=read_count(row["step"]),
            reward=read_reward(rollout["reward"]),
            uses_tool=bool(opens),
            calls=_calls(rollout["tool_results"], segments, texts, opens),
            num_calls_in_thinking=sum(text.count("<tool_call>") for text in thinking),
            is_truncated=rollout["stop_reason"] != "answered",
            length=len(rollout["token_ids"]) - num_prompt,
            num_turns=1 + sum(segment["kind"] == "tool_result" for segment in segments[:-1]),
            confidence=read_share(row["confidence"]),
            is_continuation=row["phase"] == "resample",
            is_source=row["role"] == "prefix",
            is_resumable=not opens or _is_resumable(rollout, segments, opens[0]),
        ),
    )


def _calls(
    results: Sequence[Mapping[str, Any]],
    segments: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    opens: Sequence[int],
) -> tuple[SeenCall, ...]:
    """The answered calls first, then those that never ran."""
    answered = [answered_call(result) for result in results]
    rest = (texts[at + 1].strip() if segments[at + 1 : at + 2] else "" for at in opens[len(answered) :])
    return (*answered, *(SeenCall(tool=None, arguments=text, is_answered=False) for text in rest))


def answered_call(result: Mapping[str, Any]) -> SeenCall:
    """A call of ours with its recorded outcome."""
    failure = FailureKind(result["failure"]["kind"]) if result["failure"] is not None else None
    call = result["call"]
    tool = None if failure in _INVENTED else str(call["name"])
    return SeenCall(tool=tool, arguments=str(call["raw"] or call["arguments"]), is_answered=True, failure=failure)


def _is_resumable(rollout: Mapping[str, Any], segments: Sequence[Mapping[str, Any]], opened: int) -> bool:
    """The rule of `axpo.algo.prefixes`: a continuation must not meet its source's limit at once."""
    cut = segments[opened]["stop"]
    if rollout["prefix"] is not None:
        return False
    if rollout["stop_reason"] == "token_limit":
        return cut < len(rollout["token_ids"])
    if rollout["stop_reason"] == "turn_limit":
        return any(segment["kind"] == "tool_result" and segment["start"] >= cut for segment in segments)
    return True


FORMAT = Format(
    name="axpo",
    title="axpo run",
    names={},
    matches=_matches,
    read=_read,
    length_unit="tokens",
    records_continuations=True,
)
