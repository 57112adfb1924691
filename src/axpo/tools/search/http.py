"""Bounded HTTP: every request ends in time, every answer has a size, every failure somebody to blame."""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from axpo.errors import ConfigError, QuotaError, ToolFault
from axpo.tools.search.results import one_line
from axpo.types import JsonValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from httpx2 import AsyncClient

MAX_REDIRECTS = 3
_MAX_RETRY_AFTER_S = 60.0
_USED_UP = (402, 432, 433)
"""402 by HTTP; 432 and 433 are Tavily's plan and pay-as-you-go limits."""
_TRANSIENT = (408, 425)
"""The server did not wait for the request, or wants it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, headers (lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RequestRefused(Exception):
    """The service answered that it does not take this request: the query's fault, or the configuration's.

    `hint` says where the user has to look in the second case. `is_access`: HTTP 401, which no query deserves.
    """

    def __init__(self, message: str, *, hint: str, is_access: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.is_access = is_access


class TooManyRequests(ToolFault):
    """HTTP 429, with the seconds the service asks to wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoResults(ToolFault):
    """Nothing was found, perhaps because a part of the service is out of order."""


class HttpClient:
    """One connection pool with bounds: `timeout_s` for the whole exchange, `max_bytes` for the body, unpacked.

    It belongs to the event loop of its first request.
    """

    def __init__(self, *, timeout_s: float, max_bytes: int, use_proxies: bool = True) -> None:
        self.timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._use_proxies = use_proxies
        self._client: AsyncClient | None = None

    async def request(self, method: str, url: str, *, follow_redirects: bool = True, **request: Any) -> Answer:
        """One exchange. Raises `ToolFault` when it fails, takes too long or is too large."""
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(
                timeout=self.timeout_s,
                max_redirects=MAX_REDIRECTS,
                trust_env=self._use_proxies,
                headers={"Accept-Encoding": "gzip", "User-Agent": "axpo"},
            )
        place = host_of(url)
        try:
            async with asyncio.timeout(self.timeout_s):
                async with self._client.stream(method, url, follow_redirects=follow_redirects, **request) as response:
                    body = await self._read_body(response.aiter_raw(), response.headers.get("content-encoding", ""))
                    return Answer(status=response.status_code, headers=dict(response.headers), body=body)
        except TimeoutError as error:
            raise ToolFault(f"{place} did not answer in {self.timeout_s:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, zlib.error, OSError, ValueError) as error:
            raise ToolFault(f"{place}: {type(error).__name__}: {one_line(str(error))[:200]}") from error

    async def _read_body(self, chunks: Any, encoding: str) -> bytes:
        if encoding.lower() not in ("", "identity", "gzip", "deflate"):
            raise ValueError(f"unasked content encoding {encoding[:20]!r}")
        unpack = zlib.decompressobj(wbits=47) if encoding.lower() in ("gzip", "deflate") else None
        body = bytearray()
        async for chunk in chunks:
            # one byte more than allowed tells a body that fits from one that is cut
            room = self._max_bytes + 1 - len(body)
            body += unpack.decompress(chunk, room) if unpack else chunk[:room]
            if len(body) > self._max_bytes:
                raise ValueError(f"the answer is larger than {self._max_bytes} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


def read_json(answer: Answer, *, service: str, key_hint: str, secret: str | None = None) -> JsonValue:
    """The JSON body of a good answer; every other answer raises what it deserves.

    `key_hint` says where the user has to look when access is refused. `secret` never appears in a message.
    """
    if answer.status == 200:
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise ToolFault(f"{service} answered something other than JSON ({len(answer.body)} bytes)") from error
    said = one_line(answer.body[:300].decode("utf-8", "replace"))
    if secret:
        said = said.replace(secret, "***")
    message = f"{service} answered HTTP {answer.status}: {said or 'nothing'}"
    if answer.status in _USED_UP:
        raise QuotaError(f"{message}. Its plan is used up: raise the limit there, then go on with --resume.")
    if answer.status == 429:
        raise TooManyRequests(message, retry_after_s=_retry_after_s(answer.headers.get("retry-after", "")))
    if 400 <= answer.status < 500 and answer.status not in _TRANSIENT:
        hints = {401: key_hint, 403: key_hint, 404: "Check the option url."}
        hint = hints.get(answer.status, "Check the options of the search tool.")
        raise RequestRefused(message, hint=hint, is_access=answer.status == 401)
    raise ToolFault(message)


def check_url(option: str, url: str) -> str:
    """The address of an endpoint without a trailing slash. Raises `ConfigError`; a password has no place in it."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address, parts = False, urlsplit("")
    if not is_address:
        raise ConfigError(f"{option}: expected an address as http://127.0.0.1:8080, got {url[:100]!r}.")
    if parts.username or parts.password:
        raise ConfigError(f"{option}: the address holds a password. Put it into a variable and name that: api_key_env.")
    return url.rstrip("/")


def read_key(tool: str, variable: str) -> str:
    """A service's key from the environment. Raises `ConfigError` when it is missing or cannot be a key."""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{tool}: the environment variable {variable} holds no key. Set it, or name another with api_key_env."
        )
    return key


def host_of(url: str) -> str:
    """Scheme and host of an address: what a message may say of it."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "the address"


def _retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header, within bounds; a date, too, means the bound's tenth."""
    try:
        return min(max(float(value), 0.0), _MAX_RETRY_AFTER_S)
    except ValueError:
        return _MAX_RETRY_AFTER_S / 10
