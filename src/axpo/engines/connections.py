"""POST over HTTP/1.1 to one endpoint, on the standard library's streams.

A general client takes a millisecond of a core for every request; with hundreds under way that, not the service, decides
how fast an evaluation runs. What a chat endpoint needs is little: connections that are kept, TLS, an HTTP proxy from
the environment, an answer of known length or in chunks. Redirects are answers like others: a key goes nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from axpo.errors import ConfigError
from axpo.http import Answer, HttpFailure, host_of

MAX_HEAD_BYTES = 2**16
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,12})[ \t]*(?:;[^\r\n]*)?\r\n")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """Status line and headers of an answer."""

    status: int
    headers: Mapping[str, str]
    keeps: bool
    """The connection stays open after it."""


class Connections:
    """As many connections as requests were under way at once; the caller bounds that. They belong to one event loop.

    `timeout_s` is for a whole exchange, `max_bytes` for the body of an answer.
    """

    def __init__(self, url: str, *, timeout_s: float, max_bytes: int) -> None:
        """`url`: checked by `axpo.http.check_url`. Raises `ConfigError` for a proxy that cannot be used."""
        parts = urlsplit(url)
        self._place = host_of(url)
        self._is_tls = parts.scheme == "https"
        self._host = _ascii_host(parts)
        self._port = parts.port or (443 if self._is_tls else 80)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._proxy = _proxy_for(parts.scheme, self._host)
        name = f"[{self._host}]" if ":" in self._host else self._host
        self._authority = f"{name}:{self._port}"
        is_usual = self._port == (443 if self._is_tls else 80)
        target = quote(parts.path, safe="/%:@!$&'()*+,;=~-._") + "{path}" + (f"?{parts.query}" if parts.query else "")
        if self._proxy is not None and not self._is_tls:
            target = f"http://{self._authority}{target}"
        self._start = f"POST {target} HTTP/1.1\r\nHost: {name if is_usual else self._authority}\r\n"
        if self._proxy is not None and not self._is_tls:
            self._start += self._proxy.authorization
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One exchange. Raises `HttpFailure` when it fails, takes too long or is too large."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{self._start.replace('{path}', path)}{lines}User-Agent: axpo\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(head.encode("ascii") + body)
        except TimeoutError as error:
            raise HttpFailure(f"{self._place} did not answer in {self._timeout_s:g} s") from error
        except asyncio.IncompleteReadError as error:
            raise HttpFailure(f"{self._place}: the connection was closed before the answer was whole") from error
        except OSError as error:  # errors of TLS too
            raise HttpFailure(f"{self._place}: {type(error).__name__}: {str(error)[:200]}") from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise HttpFailure(f"{self._place}: {str(error)[:200]}", can_retry=False) from error

    async def close(self) -> None:
        """Close the connections that are idle; those in use are closed when their answers are here."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.writer.close()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()

    async def _exchange(self, request: bytes) -> Answer:
        idle = self._take_idle()
        if idle is not None:
            try:
                return await self._exchange_on(idle, request)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
                # closed by the service after a time of silence, which nobody could know before asking
        return await self._exchange_on(await self._open(), request)

    async def _exchange_on(self, connection: _Connection, request: bytes) -> Answer:
        keeps = False
        try:
            connection.writer.write(request)
            with contextlib.suppress(ConnectionError):  # a service that had enough may have said why
                await connection.writer.drain()
            answer, keeps = await self._read(connection.reader)
            return answer
        finally:
            if keeps:
                self._idle.append(connection)
            else:
                connection.writer.transport.abort()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.writer.transport.abort()
        return None

    # -- opening ------------------------------------------------------------------------------------------------------

    async def _open(self) -> _Connection:
        tls = _tls() if self._is_tls else None
        if self._proxy is None:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=tls, limit=MAX_HEAD_BYTES)
            return _Connection(reader, writer)
        reader, writer = await asyncio.open_connection(self._proxy.host, self._proxy.port, limit=MAX_HEAD_BYTES)
        if tls is not None:
            try:
                await self._tunnel(reader, writer, tls)
            except BaseException:
                writer.transport.abort()
                raise
        return _Connection(reader, writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext) -> None:
        assert self._proxy is not None
        start = f"CONNECT {self._authority} HTTP/1.1\r\nHost: {self._authority}\r\n{self._proxy.authorization}\r\n"
        writer.write(start.encode("ascii"))
        head = await _read_head(reader)
        if head.status != 200:
            raise ConnectionError(f"the proxy {self._proxy.host} answered HTTP {head.status}")
        await writer.start_tls(tls, server_hostname=self._host)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        """An answer, and whether the connection can be used again."""
        head = await _read_head(reader)
        while 100 <= head.status < 200:
            head = await _read_head(reader)
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            raise ValueError("the answer is compressed, which nobody asked for")
        length = head.headers.get("content-length")
        keeps = head.keeps
        if head.status in (204, 304):
            body = b""
        elif "chunked" in head.headers.get("transfer-encoding", "").lower():
            body = await self._read_chunks(reader)
        elif length is not None:
            self._check_size(int(length))
            body = await reader.readexactly(int(length))
        else:
            body, keeps = await self._read_rest(reader), False
        return Answer(status=head.status, headers=head.headers, body=body), keeps

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while True:
            line = _CHUNK.fullmatch(await reader.readuntil(b"\r\n"))
            if line is None:
                raise ValueError("the answer has a chunk without a size")
            size = int(line[1], 16)
            self._check_size(len(body) + size)
            if size == 0:
                break
            body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise ValueError("the answer has a chunk without an end")
        for _ in range(100):
            if await reader.readuntil(b"\r\n") == b"\r\n":
                return bytes(body)
        raise ValueError("the answer has too many trailers")

    async def _read_rest(self, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while chunk := await reader.read(2**16):
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise ValueError(f"the answer is larger than {self._max_bytes} bytes")


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    start, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    status = _STATUS.fullmatch(start)
    if status is None:
        raise ValueError("the answer is no HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    keeps = status[1] == b"1" and "close" not in headers.get("connection", "").lower()
    return _Head(status=int(status[2]), headers=headers, keeps=keeps)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _ascii_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not _HOST.fullmatch(name):
        raise ConfigError(f"url: {host[:100]!r} is no name of a host.")
    return name


# -- proxies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxy:
    host: str
    port: int
    authorization: str
    """A header line, or nothing."""


def _proxy_for(scheme: str, host: str) -> _Proxy | None:
    """The proxy that the environment names for a host (http_proxy, https_proxy, no_proxy); none for this machine."""
    address = getproxies().get(scheme) or getproxies().get("all")
    if not address or host in _LOOPBACK or proxy_bypass(host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{scheme}_proxy: expected an address as http://proxy:3128, got {host_of(address)[:100]!r}.")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode('ascii')}\r\n"
    return _Proxy(host=parts.hostname, port=parts.port or 80, authorization=authorization)
