"""An MCP server reached over streamable HTTP, its answers bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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

    # read: a server may think for long; how long is up to the timeout of the call
    timeout = httpx2.Timeout(30.0, read=None)
    identity = {"accept-encoding": "identity"}
    async with (
        httpx2.AsyncClient(
            headers={**headers, **identity},
            timeout=timeout,
            transport=_bounded(httpx2.AsyncHTTPTransport(), max_message_bytes),
        ) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_message_bytes) as streams,
    ):
        yield streams


def _bounded(inner: httpx2.AsyncBaseTransport, max_message_bytes: int) -> httpx2.AsyncBaseTransport:
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

    class BoundedTransport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await inner.handle_async_request(request)
            # asked for as it is; a few bytes that unpack to gigabytes stay packed
            response.headers.pop("content-encoding", None)
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            max_bytes = max_message_bytes * (FLOOD_FACTOR if is_stream else 1)
            return httpx2.Response(
                response.status_code,
                headers=response.headers,
                stream=BoundedStream(response.stream, max_bytes),
                extensions=response.extensions,
            )

        async def aclose(self) -> None:
            await inner.aclose()

    return BoundedTransport()
