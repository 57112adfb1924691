"""Converts messages to OpenAI's chat completions and back.

A call has an id of nine letters and digits, derived from ours (Mistral takes no other, OpenAI none above 40), and its
arguments are always a JSON object. A tool turn has two dialects:

- `vllm`: what servers take that render a chat template (vLLM, SGLang, llama.cpp). Images of a tool result are in its
  `tool` message, the thinking of earlier turns is sent back as `reasoning_content`, and a malformed call is sent back
  as the text that the model wrote. The model reads the conversation as it would in training.
- `openai`: what OpenAI's own API takes. A `tool` message is text, its images follow in a `user` message that names the
  call, thinking is not sent, and a malformed call is sent as the arguments `{"malformed": ...}`. Qwen's chat template
  drops all thinking before such a `user` message, so a Qwen model forgets why it called.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

from axpo.dialogue import TokenUsage
from axpo.protocols import ChatReply, ChatRequest
from axpo.types import Content, ImageRef, JsonValue, Message, ToolCall, ToolSpec

THINK_TAGS = ("<think>", "</think>")
CALL_TAGS = ("<tool_call>", "</tool_call>")
MALFORMED = "malformed_call"
"""Name of a call that has none."""
MAX_SEED = 2**31
"""Some services read no larger numbers."""
MAX_MALFORMED_CHARS = 2000
"""What is sent back of a call that nobody could read."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_PICTURE = "The result is a picture; it follows."

Dialect = Literal["vllm", "openai"]
Fields = dict[str, JsonValue]
ImageUrl = Callable[[ImageRef], str]


class ReadCall(Protocol):
    """Reads what a policy wrote as a call; see `axpo.rollout.calls.read_call`."""

    def __call__(self, number: int, raw: str, *, is_closed: bool) -> ToolCall:
        """The call, or one with a `parse_error`."""
        ...


class WireError(ValueError):
    """The service answered something that is no chat completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOptions:
    """The parts of the protocol in which services differ."""

    dialect: Dialect = "vllm"
    has_open_thinking: bool = False
    """The chat template opens the thinking, and the server has no reasoning parser that takes it out of the content:
    content without `</think>` is unfinished thinking."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


# -- what we send -----------------------------------------------------------------------------------------------------


def request_fields(request: ChatRequest, *, model: str, options: WireOptions, image_url: ImageUrl) -> Fields:
    """The body of a request as JSON values. What a parameter's default says anyway is left out."""
    sampling = request.sampling
    fields: Fields = {
        "model": model,
        "messages": message_fields(request.messages, options=options, image_url=image_url),
        options.max_tokens_name: request.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": request.seed % MAX_SEED,
    }
    if request.tools:
        fields["tools"] = [_tool_fields(tool) for tool in request.tools]
    if sampling.temperature > 0:  # 1 too: a service may have another default, from the model's generation config
        fields["top_p"] = sampling.top_p
    if sampling.top_k > 0:
        fields["top_k"] = sampling.top_k
    if sampling.presence_penalty != 0:
        fields["presence_penalty"] = sampling.presence_penalty
    return fields


def message_fields(messages: Sequence[Message], *, options: WireOptions, image_url: ImageUrl) -> list[Fields]:
    """The conversation as the service reads it."""
    fields: list[Fields] = []
    pictures: list[Fields] = []
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    for message in messages:
        if pictures and message.role != "tool":  # all results of a turn stand together
            fields.append({"role": "user", "content": pictures})
            pictures = []
        if message.role == "assistant":
            fields.append(_assistant_fields(message, options, image_url))
        elif message.role != "tool":
            fields.append({"role": message.role, "content": _content(message, image_url)})
        else:
            call_id = message.tool_call_id or ""
            is_whole = options.dialect == "vllm" or not message.images
            content = _content(message, image_url) if is_whole else message.text or _PICTURE
            fields.append({"role": "tool", "tool_call_id": wire_id(call_id), "content": content})
            if not is_whole:
                note = f"Pictures in the result of {names.get(call_id) or 'the call'} ({wire_id(call_id)}):"
                pictures.append({"type": "text", "text": note})
                pictures.extend(_image_block(image, image_url) for image in message.images)
    if pictures:
        fields.append({"role": "user", "content": pictures})
    return fields


def wire_id(call_id: str) -> str:
    """The id of a call on the wire."""
    return hashlib.blake2b(call_id.encode(errors="replace"), digest_size=8).hexdigest()[:9]


