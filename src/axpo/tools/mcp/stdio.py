"""An MCP server as a child process, spoken to over its standard input and output.

The SDK's own stdio transport keeps a line in memory however long it grows, and lets the server outlive a killed
trainer. This one bounds every message and every flood, keeps the last of what the server printed for error messages,
and runs the server on a leash (`axpo.tools.mcp.leash`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

TAIL_BYTES = 4096
"""So much of what the server printed last is kept."""
FLOOD_FACTOR = 8
"""A server that sends this many times the largest legal message without answering anything is cut off."""
MAX_UNANSWERED_REQUESTS = 64
"""A server that has asked this much without reading the answers is cut off."""
GRACE_S = 2.0
"""What a server has to leave by itself once its input is closed, and once more after SIGTERM."""
TOO_LARGE = -32050
UNREADABLE = -32051
"""Codes of the errors put in the place of an answer that cannot be handed on; MCP does not use them."""

_LEASH = Path(__file__).with_name("leash.py")
_EDGE_BYTES = 256
# The id of an answer, where its place proves that it is the message's own: at the very start or the very end.
_FIRST_ID = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*,\s*"(?:result|error)"')
_LAST_ID = re.compile(rb',\s*"id"\s*:\s*(\d{1,15})\s*\}\s*$')


@dataclass(slots=True)
class ServerLog:
    """What is known of a server beside its answers."""

    printed: bytearray = field(default_factory=bytearray)
    """The end of its standard error, and of lines on its standard output that are no messages."""
    cut_off: str = ""
    """Why the connection was ended from this side."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing more will come from the server."""

    def add(self, data: bytes) -> None:
        """Append, forgetting the oldest."""
        self.printed += data[-TAIL_BYTES:]
        del self.printed[:-TAIL_BYTES]

    def last_lines(self, count: int = 8) -> str:
        """The last lines printed."""
        return "\n".join(self.printed.decode("utf-8", "replace").strip().splitlines()[-count:])


@asynccontextmanager
async def stdio_transport(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str | None, max_message_bytes: int, log: ServerLog
) -> AsyncGenerator[tuple[MemoryObjectReceiveStream[Any], MemoryObjectSendStream[Any]]]:
    """Run the server; a pair of streams as `mcp.Client` takes them.

    When the server ends, or is cut off, the first stream ends. On leaving, the server and all its descendants are gone.
    """
    import anyio

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *command),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,  # Ctrl-C in the terminal is the trainer's business
    )
    incoming_send, incoming = anyio.create_memory_object_stream[Any](0)
    outgoing, outgoing_receive = anyio.create_memory_object_stream[Any](0)
    pipes = _Pipes(process, incoming_send, outgoing_receive, max_message_bytes, log)
    tasks = [asyncio.create_task(work) for work in (pipes.read(), pipes.write(), pipes.read_errors())]
    try:
        yield incoming, outgoing
    finally:
        tasks[1].cancel()
        stopping = asyncio.create_task(_stop(process, 0.0 if log.cut_off else GRACE_S))
        try:
            await asyncio.shield(stopping)
        finally:
            await stopping  # also when this is cancelled: no server may stay behind
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in (incoming_send, incoming, outgoing, outgoing_receive):
                stream.close()


