"""The schema for everybody else: one JSON object a rollout, see `docs/diagnose.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, has, pick, read_dialogue_row
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout
from axpo.types import FailureKind

NAMES: Names = {
    "question": ("question", "question_id"),
    "answer": (),
    "step": ("step",),
    "reward": ("reward",),
    "prompt": (),
    "text": ("text",),
    "messages": ("messages",),
    "calls": ("calls",),
    "uses_tool": ("uses_tool",),
    "truncated": ("truncated",),
    "length": ("num_tokens",),
    "turns": ("num_turns",),
    "confidence": ("confidence",),
}


def _matches(row: Row, names: Names) -> bool:
    responses = ("text", "messages", "calls", "uses_tool")
    return has(row, names, "question", "reward") and any(has(row, names, name) for name in responses)


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    """`calls` and `uses_tool` say what a text would show, and count instead of it."""
    given, flag = pick(row, names, "calls"), pick(row, names, "uses_tool")
    if given is None and flag is None:
        return read_dialogue_row(row, names, origin)
    has_response = has(row, names, "text") or has(row, names, "messages")
    whole = row if has_response else {**row, (names["text"] or ("text",))[0]: ""}
    [heard] = read_dialogue_row(whole, names, origin)
    calls = heard.calls if given is None else _read_calls(given)
    uses_tool = bool(flag) if isinstance(flag, (bool, int)) else bool(calls)
    told = replace(heard, calls=calls, uses_tool=uses_tool)
    if has_response:
        return (told,)
    length = heard.length if pick(row, names, "length") is not None else None
    turns = heard.num_turns if pick(row, names, "turns") is not None else None
    return (replace(told, length=length, num_turns=turns, num_calls_in_thinking=None),)


def _read_calls(value: Any) -> tuple[SeenCall, ...]:
    if not isinstance(value, list):
        raise TypeError(f"calls is {type(value).__name__}, expected a list of objects with a tool")
    return tuple(_read_call(call) for call in cast("list[Any]", value))


def _read_call(value: Any) -> SeenCall:
    if not isinstance(value, Mapping):
        raise TypeError(f"a call is {type(value).__name__}, expected an object with a tool")
    call = cast("Mapping[str, Any]", value)
    failure, tool = call.get("failure"), call.get("tool")
    if failure is not None and failure not in set(FailureKind):
        raise ValueError(f"failure {str(failure)[:40]!r} is none of {', '.join(FailureKind)}")
    return SeenCall(
        tool=tool if isinstance(tool, str) and tool else None,
        arguments=str(call.get("arguments", ""))[:10_000],
        is_answered=call.get("answered") is not False,
        failure=FailureKind(failure) if failure is not None else None,
    )


FORMAT = Format(
    name="minimal",
    title="the minimal schema (question, reward, text or messages)",
    names=NAMES,
    matches=_matches,
    read=_read,
)
