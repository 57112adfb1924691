"""HTTP/1.1 as services speak it: what is read, what is refused, which connections are used again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from axpo.engines import connections as module
from axpo.engines.connections import Connections
from axpo.errors import ConfigError
from axpo.http import Answer, HttpFailure

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> tuple[list[str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
    length = next(int(line.split(":")[1]) for line in head if line.lower().startswith("content-length"))
    return head, await reader.readexactly(length)


class Stub:
    """Sends what it is told to, as it is; then closes if it is told so."""

    def __init__(self, *answers: bytes, closes: bool = False) -> None:
        self.answers = list(answers)
        self.closes = closes
        self.heads: list[list[str]] = []
        self.bodies: list[bytes] = []
        self.num_connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head, body = await read_request(reader)
                self.heads.append(head)
                self.bodies.append(body)
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
                if self.closes:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def listening(serve: Serve, **options: Any) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(tracked, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def connected(url: str, *, timeout_s: float = 20.0, max_bytes: int = 1000) -> AsyncIterator[Connections]:
    connections = Connections(url, timeout_s=timeout_s, max_bytes=max_bytes)
    try:
        yield connections
    finally:
        await connections.close()


def ask(stub: Stub, *, num: int = 1, path: str = "/v1", body: bytes = b"{}", **options: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        async with listening(stub) as port, connected(f"http://127.0.0.1:{port}{path}", **options) as connections:
            answers: list[Answer] = []
            for _ in range(num):
                answers.append(await connections.post("/chat", body, {"X-Test": "1"}))
            return answers

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_every_form_of_answer_is_read_and_the_connection_kept(answer: bytes, body: bytes) -> None:
    stub = Stub(answer)
    assert [got.body for got in ask(stub, num=3)] == [body] * 3
    assert stub.num_connections == 1


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nok", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
        (OK, True),  # closed without a word, as after a time of silence
    ],
)
def test_a_connection_that_ends_is_opened_anew(answer: bytes, closes: bool) -> None:
    stub = Stub(answer, closes=closes)
    assert [got.body for got in ask(stub, num=3)] == [b"ok"] * 3
    assert stub.num_connections == 3


@pytest.mark.parametrize(
    ("answer", "can_retry"),
    [
        (b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Le", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", True),
        (b"SSH-2.0-OpenSSH\r\n\r\n", False),
        (b"HTTP/2 200\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokok\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200, False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, False),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", False),
    ],
)
def test_what_is_no_answer_is_a_failure(answer: bytes, can_retry: bool) -> None:
    with pytest.raises(HttpFailure, match=r"http://127\.0\.0\.1") as caught:
        ask(Stub(answer, closes=True))
    assert caught.value.can_retry is can_retry


def test_time_ends_an_exchange() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def run() -> None:
        async with listening(silent) as port, connected(f"http://127.0.0.1:{port}", timeout_s=0.1) as connections:
            await connections.post("/chat", b"", {})

    with pytest.raises(HttpFailure, match=r"did not answer in 0\.1 s"):
        asyncio.run(run())


def test_a_service_that_refuses_before_it_has_read_is_heard() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()
        writer.close()

    async def run() -> Answer:
        async with listening(refuse) as port, connected(f"http://127.0.0.1:{port}") as connections:
            return await connections.post("/chat", b"x" * 2**16, {})

    assert asyncio.run(run()).status == 413


def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    stub = Stub(OK)

    async def run() -> None:
        async with listening(stub) as port, connected(f"http://127.0.0.1:{port}") as connections:
            for _ in range(3):
                await asyncio.gather(*(connections.post("/chat", b"", {}) for _ in range(5)))

    asyncio.run(run())
    assert (stub.num_connections, len(stub.heads)) == (5, 15)


def test_a_request_is_what_was_asked_for() -> None:
    stub = Stub(OK)
    ask(stub, path="/a b/ü?api-version=1", body=b"12345")
    start, *lines = stub.heads[0]
    assert start == "POST /a%20b/%C3%BC/chat?api-version=1 HTTP/1.1"
    assert "X-Test: 1" in lines
    assert "Content-Length: 5" in lines
    assert stub.bodies == [b"12345"]


@pytest.mark.parametrize("url", ["http://a b/v1", "http://" + "a" * 70 + "ü.org/v1", "http://a\\b/v1"])
def test_a_host_that_cannot_be_is_told_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        Connections(url, timeout_s=1.0, max_bytes=1)


class TestProxies:
    def test_a_proxy_gets_the_whole_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stub = Stub(OK)

        async def run() -> Answer:
            async with listening(stub) as port:
                monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
                monkeypatch.setenv("no_proxy", "")
                async with connected("http://service.example/v1") as connections:
                    return await connections.post("/chat", b"", {})

        assert asyncio.run(run()).status == 200
        start, *lines = stub.heads[0]
        assert start == "POST http://service.example:80/v1/chat HTTP/1.1"
        assert "Host: service.example" in lines
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in lines

    def test_this_machine_needs_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert ask(Stub(OK))[0].body == b"ok"

    @pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "https://127.0.0.1:9"])
    def test_a_proxy_of_another_kind_is_told_at_once(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("http_proxy", address)
        with pytest.raises(ConfigError, match="http_proxy"):
            Connections("http://service.example/v1", timeout_s=1.0, max_bytes=1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `service.example`, signed by itself; key and certificate in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "made.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=service.example"),
            *("-addext", "subjectAltName=DNS:service.example", "-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + made.read_bytes())
    return both


class TestTls:
    def through_a_tunnel(self, certificate: Path, monkeypatch: pytest.MonkeyPatch, *, name: str) -> tuple[Stub, str]:
        stub = Stub(OK)
        asked: list[str] = []
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(certificate)

        async def run() -> None:
            async with listening(stub, ssl=serving) as port:

                async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    asked.append((await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[0])
                    there, away = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

                    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                        with contextlib.suppress(ConnectionError):
                            while data := await source.read(2**16):
                                target.write(data)
                        target.close()

                    try:
                        await asyncio.gather(copy(reader, away), copy(there, writer))
                    finally:
                        away.transport.abort()

                async with listening(tunnel) as proxy_port:
                    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy_port}")
                    monkeypatch.setenv("no_proxy", "")
                    async with connected(f"https://{name}/v1") as connections:
                        for _ in range(2):
                            answer = await connections.post("/chat", b"{}", {})
                            assert answer.body == b"ok"

        asyncio.run(run())
        return stub, asked[0]

    def test_a_known_service_is_spoken_to_through_a_tunnel(
        self, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(module, "_tls", lambda: context)
        stub, asked = self.through_a_tunnel(certificate, monkeypatch, name="service.example")
        assert asked == "CONNECT service.example:443 HTTP/1.1"
        assert (stub.num_connections, len(stub.heads)) == (1, 2)
        assert stub.heads[0][:2] == ["POST /v1/chat HTTP/1.1", "Host: service.example"]

    @pytest.mark.parametrize("is_known", [True, False])
    def test_a_service_that_is_another_is_not_spoken_to(
        self, certificate: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
    ) -> None:
        context = ssl.create_default_context(cafile=str(certificate) if is_known else None)
        monkeypatch.setattr(module, "_tls", lambda: context)
        with pytest.raises(HttpFailure, match="certificate verify failed"):
            name = "other.example" if is_known else "service.example"
            self.through_a_tunnel(certificate, monkeypatch, name=name)

    def test_a_tunnel_that_is_refused_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await reader.read()
            writer.close()

        async def run() -> None:
            async with listening(refuse) as port:
                monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
                monkeypatch.setenv("no_proxy", "")
                async with connected("https://service.example/v1") as connections:
                    await connections.post("/chat", b"", {})

        with pytest.raises(HttpFailure, match="407"):
            asyncio.run(run())