def encode_fields(fields: Fields) -> bytes:
    """JSON in UTF-8. Halves of surrogate pairs, which are no characters, become question marks."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(errors="replace")


def _content(message: Message, image_url: ImageUrl) -> JsonValue:
    if not message.images:
        return message.text
    return [
        {"type": "text", "text": block.text} if block.image is None else _image_block(block.image, image_url)
        for block in message.content
        if block.text != ""  # an empty part is refused by some
    ]


def _image_block(image: ImageRef, image_url: ImageUrl) -> Fields:
    return {"type": "image_url", "image_url": {"url": image_url(image)}}


def _assistant_fields(message: Message, options: WireOptions, image_url: ImageUrl) -> Fields:
    fields: Fields = {"role": "assistant", "content": _content(message, image_url)}
    calls = message.tool_calls
    if options.dialect == "vllm":
        if message.reasoning is not None:
            fields["reasoning_content"] = message.reasoning
        if any(call.parse_error is not None for call in calls):
            fields["content"] = "\n".join(filter(None, [message.text, *map(_call_text, calls)]))
            calls = ()
    if calls:
        fields["tool_calls"] = [_call_fields(call) for call in calls]
    return fields


def _call_text(call: ToolCall) -> str:
    opening, closing = CALL_TAGS
    return f"{opening}{call.raw}{closing}"


def _call_fields(call: ToolCall) -> Fields:
    is_malformed = call.parse_error is not None
    arguments = {"malformed": call.raw[:MAX_MALFORMED_CHARS]} if is_malformed else call.arguments
    name = _NOT_IN_NAMES.sub("_", call.name[:64]) or MALFORMED
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": wire_id(call.id), "type": "function", "function": function}


def _tool_fields(tool: ToolSpec) -> Fields:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


# -- what comes back --------------------------------------------------------------------------------------------------


def read_reply(body: JsonValue, *, read_call: ReadCall, options: WireOptions) -> ChatReply:
    """The first choice of a chat completion. Raises `WireError`.

    Calls are taken from `tool_calls`, else from between the tags in the visible text. A call in thinking does not
    count, whether or not the server listed it.
    """
    choice = _first_choice(body)
    message = _object(choice.get("message"), "a choice without a message")
    text = _read_text(message.get("content"))
    reasoning = _read_reasoning(message)
    is_unfinished = False
    if not reasoning:
        is_unfinished = options.has_open_thinking and THINK_TAGS[1] not in text
        split, text = split_thinking(text, has_open_thinking=options.has_open_thinking)
        reasoning = reasoning if split is None else split
    calls = () if is_unfinished else _read_calls(message.get("tool_calls"), read_call)
    if not calls:
        text, calls = split_calls(text, read_call)
    text = text.strip()
    return ChatReply(
        message=Message(
            role="assistant",
            content=(Content(text=text),) if text else (),
            reasoning=reasoning.strip() if reasoning is not None else None,
            tool_calls=calls,
        ),
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        usage=_read_usage(cast("Fields", body).get("usage")),
    )


def closes_open_thinking(body: JsonValue) -> bool:
    """True for a reply whose content closes thinking that it did not open: see `WireOptions.has_open_thinking`."""
    message = _object(_first_choice(body).get("message"), "a choice without a message")
    thinking, tag, _ = _read_text(message.get("content")).partition(THINK_TAGS[1])
    return bool(tag) and THINK_TAGS[0] not in thinking and _read_reasoning(message) is None


def split_thinking(text: str, *, has_open_thinking: bool) -> tuple[str | None, str]:
    """Thinking and visible text. Thinking ends at the first closing tag; without one it has not ended."""
    opening, closing = THINK_TAGS
    thinking, tag, visible = text.partition(closing)
    if tag:
        return thinking.lstrip().removeprefix(opening), visible
    if has_open_thinking:
        return text.lstrip().removeprefix(opening), ""
    visible, tag, thinking = text.partition(opening)
    return (thinking, visible) if tag else (None, text)


def split_calls(text: str, read_call: ReadCall) -> tuple[str, tuple[ToolCall, ...]]:
    """Visible text around calls, and the calls. A second opening tag ends a call that was never closed."""
    opening, closing = CALL_TAGS
    around, *blocks = text.split(opening)
    calls: list[ToolCall] = []
    texts = [around]
    for number, block in enumerate(blocks):
        raw, tag, after = block.partition(closing)
        calls.append(read_call(number, raw, is_closed=bool(tag)))
        texts.append(after)
    return "".join(texts), tuple(calls)


def _first_choice(body: JsonValue) -> Fields:
    fields = _object(body, "no JSON object")
    choices = fields.get("choices")
    if not isinstance(choices, list) or not choices:
        raise WireError("an answer without choices")
    choice = _object(cast("list[JsonValue]", choices)[0], "a choice that is no object")
    if choice.get("finish_reason") == "error" or "error" in choice:
        raise WireError("a choice that ended in an error of the service")
    return choice


def _read_text(content: JsonValue) -> str:
    """The content: a text, a list of parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise WireError("a content that is neither a text nor a list of parts")
    parts = [cast("Fields", part) for part in cast("list[JsonValue]", content) if isinstance(part, dict)]
    return "".join(text for part in parts if isinstance(text := part.get("text"), str))


def _read_reasoning(message: Fields) -> str | None:
    """The thinking, where the server puts it into a field of its own; empty when the model did not think."""
    found = [value for name in ("reasoning_content", "reasoning") if isinstance(value := message.get(name), str)]
    return next(filter(None, found), "" if found else None)


def _read_calls(listed: JsonValue, read_call: ReadCall) -> tuple[ToolCall, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise WireError("tool_calls that are no list")
    calls: list[ToolCall] = []
    for number, entry in enumerate(cast("list[JsonValue]", listed)):
        call = _object(entry, "a tool call that is no object")
        function = _object(call.get("function"), "a tool call without a function")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps({} if arguments is None else arguments)
        # read as the text between a policy's tags would be: the same bounds, the same words for the model
        raw = f'{{"name": {json.dumps(name)}, "arguments": {arguments.strip() or "{}"}}}'
        read = read_call(number, raw, is_closed=True)
        calls.append(replace(read, name=name) if read.parse_error is not None and isinstance(name, str) else read)
    return tuple(calls)


def _read_usage(usage: JsonValue) -> TokenUsage | None:
    if not isinstance(usage, Mapping):
        return None
    counts = [cast("Mapping[str, Any]", usage).get(name) for name in ("prompt_tokens", "completion_tokens")]
    numbers = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    return TokenUsage(prompt_tokens=numbers[0], completion_tokens=numbers[1]) if len(numbers) == 2 else None


def _object(value: JsonValue, otherwise: str) -> Fields:
    if not isinstance(value, dict):
        raise WireError(otherwise)
    return cast("Fields", value)
