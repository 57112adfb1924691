"""An MCP server reached over streamable HTTP, its answers bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from axpo.tools.mcp.stdio import FLOOD_FACTOR

if TYPE_CHECKING:
    import httpx2

TOO_LARGE_TEXT = "the result is larger than"


@asynccontextmanager
async def http_transport(url: str, *, headers: Mapping[str, str], max_message_bytes: int) -> AsyncGenerator[Any]:
    """Connect; a pair of streams as `mcp.Client` takes them."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    # a server may think for long: how long is up to the timeout of the call
    client = httpx2.AsyncClient(
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(30.0, read=None),
        event_hooks={"response": [_bound(max_message_bytes)]},
    )
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_message_bytes) as streams,
    ):
        yield streams


def _bound(max_message_bytes: int) -> Callable[[httpx2.Response], Coroutine[Any, Any, None]]:
    """A hook that ends a response beyond the limit; one that is a stream of messages may be `FLOOD_FACTOR` times it."""
    import httpx2

    class BoundedStream(httpx2.AsyncByteStream):
        def __init__(self, stream: Any, max_bytes: int) -> None:
            self._stream = stream
            self._max_bytes = max_bytes

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._stream:
                size += len(chunk)
                if size > self._max_bytes:
                    raise httpx2.StreamError(f"{TOO_LARGE_TEXT} {self._max_bytes} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: httpx2.Response) -> None:
        # it was asked for as it is; a few bytes that unpack to gigabytes stay packed
        response.headers.pop("content-encoding", None)
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        response.stream = BoundedStream(response.stream, max_message_bytes * (FLOOD_FACTOR if is_stream else 1))

    return bound
