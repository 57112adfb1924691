"""An MCP server reached over streamable HTTP, bounded in all that it sends and in how long it takes.

The SDK bounds the size of one event. It does not end the request of a call that was given up, reconnects forever to a
server that closes its streams, and keeps every request of a server until it is answered. The rules are those of
`axpo.tools.mcp.stdio`, with a time limit for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from axpo.tools.mcp.stdio import FLOOD_FACTOR, MAX_UNANSWERED_REQUESTS, ServerLog

if TYPE_CHECKING:
    import httpx2
    from mcp.shared.message import SessionMessage

TOO_LARGE_TEXT = "the result is larger than"
_TOO_LONG = "the server took too long"
HEADERS_TIMEOUT_S = 30.0
"""Time limit for the headers of the stream on which a server sends unasked."""
ABORT_GRACE_S = 5.0
"""A request is ended this long after the call that it belongs to was given up."""
RECONNECT_PAUSE_S = 0.5
"""Shortest pause between two requests for a stream that the server keeps closing, even if it asks for a shorter one."""


@asynccontextmanager
async def http_transport(
    url: str, *, headers: Mapping[str, str], max_message_bytes: int, time_limit_s: float, log: ServerLog
) -> AsyncGenerator[Any]:
    """Connect; a pair of streams as `mcp.Client` takes them. `time_limit_s`: of the longest call.

    When the server is cut off, `log` says why and the first stream ends.
    """
    import anyio
    from mcp.client.streamable_http import streamable_http_client

    traffic = _Traffic(max_message_bytes=max_message_bytes, time_limit_s=time_limit_s, log=log)
    async with (
        _client(headers, traffic) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_message_bytes) as (received, sent),
    ):
        incoming_send, incoming = anyio.create_memory_object_stream[Any](0)
        outgoing, outgoing_receive = anyio.create_memory_object_stream[Any](0)
        tasks = [
            asyncio.create_task(traffic.hand_on(received, incoming_send)),
            asyncio.create_task(traffic.send_on(outgoing_receive, sent)),
        ]
        try:
            yield incoming, outgoing
        finally:
            for task in tasks:  # not awaited: where this is being cancelled, no wait would return
                task.cancel()
            for stream in (incoming_send, incoming, outgoing, outgoing_receive):
                stream.close()


@dataclass(slots=True)
class _Traffic:
    """Counters and deadlines of one connection, over all of its requests."""

    max_message_bytes: int
    time_limit_s: float
    log: ServerLog
    waiting: set[Any] = field(default_factory=lambda: set[Any]())
    """Ids of our requests without an answer."""
    num_unanswered: int = 0
    """Requests of the server without an answer of ours."""
    num_bytes_unasked: int = 0
    """Sent by the server outside of calls since its last answer."""
    deadlines: weakref.WeakKeyDictionary[asyncio.Task[Any], float | None] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    """Deadline of each task that sends a message: the SDK asks for the rest of an answer in the same task. None for the
    task of the stream on which the server sends unasked."""

    async def hand_on(self, received: Any, incoming: Any) -> None:
        """Pass on answers and requests. Notifications are dropped: nothing here handles them."""
        import anyio
        from mcp.types import JSONRPCError, JSONRPCRequest, JSONRPCResponse

        try:
            async for item in received:
                message = getattr(item, "message", None)
                if isinstance(message, (JSONRPCResponse, JSONRPCError)):
                    if message.id in self.waiting:
                        self.waiting.discard(message.id)
                        self.num_bytes_unasked = 0
                elif isinstance(message, JSONRPCRequest):
                    self.num_unanswered += 1
                    if self.num_unanswered > MAX_UNANSWERED_REQUESTS:
                        self.cut_off(f"it sent {self.num_unanswered} requests without reading an answer")
                        return
                elif message is not None:
                    continue
                await incoming.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            incoming.close()

    async def send_on(self, outgoing: Any, sent: Any) -> None:
        """Send what the session says; the SDK takes a message when it has sent the one before."""
        import anyio
        from mcp.types import JSONRPCError, JSONRPCRequest, JSONRPCResponse

        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            item: SessionMessage
            async for item in outgoing:
                if isinstance(item.message, JSONRPCRequest):
                    self.waiting.add(item.message.id)
                await sent.send(item)
                if isinstance(item.message, (JSONRPCResponse, JSONRPCError)):
                    self.num_unanswered -= 1

    def add_unasked(self, num_bytes: int) -> None:
        """Count what the server sent outside of calls."""
        self.num_bytes_unasked += num_bytes
        if self.num_bytes_unasked > FLOOD_FACTOR * self.max_message_bytes:
            self.cut_off(f"it sent {self.num_bytes_unasked} bytes without an answer among them")

    def cut_off(self, reason: str) -> None:
        """End the connection."""
        self.log.cut_off = self.log.cut_off or reason
        self.log.ended.set()

    async def deadline_s(self, method: str) -> float | None:
        """Time by which a request of this task must have ended. Pauses before a task asks for a stream again."""
        task = asyncio.current_task()
        assert task is not None
        if task not in self.deadlines:
            is_call = method != "GET"
            self.deadlines[task] = time.monotonic() + self.time_limit_s + ABORT_GRACE_S if is_call else None
        elif method == "GET" and (self.deadlines[task] or math.inf) > time.monotonic():  # a stream was closed early
            await asyncio.sleep(RECONNECT_PAUSE_S)
        return self.deadlines[task]


def _client(headers: Mapping[str, str], traffic: _Traffic) -> httpx2.AsyncClient:
    import anyio
    import httpx2

    class BoundedStream(httpx2.AsyncByteStream):
        """A body that ends at its deadline and at a number of bytes."""

        def __init__(self, stream: Any, *, max_bytes: int, deadline_s: float | None) -> None:
            self._stream = stream
            self._max_bytes = max_bytes
            self._deadline_s = deadline_s

        async def __aiter__(self) -> AsyncIterator[bytes]:
            chunks, size = aiter(self._stream), 0
            while True:
                try:
                    with _limit(self._deadline_s):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                size += len(chunk)
                if self._deadline_s is None:
                    traffic.add_unasked(len(chunk))
                if traffic.log.cut_off:
                    raise httpx2.StreamError(traffic.log.cut_off)
                if self._deadline_s is not None and size > self._max_bytes:
                    raise httpx2.StreamError(f"{TOO_LARGE_TEXT} {self._max_bytes} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    class BoundedClient(httpx2.AsyncClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            deadline_s = await traffic.deadline_s(request.method)
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise httpx2.ReadTimeout(_TOO_LONG)
            if traffic.log.cut_off:
                raise httpx2.StreamError(traffic.log.cut_off)
            with _limit(deadline_s or time.monotonic() + HEADERS_TIMEOUT_S):
                response = await super().send(request, **options)
            # it was asked for as it is; a few bytes that unpack to gigabytes stay packed
            response.headers.pop("content-encoding", None)
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            max_bytes = traffic.max_message_bytes * (FLOOD_FACTOR if is_stream else 1)
            response.stream = BoundedStream(response.stream, max_bytes=max_bytes, deadline_s=deadline_s)
            return response

    @contextlib.contextmanager
    def _limit(deadline_s: float | None) -> Any:
        """The SDK treats a timeout of HTTP as the end of the connection."""
        try:
            with anyio.fail_after(None if deadline_s is None else max(0.0, deadline_s - time.monotonic())):
                yield
        except TimeoutError as error:
            raise httpx2.ReadTimeout(_TOO_LONG) from error

    # a server may think for long: how long is up to the deadline
    return BoundedClient(headers={**headers, "accept-encoding": "identity"}, timeout=httpx2.Timeout(30.0, read=None))
