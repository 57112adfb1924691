"""What the refusals of chat services mean: whose fault they are, and whether asking again helps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from axpo.errors import ConfigError, EngineFault, QuotaError
from axpo.http import Answer

MAX_SAID_CHARS = 300
"""Of the service's own words."""
_MAX_READ_BYTES = 65536
_HEAD_BYTES = 200
"""Where an answer that is an error says so."""
_CONTEXT = (
    "context length",
    "context_length",
    "context window",
    "context size",
    "context_size",
    "max_model_len",
    "maximum model length",
    "too many tokens",
    "prompt is too long",
    "input is too long",
    "maximum number of tokens",
)
_UNSUPPORTED = (
    "unsupported",
    "not support",
    "unrecognized",
    "unknown",
    "unexpected",
    "not permitted",
    "extra inputs",
    "not allowed",
    "does not exist",
    "no longer",
)
_NO_MODEL = ("not found", "not exist", "no such model", "unknown model", "invalid model", "not available")
_TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser")
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance", "credit balance")
_TRANSIENT = (408, 409, 425, 429)


class RetryLater(Exception):
    """The service cannot answer now. `wait_s`: how long it asks to wait, if it says."""

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class OtherTokensName(Exception):
    """The service wants the room as `max_completion_tokens`, as OpenAI's newer models do."""


class RequestRefused(EngineFault):
    """The service does not take a request of this form; another dialect may suit it."""


class ContextFull(Exception):
    """The conversation, with the room asked for, is longer than the model takes."""


def refuse(answer: Answer, *, service: str, model: str, sent: Iterable[str], key: str | None, key_hint: str) -> None:
    """Raise what an answer other than a completion deserves; return for a completion.

    `sent`: names of the parameters that a service may not know. `key` never appears in a message.

    Raises `ConfigError`, `QuotaError`, `EngineFault` (`RequestRefused` for HTTP 400 and 422), `RetryLater`,
    `ContextFull` or `OtherTokensName`.
    """
    if answer.status == 200 and b'"error"' not in answer.body[:_HEAD_BYTES]:
        return
    status, said, code = _read_error(answer, key)
    if status == 200:
        return
    words = f"{code} {said}".lower()
    message = f"{service} answered HTTP {status}: {said or 'nothing'}"
    sentence = message if message.endswith((".", "!", "?")) else f"{message}."
    if status == 402 or (status in (400, 403, 429) and _has(words, _USED_UP)):
        raise QuotaError(f"{sentence} Its plan is used up: raise the limit there, then run the same command again.")
    if status in (401, 403):
        raise ConfigError(f"{sentence} {key_hint}")
    if status in _TRANSIENT or status >= 500:
        raise RetryLater(message, wait_s=answer.retry_after_s)
    if status in (400, 422) and _has(words, _TOOL_FLAGS):
        raise ConfigError(
            f"{sentence} Start the server with these flags; for Qwen3-VL on vLLM they are --enable-auto-tool-choice "
            "--tool-call-parser hermes."
        )
    if status in (400, 422) and "max_completion_tokens" in words and _has(words, _UNSUPPORTED):
        raise OtherTokensName(message)
    if _has(words, _CONTEXT) or ("longer than" in words and "token" in words):
        raise ContextFull(sentence)
    if status == 404 or (status in (400, 422) and "model" in words and _has(words, _NO_MODEL)):
        raise ConfigError(f"{sentence} Check the address {service} and the model's name {model!r}.")
    if status in (400, 422) and (name := _unsupported(answer, words, sent)) is not None:
        raise ConfigError(f"{sentence} Leave the parameter out: omit = [{name!r}].")
    if status == 413:
        message = f"{sentence} The request is too large: set max_image_px."
    raise RequestRefused(message) if status in (400, 422) else EngineFault(message)


def bounded(text: str, key: str | None) -> str:
    """What a service says, as one printable line without the key."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return (line.replace(key, "***") if key else line)[:MAX_SAID_CHARS]


def _read_error(answer: Answer, key: str | None) -> tuple[int, str, str]:
    """Status, words and code. Some services answer HTTP 200 and put the error inside."""
    body = _json(answer.body)
    if not isinstance(body, Mapping):
        return answer.status, bounded(answer.body[:_MAX_READ_BYTES].decode(errors="replace"), key), ""
    fields = cast("Mapping[str, Any]", body)
    error = fields.get("error")
    if answer.status == 200 and (not error or fields.get("choices")):
        return 200, "", ""
    inner = cast("Mapping[str, Any]", error) if isinstance(error, Mapping) else fields
    said = inner.get("message") or inner.get("detail") or (error if isinstance(error, str) else json.dumps(inner))
    said = said if isinstance(said, str) else json.dumps(said)
    code = inner.get("code")
    status = answer.status
    if status == 200:
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return status, bounded(said[:_MAX_READ_BYTES], key), f"{code} {inner.get('type')} {inner.get('param')}"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body[:_MAX_READ_BYTES])
    except (ValueError, RecursionError):
        return None


def _unsupported(answer: Answer, words: str, sent: Iterable[str]) -> str | None:
    """Which parameter the service does not know."""
    if not _has(words, _UNSUPPORTED):
        return None
    return next((name for name in sent if name in words), None)


def _has(words: str, parts: Iterable[str]) -> bool:
    return any(part in words for part in parts)
