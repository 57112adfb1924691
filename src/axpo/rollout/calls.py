"""What a policy wrote between its tool-call tags, read as JSON.

A malformed call is a value with a `parse_error` that the model can act on, never an exception.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import cast

from axpo.types import JsonValue, ToolCall

MAX_ARGUMENT_DEPTH = 32
"""Nesting of a call's arguments above which it is refused: what recurses over them later must not overflow."""


def read_call(number: int, raw: str, *, is_closed: bool) -> ToolCall:
    """The call written in `raw`, or one whose `parse_error` the model can act on."""
    call_id = f"call-{number}"
    try:
        if not is_closed:
            raise ValueError("the closing tool-call tag is missing")
        name, arguments = _read_payload(raw)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = (
            f"Malformed tool call: {reason}. "
            'Write one JSON object {"name": <function-name>, "arguments": <args-json-object>} between the tags.'
        )
        return ToolCall(id=call_id, name="", raw=raw, parse_error=message)
    return ToolCall(id=call_id, name=name, arguments=arguments, raw=raw)


def _read_payload(raw: str) -> tuple[str, dict[str, JsonValue]]:
    if not raw.strip():
        raise ValueError("it is empty")
    payload = json.loads(
        raw,
        parse_int=_read_int,
        parse_float=_read_float,
        parse_constant=_read_float,
        object_pairs_hook=_read_object,
    )
    if not isinstance(payload, dict):
        raise ValueError(f"expected a JSON object, got {_json_type(payload)}")
    fields = cast("dict[str, JsonValue]", payload)
    for key, expected in (("name", str), ("arguments", dict)):
        wanted = "a non-empty string" if expected is str else "a JSON object"
        if key not in fields:
            raise ValueError(f'"{key}" is missing, expected {wanted}')
        if not isinstance(fields[key], expected):
            raise ValueError(f'"{key}" must be {wanted}, got {_json_type(fields[key])}')
    if not fields["name"]:
        raise ValueError('"name" must be a non-empty string, got an empty one')
    if _is_deeper(fields["arguments"], MAX_ARGUMENT_DEPTH):
        raise ValueError(f"its arguments are nested more than {MAX_ARGUMENT_DEPTH} levels deep")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(r"it contains half of a surrogate pair (\ud800 to \udfff), which is no character") from error
    return fields["name"], fields["arguments"]


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _read_int(text: str) -> int:
    _read_float(text)
    return int(text)


def _read_object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {json.dumps(repeated[:40])} appears more than once in one object")
    return fields


def _is_deeper(value: JsonValue, limit: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    children = cast("list[JsonValue]", list(value.values() if isinstance(value, dict) else value))
    return limit == 0 or any(_is_deeper(child, limit - 1) for child in children)


def _json_type(value: JsonValue) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
