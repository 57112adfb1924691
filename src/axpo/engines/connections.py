"""POST to one endpoint: kept connections, TLS, proxies of the environment, a bound on time and on size.

aiohttp and not the client of the search tools: with hundreds of requests under way the client, not the service, decides
how fast an evaluation runs, and aiohttp's takes a fraction of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from axpo.errors import ConfigError, MissingExtraError
from axpo.http import Answer, HttpFailure, host_of

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CHUNK_BYTES = 2**16
CONNECT_TIMEOUT_S = 10.0
"""Time limit of the connection alone: a host that drops packets is not a slow model."""


async def check_reachable(url: str, *, timeout_s: float = 10.0) -> None:
    """Raise `ConfigError` when nothing listens at `url`, before hundreds of requests find it out one by one.

    Only for this machine: elsewhere a proxy may stand between.
    """
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError) as error:
        raise ConfigError(f"nothing answers at {host_of(url)}. Start the server, or check the address.") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Connections:
    """As many connections as requests are under way at once; the caller bounds that. They belong to one event loop.

    `timeout_s` is for a whole exchange, of which the connection may take `CONNECT_TIMEOUT_S`. `max_bytes` is for the
    body of an answer, unpacked. Redirects are not followed, so that a key goes nowhere else. Requests to this
    machine bypass the proxy.
    """

    def __init__(self, url: str, *, timeout_s: float, max_bytes: int) -> None:
        """`url`: checked by `axpo.http.check_url`. Raises `MissingExtraError` without aiohttp."""
        if importlib.util.find_spec("aiohttp") is None:
            raise MissingExtraError("endpoints need aiohttp: pip install 'axpo[endpoint]'")
        self._url = url
        self._place = host_of(url)
        self._uses_proxies = urlsplit(url).hostname not in _LOOPBACK
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._session: ClientSession | None = None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One exchange. Raises `HttpFailure` when it fails, takes too long or is too large."""
        import aiohttp

        session = self._session or self._open()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                session.post(
                    self._url + path, data=io.BytesIO(body), headers=headers, allow_redirects=False
                ) as response,
            ):
                return Answer(
                    status=response.status,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=await self._read(response),
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise HttpFailure(f"{self._place} took no connection in {CONNECT_TIMEOUT_S:g} s") from error
        except TimeoutError as error:
            raise HttpFailure(f"{self._place} did not answer in {self._timeout_s:g} s") from error
        except (aiohttp.InvalidURL, aiohttp.ClientPayloadError, ValueError) as error:
            can_retry = isinstance(error, aiohttp.ClientPayloadError)
            raise HttpFailure(f"{self._place}: {_describe(error)}", can_retry=can_retry) from error
        except (aiohttp.ClientError, OSError) as error:
            raise HttpFailure(f"{self._place}: {_describe(error)}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _open(self) -> ClientSession:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            trust_env=self._uses_proxies,
            headers={"User-Agent": "axpo"},
        )
        return self._session

    async def _read(self, response: ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                raise ValueError(f"the answer is larger than {self._max_bytes} bytes")
        return bytes(body)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