@dataclass(slots=True)
class _Pipes:
    process: Process
    incoming: MemoryObjectSendStream[SessionMessage]
    outgoing: MemoryObjectReceiveStream[SessionMessage]
    max_message_bytes: int
    log: ServerLog
    num_unanswered: int = 0
    num_bytes_unasked: int = 0
    """Sent by the server since its last answer."""

    async def read(self) -> None:
        """Hand on answers and requests; drop notifications, nobody listens to them."""
        import anyio

        try:
            async for message in self._messages():
                await self.incoming.send(message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self.incoming.close()
            self.log.ended.set()
        await _drain(self.process.stdout)  # a server that is writing can only leave when someone reads

    async def _messages(self) -> AsyncIterator[SessionMessage]:
        from mcp.shared.message import SessionMessage
        from mcp.types import JSONRPCError, JSONRPCRequest, JSONRPCResponse

        async for head, tail, line in self._lines():
            message = self._parse(head, tail, line)
            if isinstance(message, (JSONRPCResponse, JSONRPCError)):
                self.num_bytes_unasked = 0
            elif isinstance(message, JSONRPCRequest):
                self.num_unanswered += 1
                if self.num_unanswered > MAX_UNANSWERED_REQUESTS:
                    self.log.cut_off = f"it sent {self.num_unanswered} requests without reading an answer"
                    return
            else:
                continue
            yield SessionMessage(message)

    def _parse(self, head: bytes, tail: bytes, line: bytes | None) -> Any:
        """The message in a line; an error in the place of an answer that is too large or unreadable; or nothing."""
        from mcp.types import ErrorData, JSONRPCError, jsonrpc_message_adapter

        if line is not None:
            try:
                return jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:
                pass
        found = _FIRST_ID.match(head) or _LAST_ID.search(tail)
        if found is None:
            self.log.add(head[:_EDGE_BYTES] + b"\n")
            return None
        if line is None:
            error = ErrorData(code=TOO_LARGE, message=f"the result is larger than {self.max_message_bytes} bytes")
        else:
            error = ErrorData(code=UNREADABLE, message="the answer is no JSON-RPC message")
        return JSONRPCError(jsonrpc="2.0", id=int(found[1]), error=error)

    async def _lines(self) -> AsyncIterator[tuple[bytes, bytes, bytes | None]]:
        """(start, end, whole) of each line; whole is None where it is too long to be kept."""
        assert self.process.stdout is not None
        line, head, tail, size = bytearray(), b"", b"", 0
        while chunk := await self.process.stdout.read(2**16):
            self.num_bytes_unasked += len(chunk)
            if self.num_bytes_unasked > FLOOD_FACTOR * self.max_message_bytes:
                self.log.cut_off = f"it sent {self.num_bytes_unasked} bytes without an answer among them"
                return
            *ended, rest = chunk.split(b"\n")
            for part, is_end in [*((part, True) for part in ended), (rest, False)]:
                size += len(part)
                if size <= self.max_message_bytes:
                    line += part
                head = head if len(head) >= _EDGE_BYTES else (head + part)[:_EDGE_BYTES]
                tail = (tail + part[-_EDGE_BYTES:])[-_EDGE_BYTES:]
                if is_end and size:
                    yield head, tail, bytes(line) if size <= self.max_message_bytes else None
                if is_end or size > self.max_message_bytes:
                    line = bytearray()
                if is_end:
                    head, tail, size = b"", b"", 0

    async def write(self) -> None:
        """Send what the session says. A server that stopped reading holds up nobody but its own session."""
        from mcp.types import JSONRPCError, JSONRPCResponse

        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            async for outgoing in self.outgoing:
                data = outgoing.message.model_dump_json(by_alias=True, exclude_unset=True)
                self.process.stdin.write(data.encode() + b"\n")
                await self.process.stdin.drain()
                if isinstance(outgoing.message, (JSONRPCResponse, JSONRPCError)):
                    self.num_unanswered -= 1

    async def read_errors(self) -> None:
        """Keep the end of what the server prints."""
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(2**16):
            self.log.add(chunk)


async def _drain(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    while await stream.read(2**16):
        pass


async def _stop(process: Process, grace_s: float) -> None:
    """Close its input, wait, SIGTERM to the leash (which kills all), wait, SIGKILL."""
    assert process.stdin is not None
    process.stdin.close()
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, GRACE_S)):
        if await _has_exited(process, patience_s):
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    await _has_exited(process, GRACE_S)


async def _has_exited(process: Process, timeout_s: float) -> bool:
    # not `wait`: it also waits for pipes that a survivor may hold open
    deadline = time.monotonic() + timeout_s
    while process.returncode is None and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return process.returncode is not None
