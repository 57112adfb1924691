"""What OpenAI's chat completions say, read as our records, and a sampled turn written as one of them."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from axpo.errors import DataError, RecordError
from axpo.images import ContentImageStore
from axpo.protocols import ParsedTurn, Renderer
from axpo.types import (
    Completion,
    Content,
    ImageRef,
    JsonValue,
    Message,
    SamplingParams,
    SegmentKind,
    ToolCall,
    ToolSpec,
)

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,")
_READ = (
    *("model", "messages", "tools", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "presence_penalty", "seed"),
)
_FIXED: Mapping[str, tuple[JsonValue, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "tool_choice": ("auto",),
    "frequency_penalty": (0, 0.0),
    "user": (),
}
"""Further parameters with the values that say nothing new; () is any."""

Fields = Mapping[str, JsonValue]


class Refusal(Exception):
    """What the client gets to read."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> JsonValue:
        """As OpenAI words it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code, "param": self.param}}


# -- from the wire ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOrder:
    """A request that was read."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_tokens: int | None
    sampling: SamplingParams
    seed: int


def read_order(fields: Fields, *, model: str, store: ContentImageStore) -> ChatOrder:
    """A request for a chat completion. Raises `Refusal` naming the parameter that is wrong."""
    for name, value in fields.items():
        is_known = name in _READ or (name in _FIXED and (not _FIXED[name] or value in _FIXED[name]))
        if value is not None and not is_known:
            raise Refusal(f"Unsupported parameter or value: {name}.", code="unsupported_parameter", param=name)
    if fields.get("model") not in (model, None):
        message = f"The model {str(fields['model'])[:100]!r} does not exist; this server has {model!r}."
        raise Refusal(message, status=404, code="model_not_found", param="model")
    numbers = {name: _number(fields, name, default) for name, default in _SAMPLING.items()}
    try:
        sampling = SamplingParams(
            temperature=numbers["temperature"],
            top_p=numbers["top_p"],
            top_k=max(0, int(numbers["top_k"])),  # -1 switches it off elsewhere
            presence_penalty=numbers["presence_penalty"],
        )
    except RecordError as error:
        raise Refusal(str(error)) from error
    limits = [n for name in ("max_completion_tokens", "max_tokens") if (n := _count(fields, name)) is not None]
    seed = _count(fields, "seed", least=-(2**63))
    return ChatOrder(
        messages=_read_messages(fields.get("messages"), store),
        tools=tuple(_read_tool(entry) for entry in _list(fields.get("tools"), "tools")),
        max_tokens=limits[0] if limits else None,
        sampling=sampling,
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
    )


_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0, "presence_penalty": 0.0}


def _number(fields: Fields, name: str, default: float) -> float:
    value = default if fields.get(name) is None else fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Refusal(f"{name} must be a number, got {str(value)[:40]}.", param=name)
    return float(value)


def _count(fields: Fields, name: str, *, least: int = 1) -> int | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise Refusal(f"{name} must be a whole number of at least {least}, got {str(value)[:40]}.", param=name)
    return value


def _read_messages(value: JsonValue, store: ContentImageStore) -> tuple[Message, ...]:
    messages = tuple(_read_message(entry, store) for entry in _list(value, "messages"))
    if not any(message.role == "user" for message in messages):
        raise Refusal("messages must hold at least one message of the user.", param="messages")
    return messages


def _read_message(entry: JsonValue, store: ContentImageStore) -> Message:
    fields = read_object(entry, "messages")
    role = {"developer": "system"}.get(fields.get("role", ""), fields.get("role"))
    if role not in ("system", "user", "assistant", "tool"):
        raise Refusal(f"messages: unknown role {str(role)[:40]!r}.", param="messages")
    reasoning = fields.get("reasoning_content") or fields.get("reasoning")
    return Message(
        role=cast("Any", role),
        content=_read_content(fields.get("content"), store),
        reasoning=reasoning if isinstance(reasoning, str) else None,
        tool_calls=tuple(_read_call(call) for call in _list(fields.get("tool_calls"), "messages")),
        tool_call_id=str(fields["tool_call_id"]) if fields.get("tool_call_id") is not None else None,
    )


