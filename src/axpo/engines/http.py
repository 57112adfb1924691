"""Any OpenAI-compatible endpoint as a chat model: vLLM, SGLang, llama.cpp, hosted services."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from axpo.engines.connections import Connections
from axpo.engines.pictures import DataUrls
from axpo.engines.refusals import ContextFull, OtherTokensName, RetryLater, bounded, refuse
from axpo.engines.wire import (
    Fields,
    ReadCall,
    WireError,
    WireOptions,
    closes_open_thinking,
    encode_fields,
    read_reply,
    request_fields,
)
from axpo.errors import ConfigError, EngineFault
from axpo.http import HttpFailure, check_url, read_key
from axpo.protocols import ChatReply, ChatRequest, ImageStore
from axpo.types import ImageRef, JsonValue, Message

MAX_ANSWER_BYTES = 32 * 2**20
MAX_BACKOFF_S = 60.0
OPTIONAL = ("seed", "top_k", "top_p", "presence_penalty", "temperature")
"""Parameters that `omit` may name."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class HttpStats:
    """What was sent."""

    num_requests: int = 0
    num_retries: int = 0
    """Of these."""
    num_open_thinking: int = 0
    """Replies whose content closes thinking that it did not open: the server has no reasoning parser."""


class HttpChatModel:
    """An `axpo.protocols.ChatModel` behind `url`/chat/completions. One event loop at a time uses it.

    A request that the service cannot answer now (HTTP 408, 409, 425, 429, 5xx; a lost connection; `timeout_s`) is sent
    up to `max_retries` times again, after `backoff_s` that double each time or as long as the service asks, a minute at
    most. When the conversation and the room asked for are more than the model takes, it is asked once more without a
    number of tokens; if that is too long too, the reply is empty and ends by "length", which is the dialogue's token
    limit. A service that wants `max_completion_tokens` in the place of `max_tokens` says so once.

    `api_key_env` names the environment variable that holds the key. `extra_body` is added to every request and replaces
    what is there. `omit`: parameters that the service refuses. `max_image_px`: larger pictures are scaled down before
    they are sent, see `effective_px`. `read_call` reads what the model wrote as a call, see
    `axpo.rollout.calls.read_call`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        store: ImageStore,
        read_call: ReadCall,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        backoff_s: float = 1.0,
        max_concurrent: int = 64,
        max_image_px: int | None = None,
        options: WireOptions | None = None,
        extra_body: Mapping[str, JsonValue] | None = None,
        omit: Collection[str] = (),
        max_cached_bytes: int = 2**28,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises `ConfigError` for an address, a key, a number or a name that cannot be."""
        self._url = check_url("endpoint: url", url)
        if "?" in self._url or "#" in self._url:
            raise ConfigError(f"url: expected an address up to /v1, got one with {'?' if '?' in url else '#'} in it.")
        self._model = model
        self._key = read_key(f"endpoint {self._url}", api_key_env) if api_key_env is not None else None
        self._key_hint = (
            f"Check the key in the environment variable {api_key_env}."
            if api_key_env is not None
            else "Name the environment variable that holds its key: api_key_env."
        )
        _check_numbers(
            timeout_s=timeout_s, max_concurrent=max_concurrent, max_image_px=1 if max_image_px is None else max_image_px
        )
        if strays := [name for name in omit if name not in OPTIONAL]:
            raise ConfigError(f"omit: {strays[0]!r} cannot be left out; what can be is {', '.join(OPTIONAL)}.")
        self._read_call = read_call
        self._max_retries = max_retries
        self._backoff_s = backoff_s
        self._options = options or WireOptions()
        self._extra_body = dict(extra_body or {})
        self._omit = frozenset(omit)
        self._sleep = sleep
        self._urls = DataUrls(store, max_px=max_image_px, max_bytes=max_cached_bytes)
        self._connections = Connections(self._url, timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES)
        self._gate = asyncio.Semaphore(max_concurrent)
        self._has_told_context = False
        self.stats = HttpStats()

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The next assistant message.

        Raises `EngineFault` when the service failed at every try or answered what cannot be read, `QuotaError` when its
        plan is used up, `ConfigError` for a key, a model or a parameter that it does not take.
        """
        async with self._gate:
            fields = await self._fields(request)
            try:
                return await self._ask(fields)
            except ContextFull:
                fields.pop(self._options.max_tokens_name, None)
            try:
                return await self._ask(fields)
            except ContextFull as full:
                level = logging.INFO if self._has_told_context else logging.WARNING
                self._has_told_context = True
                _log.log(level, "%s The dialogue ends there, as at its token limit.", full)
                return ChatReply(message=Message(role="assistant"), finish_reason="length")

    def effective_px(self, images: Iterable[ImageRef]) -> int:
        """Pixels of these pictures as they are sent; the service may scale them down further."""
        return sum(self._urls.sent_px(image) for image in images)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _fields(self, request: ChatRequest) -> Fields:
        images = {image.sha256: image for message in request.messages for image in message.images}
        urls = {sha256: await self._urls.get(image) for sha256, image in images.items()}
        fields = request_fields(
            request, model=self._model, options=self._options, image_url=lambda image: urls[image.sha256]
        )
        return {name: value for name, value in fields.items() if name not in self._omit} | self._extra_body

    async def _ask(self, fields: Fields) -> ChatReply:
        """Ask with the name that the service has for the room. Raises as `reply`, and `ContextFull`."""
        try:
            return await self._ask_until_answered(fields)
        except OtherTokensName as other:
            if "max_tokens" not in fields:
                raise EngineFault(str(other)) from other
        self._options = replace(self._options, max_tokens_name="max_completion_tokens")
        fields["max_completion_tokens"] = fields.pop("max_tokens")
        try:
            return await self._ask_until_answered(fields)
        except OtherTokensName as other:
            raise EngineFault(str(other)) from other

    async def _ask_until_answered(self, fields: Fields) -> ChatReply:
        body = encode_fields(fields)
        sent = [name for name in OPTIONAL if name in fields]
        for attempt in range(self._max_retries + 1):
            try:
                return await self._send(body, sent)
            except RetryLater as later:
                if attempt == self._max_retries:
                    raise EngineFault(f"{later} ({attempt + 1} tries)") from later
                wait_s = self._wait_s(attempt, later.wait_s)
                _log.info("%s; again in %.1f s", later, wait_s)
                self.stats.num_retries += 1
                await self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        """Half to whole of the doubling pause, so that many who failed together do not come back together."""
        pause_s = min(self._backoff_s * 2**attempt, MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
        return max(pause_s, asked_s or 0.0)

    async def _send(self, body: bytes, sent: Iterable[str]) -> ChatReply:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        self.stats.num_requests += 1
        try:
            answer = await self._connections.post("/chat/completions", body, headers)
        except HttpFailure as failure:
            message = bounded(str(failure), self._key)
            raise (RetryLater(message) if failure.can_retry else EngineFault(message)) from failure
        refuse(answer, service=self._url, model=self._model, sent=sent, key=self._key, key_hint=self._key_hint)
        try:
            body = json.loads(answer.body)
            reply = read_reply(body, read_call=self._read_call, options=self._options)
        except (WireError, ValueError, RecursionError) as error:
            reason = bounded(str(error), self._key) if isinstance(error, WireError) else "something other than JSON"
            raise EngineFault(f"{self._url} answered {reason} ({len(answer.body)} bytes)") from error
        self.stats.num_open_thinking += closes_open_thinking(body)
        return reply


def _check_numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        if number <= 0:
            raise ConfigError(f"{name}: expected a number above 0, got {number}.")
