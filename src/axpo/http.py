"""Bounded HTTP: every request ends in time, every answer has a size, nothing that is said of either holds a secret."""

from __future__ import annotations

import asyncio
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from axpo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from httpx2 import AsyncClient

MAX_REDIRECTS = 3
MAX_RETRY_AFTER_S = 60.0
"""However long a service asks to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, headers (lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the service asks to wait, within bounds; a date means the bound's tenth. None: it does not."""
        value = self.headers.get("retry-after")
        if value is None:
            return None
        try:
            return min(max(float(value), 0.0), MAX_RETRY_AFTER_S)
        except ValueError:
            return MAX_RETRY_AFTER_S / 10


class HttpFailure(Exception):
    """An exchange without an answer. `can_retry`: False when a second one would end in the same way."""

    def __init__(self, message: str, *, can_retry: bool = True) -> None:
        super().__init__(message)
        self.can_retry = can_retry


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
        """One exchange. Raises `HttpFailure` when it fails, takes too long or is too large."""
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
            raise HttpFailure(f"{place} did not answer in {self.timeout_s:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, zlib.error, OSError, ValueError) as error:
            message = f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise HttpFailure(message, can_retry=isinstance(error, (httpx2.HTTPError, OSError))) from error

    async def _read_body(self, chunks: Any, encoding: str) -> bytes:
        if encoding.lower() not in ("", "identity", "gzip", "deflate"):
            raise ValueError(f"unasked content encoding {encoding[:20]!r}")
        unpack = zlib.decompressobj(wbits=47) if encoding.lower() in ("gzip", "deflate") else None
        body, num_packed = bytearray(), 0
        async for chunk in chunks:
            # one byte more than allowed tells a body that fits from one that is cut
            room = self._max_bytes + 1 - len(body)
            body += unpack.decompress(chunk, room) if unpack else chunk[:room]
            num_packed += len(chunk)  # empty compressed blocks can follow each other without end
            if max(len(body), num_packed) > self._max_bytes:
                raise ValueError(f"the answer is larger than {self._max_bytes} bytes")
            if unpack is not None and unpack.eof:
                break  # whatever follows would be kept in memory as unused
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


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


def read_key(owner: str, variable: str) -> str:
    """A service's key from the environment. Raises `ConfigError` when it is missing or cannot be a key."""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{owner}: the environment variable {variable} holds no key. Set it, or name another with api_key_env."
        )
    return key


def host_of(url: str) -> str:
    """Scheme and host of an address: what a message may say of it."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "the address"