def _read_content(value: JsonValue, store: ContentImageStore) -> tuple[Content, ...]:
    if value is None or isinstance(value, str):
        return (Content(text=value),) if value else ()
    return tuple(_read_part(read_object(part, "messages"), store) for part in _list(value, "messages"))


def _read_part(part: Fields, store: ContentImageStore) -> Content:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return Content(text=part["text"])
    if part.get("type") == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        return Content(image=_read_picture(url, store))
    raise Refusal(f"messages: unknown part of type {str(part.get('type'))[:40]!r}.", param="messages")


def _read_picture(url: JsonValue, store: ContentImageStore) -> ImageRef:
    head = _DATA_URL.match(url) if isinstance(url, str) else None
    if head is None:
        raise Refusal("image_url must be a data URL (data:image/png;base64,...); nothing is fetched.", param="messages")
    try:
        return store.add_bytes(base64.b64decode(url[head.end() :], validate=True), origin="image_url")
    except (binascii.Error, DataError) as error:
        raise Refusal(f"messages: {error}", param="messages") from error


def _read_call(entry: JsonValue) -> ToolCall:
    fields = read_object(entry, "messages")
    function = read_object(fields.get("function"), "messages")
    arguments = function.get("arguments")
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict) or not isinstance(function.get("name"), str):
        raise Refusal("messages: a tool call needs a name, and arguments that are a JSON object.", param="messages")
    return ToolCall(id=str(fields.get("id", "")), name=function["name"], arguments=cast("Any", read))


def _read_tool(entry: JsonValue) -> ToolSpec:
    function = read_object(read_object(entry, "tools").get("function"), "tools")
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not isinstance(description, str) or not isinstance(parameters, dict):
        raise Refusal("tools: a function needs a name, a description and a schema of its parameters.", param="tools")
    return ToolSpec(name=name, description=description, parameters=cast("Any", parameters))


def read_object(value: JsonValue, param: str) -> Fields:
    """The value, if it is an object. Raises `Refusal` naming `param`."""
    if not isinstance(value, dict):
        raise Refusal(f"{param}: expected an object, got {str(value)[:40]}.", param=param)
    return cast("Fields", value)


def _list(value: JsonValue, param: str) -> Sequence[JsonValue]:
    if value is not None and not isinstance(value, list):
        raise Refusal(f"{param}: expected a list, got {str(value)[:40]}.", param=param)
    return cast("Sequence[JsonValue]", value or [])


# -- to the wire ------------------------------------------------------------------------------------------------------


def completion_fields(
    completion: Completion, turn: ParsedTurn, *, model: str, num_prompt_tokens: int, renderer: Renderer
) -> JsonValue:
    """A chat completion as OpenAI words it, with the thinking as `reasoning_content`."""
    thinking = [segment for segment in turn.segments if segment.kind is SegmentKind.THINKING]
    reasoning = "".join(renderer.decode(completion.token_ids[s.start : s.stop]) for s in thinking)
    is_readable = all(call.parse_error is None for call in turn.tool_calls)
    text = turn.visible_text if is_readable else _text_after(completion, thinking[-1].stop if thinking else 0, renderer)
    message: dict[str, JsonValue] = {"role": "assistant", "content": text or None}
    if thinking:
        message["reasoning_content"] = reasoning.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if turn.tool_calls and is_readable:
        message["tool_calls"] = [_call_fields(call) for call in turn.tool_calls]
    finish = "length" if completion.finish_reason == "length" else "tool_calls" if "tool_calls" in message else "stop"
    num_sampled = len(completion.token_ids)
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt_tokens + num_sampled,
        },
    }


def _text_after(completion: Completion, start: int, renderer: Renderer) -> str:
    ids = completion.token_ids[start:]
    return renderer.decode(ids[:-1] if ids and ids[-1] in renderer.stop_token_ids else ids).strip()


def _call_fields(call: ToolCall) -> JsonValue:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}
