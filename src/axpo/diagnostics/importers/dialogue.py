"""Tool calls of a rollout, read from plain text with tags or from messages (OpenAI's format or ShareGPT's).

Text is read by the rules of `axpo.rollout.rendering`: a `<tool_call>` inside thinking is no call, a second opening tag
ends a call that was never closed, an unclosed call is a malformed one. A `<tool_response>` counts only after a turn
with a call; a call without one never ran. Mini-o3 writes its zoom as `<grounding>{"bbox_2d": ...}</grounding>` and
marks no results: whatever follows such a call is its result. Time is linear in the text, whatever a model wrote.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from axpo.diagnostics.importers.failures import failure_of_type, guess_failure
from axpo.diagnostics.importers.seen import SeenCall
from axpo.types import FailureKind

_TAGS = ("think", "tool_call", "tool_response", "grounding")
_TAG = re.compile(rf"<(/?(?:{'|'.join(_TAGS)}))>")
_NAMES = {name: name for tag in _TAGS for name in (tag, f"/{tag}")}
"""One string per tag, however often it stands in a text."""
_FUNCTION = re.compile(r"\s*<function=([^\s>]{1,64})>")
_GLUE_CHARS = 64
"""Between a result and the next turn or result stand at most so many characters of chat template."""
_EMPTY_TURNS = ("", "assistant", "<think>", "assistant\n<think>")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Values of ShareGPT's `from` that are no roles of OpenAI's format."""
MAX_CALLS = 1000
"""Of one rollout; further ones are not looked at."""


@dataclass(slots=True)
class Heard:
    """What was found in a dialogue."""

    calls: list[SeenCall] = field(default_factory=list[SeenCall])
    num_in_thinking: int = 0
    num_turns: int = 0
    num_chars: int = 0
    """Of what the assistant wrote and, in plain text, of the results between."""


# -- plain text -------------------------------------------------------------------------------------------------------


def read_text(text: str, *, is_thinking: bool | None = None) -> Heard:
    """A response in one string: turns of the assistant with the tool results between them.

    `is_thinking`: the prompt ended inside an open thinking block; None: judge by the first tag.

    >>> text = '<think>zoom?</think><tool_call>{"name": "zoom", "arguments": {}}</tool_call>'
    >>> [(call.tool, call.is_answered) for call in read_text(text).calls]
    [('zoom', False)]
    >>> read_text("<think>I could <tool_call> but will not</think>4").num_in_thinking
    1
    """
    if "<tool_call>" not in text and "<grounding>" not in text:
        return Heard(num_turns=1 if text else 0, num_chars=len(text))
    return _TextReader(text, is_thinking).read()


class _TextReader:
    """One pass over the tags of a text."""

    def __init__(self, text: str, is_thinking: bool | None) -> None:
        self._text = text
        self._tags = [(match.start(), match.end(), _NAMES[match[1]]) for match in _TAG.finditer(text)]
        self._heard = Heard(num_turns=1, num_chars=len(text))
        self._turn: list[tuple[str | None, str, bool]] = []  # tool, arguments, is_malformed of this turn's calls
        self._results: list[str] = []
        self._thinks = self._starts_thinking(0, 0) if is_thinking is None else is_thinking

    def read(self) -> Heard:
        opened: int | None = None  # where the body of an open call starts
        position = 0
        while position < len(self._tags):
            start, stop, tag = self._tags[position]
            position += 1
            if self._thinks:
                self._heard.num_in_thinking += tag in ("tool_call", "grounding")
                self._thinks = tag != "/think"
            elif tag == "grounding":
                position = self._read_grounding(stop, position)
            elif tag == "tool_call":
                if opened is not None:
                    self._add_call(self._text[opened:start], is_closed=False)
                opened = stop
            elif tag == "/tool_call" and opened is not None:
                self._add_call(self._text[opened:start], is_closed=True)
                opened = None
            elif tag == "tool_response" and (self._turn or opened is not None):
                if opened is not None:
                    self._add_call(self._text[opened:start], is_closed=False)
                    opened = None
                position = self._read_results(position - 1)
                self._end_turn(position)
        if opened is not None:
            self._add_call(self._text[opened:], is_closed=False)
        self._flush()
        return self._heard

    def _starts_thinking(self, begin: int, position: int) -> bool:
        """The turn that begins at `begin`, with the tags from `position`, opens a block or closes an open one."""
        for index in range(position, len(self._tags)):
            start, _, tag = self._tags[index]
            if tag == "think":
                return start - begin <= _GLUE_CHARS
            if tag in ("/think", "tool_response"):
                return tag == "/think"
        return False

    def _add_call(self, body: str, *, is_closed: bool) -> None:
        tool, arguments = read_call(body) if is_closed else (None, body.strip())
        self._turn.append((tool, arguments, tool is None))

    def _read_grounding(self, start: int, position: int) -> int:
        """One call of Mini-o3 whose body begins at `start`, with its result; returns the position after both."""
        is_closed = position < len(self._tags) and self._tags[position][2] == "/grounding"
        stop = self._tags[position][0] if position < len(self._tags) else len(self._text)
        body = self._text[start:stop].strip()
        is_call = is_closed and body.startswith("{") and body.endswith("}")
        self._turn.append(("grounding" if is_call else None, body, not is_call))
        if not is_closed:
            return position
        after = self._tags[position][1]
        position += 1
        end = self._tags[position][0] if position < len(self._tags) else len(self._text)
        if self._text[after:end].strip():
            self._results.append(self._text[after:end].strip().removeprefix("user").lstrip())
            self._flush()
            self._heard.num_turns += 1
            self._thinks = self._starts_thinking(end, position)
        return position

    def _read_results(self, position: int) -> int:
        """Consecutive result blocks from the tag at `position`; returns the position after them."""
        while position < len(self._tags):
            start, stop, tag = self._tags[position]
            is_next = not self._results or start - self._tags[position - 1][1] <= _GLUE_CHARS
            if tag != "tool_response" or not is_next or len(self._results) >= len(self._turn):
                break
            position += 1
            while position < len(self._tags) and self._tags[position][2] != "/tool_response":
                position += 1
            end = self._tags[position][0] if position < len(self._tags) else len(self._text)
            self._results.append(self._text[stop:end])
            position += 1
        return min(position, len(self._tags))

    def _end_turn(self, position: int) -> None:
        """A new turn begins after the results, unless nothing follows."""
        self._flush()
        begin = self._tags[position - 1][1]
        written = self._text[begin : begin + 2 * _GLUE_CHARS].replace("<|im_end|>", "").replace("<|im_start|>", "")
        if written.strip() not in _EMPTY_TURNS:
            self._heard.num_turns += 1
        self._thinks = self._starts_thinking(begin, position)

    def _flush(self) -> None:
        """Pair the calls of the turn with their results."""
        for number, (tool, arguments, is_malformed) in enumerate(self._turn):
            result = self._results[number] if number < len(self._results) else None
            if len(self._heard.calls) < MAX_CALLS:
                self._heard.calls.append(_pair(tool, arguments, is_malformed=is_malformed, result=result))
        self._turn, self._results = [], []


def read_call(body: str) -> tuple[str | None, str]:
    """Tool and arguments of what stands between call tags; no tool when it is no call.

    Read as JSON with `name` and `arguments`, or as `<function=NAME>`.

    >>> read_call('{"name": "search", "arguments": {"query": "axpo"}}')
    ('search', '{"query": "axpo"}')
    >>> read_call("search for axpo")
    (None, 'search for axpo')
    """
    match = _FUNCTION.match(body)
    if match is not None:
        return match[1], body[match.end() :].strip()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None, body.strip()
    if not isinstance(value, dict):
        return None, body.strip()
    call = cast("dict[str, Any]", value)
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None, body.strip()
    return name, json.dumps(arguments, sort_keys=True)


def _pair(tool: str | None, arguments: str, *, is_malformed: bool, result: str | None) -> SeenCall:
    if result is None:
        return SeenCall(tool=tool, arguments=arguments, is_answered=False)
    failure = FailureKind.MALFORMED_CALL if is_malformed else guess_failure(result, tool)
    return SeenCall(tool=_known(tool, failure), arguments=arguments, is_answered=True, failure=failure)


def _known(tool: str | None, failure: FailureKind | None) -> str | None:
    """No name for a tool that the model made up."""
    return None if failure in (FailureKind.UNKNOWN_TOOL, FailureKind.MALFORMED_CALL) else tool


# -- messages ---------------------------------------------------------------------------------------------------------


def read_messages(messages: Sequence[Any]) -> Heard:
    """Assistant messages with their calls, `tool` messages with their results.

    Calls are taken from `tool_calls`; where an assistant message has none, from the tags in its text. Results are
    matched by `tool_call_id`, else by tool, else in order; a user message that starts with `<tool_response>` holds
    results too.
    """
    heard = Heard()
    pending: list[_Pending] = []
    for fields in map(as_message, messages):
        role = fields.get("role")
        if role == "assistant":
            _close(heard, pending)
            pending = _read_assistant(heard, fields)
        elif role in ("tool", "function"):
            _answer(pending, fields)
        elif role == "user" and pending:
            _answer_from_text(pending, content_text(fields.get("content")))
    _close(heard, pending)
    return heard


def split_prompt(messages: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Messages before the first assistant message, and the rest."""
    for position, message in enumerate(messages):
        if as_message(message).get("role") == "assistant":
            return messages[:position], messages[position:]
    return messages, ()


def as_message(value: Any) -> Mapping[str, Any]:
    """A message with `role` and `content`; empty for what is no message.

    ShareGPT's messages have `from` and `value` instead, and a call is a message of its own.

    >>> as_message({"from": "gpt", "value": "4"})
    {'role': 'assistant', 'content': '4'}
    """
    if not isinstance(value, Mapping):
        return {}
    message = cast("Mapping[str, Any]", value)
    if "role" in message or "from" not in message:
        return message
    sender, text = str(message["from"]).lower(), message.get("value")
    role = _SHAREGPT_ROLES.get(sender, sender)
    if sender == "function_call":
        return {"role": role, "content": "", "tool_calls": _listed(text)}
    return {"role": role, "content": text}


def _listed(value: Any) -> list[Any]:
    """The calls of a `function_call`: a JSON list of them, or one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def prompt_key(messages: Sequence[Any]) -> str:
    """A text that is equal for equal prompts, pictures included."""
    return "\x00".join(_prompt_parts(messages))


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return ""
    parts = (cast("Mapping[str, Any]", part) for part in cast("list[Any]", content) if isinstance(part, Mapping))
    return "".join(text for part in parts if isinstance(text := part.get("text"), str))


@dataclass(slots=True)
class _Pending:
    """A call that waits for its result."""

    tool: str | None
    arguments: str
    id: Any = None
    is_malformed: bool = False
    result: SeenCall | None = None

    def answer(self, text: str, error: Any = None) -> None:
        call = _pair(self.tool, self.arguments, is_malformed=self.is_malformed, result=text)
        if isinstance(error, Mapping):
            told = cast("Mapping[str, Any]", error)
            kind = failure_of_type(str(told.get("type", "")), str(told.get("message", "")), self.tool)
            kind = FailureKind.MALFORMED_CALL if self.is_malformed else kind
            call = SeenCall(tool=_known(self.tool, kind), arguments=self.arguments, is_answered=True, failure=kind)
        self.result = call


def _read_assistant(heard: Heard, message: Mapping[str, Any]) -> list[_Pending]:
    content = message.get("content")
    text = content_text(content)
    thinking = _thinking(message, content)
    heard.num_turns += 1
    heard.num_chars += len(text) + len(thinking)
    heard.num_in_thinking += thinking.count("<tool_call>")
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)) or not calls:
        inner = read_text(text)
        heard.num_in_thinking += inner.num_in_thinking
        heard.calls.extend(call for call in inner.calls if call.is_answered)
        return [_from_tags(call) for call in inner.calls if not call.is_answered]
    pending = [_read_tool_call(call) for call in cast("Sequence[Any]", calls)[:MAX_CALLS]]
    heard.num_chars += sum(len(call.arguments) for call in pending)
    heard.num_in_thinking += read_text(text).num_in_thinking
    return pending


def _from_tags(call: SeenCall) -> _Pending:
    return _Pending(call.tool, call.arguments, is_malformed=call.tool is None)


def _read_tool_call(value: Any) -> _Pending:
    """OpenAI's nested form, the flat one of others (`name` or inspect's `function`), or either as a JSON string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _Pending(None, value, is_malformed=True)
    if not isinstance(value, Mapping):
        return _Pending(None, "", is_malformed=True)
    call = cast("Mapping[str, Any]", value)
    function = call.get("function")
    inner = cast("Mapping[str, Any]", function) if isinstance(function, Mapping) else call
    name = function if isinstance(function, str) else inner.get("name")
    arguments = inner.get("arguments")
    text = arguments if isinstance(arguments, str) else _dump(arguments)
    is_broken = bool(call.get("parse_error")) or not _is_object(arguments)
    if not isinstance(name, str) or not name:
        return _Pending(None, text, id=call.get("id"), is_malformed=True)
    return _Pending(name, text, id=call.get("id"), is_malformed=is_broken)


def _is_object(arguments: Any) -> bool:
    if not isinstance(arguments, str):
        return arguments is None or isinstance(arguments, Mapping)
    try:
        return not arguments.strip() or isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        return ""


def _answer(pending: list[_Pending], message: Mapping[str, Any]) -> None:
    waiting = [call for call in pending if call.result is None]
    call_id, name = message.get("tool_call_id"), message.get("name")
    of_id = [call for call in waiting if call_id is not None and call.id == call_id]
    of_name = [call for call in waiting if name is not None and call.tool == name]
    answered = of_id or of_name or waiting
    if answered:
        answered[0].answer(content_text(message.get("content")), message.get("error"))


def _answer_from_text(pending: list[_Pending], text: str) -> None:
    waiting = iter([call for call in pending if call.result is None])
    if not text.lstrip().startswith("<tool_response>"):
        return
    for call, part in zip(waiting, text.split("<tool_response>")[1:], strict=False):
        call.answer(part.partition("</tool_response>")[0])


def _close(heard: Heard, pending: list[_Pending]) -> None:
    for call in pending:
        unanswered = SeenCall(tool=call.tool, arguments=call.arguments, is_answered=False)
        if len(heard.calls) < MAX_CALLS:
            heard.calls.append(call.result or unanswered)
    pending.clear()


def _thinking(message: Mapping[str, Any], content: Any) -> str:
    """Thinking that is kept apart from the text, in any of the usual places."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        value = message.get(name)
        if isinstance(value, str):
            return value
    if not isinstance(content, (list, tuple)):
        return ""
    parts = (cast("Mapping[str, Any]", part) for part in cast("list[Any]", content) if isinstance(part, Mapping))
    return "".join(text for part in parts if isinstance(text := part.get("reasoning"), str))


def _prompt_parts(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        fields = as_message(message)
        if not fields:
            yield str(message)[:10_000]
            continue
        yield str(fields.get("role"))
        content = fields.get("content")
        yield content if isinstance(content, str) else _dump(content)
