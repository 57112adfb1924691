"""One session with an MCP server, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axpo.errors import ToolError, ToolFault
from axpo.tools.function import cut_middle
from axpo.tools.mcp.http import TOO_LARGE_TEXT, http_transport
from axpo.tools.mcp.options import McpOptions
from axpo.tools.mcp.stdio import TOO_LARGE, UNREADABLE, ServerLog, stdio_transport
from axpo.types import FailureKind, JsonValue

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult, Tool

MAX_MESSAGE_CHARS = 500
MAX_TOOLS = 1000
PROBE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 8.0
"""A session elsewhere that does not even end is left; a process is stopped in less."""
HTTP_ERROR_TEXT = "Server returned an error response"
"""What the SDK makes of an HTTP status from 400 on."""
SSE_TOO_LARGE_TEXT = "byte limit"


class LostError(Exception):
    """The session ended before the answer came, or could not begin; the text says why."""


class Connection:
    """A session. Everything happens in the event loop in which `open` was awaited."""

    def __init__(self, options: McpOptions) -> None:
        self._options = options
        self._log = ServerLog()
        self._opened = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self.tools: tuple[Tool, ...] = ()
        """What the server offers."""

    @property
    def is_open(self) -> bool:
        """False once the server is gone or was cut off."""
        return self._client is not None and not self._log.ended.is_set()

    async def open(self) -> None:
        """Start the server, shake hands, list its tools. Raises `LostError`."""
        self._holder = asyncio.create_task(self._hold())
        opened = asyncio.create_task(self._opened.wait())
        limit_s = self._options.start_timeout_s
        try:
            await asyncio.wait({self._holder, opened}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            opened.cancel()
        if not self._opened.is_set():
            raise LostError(await self._why_not_opened())

    async def _why_not_opened(self) -> str:
        assert self._holder is not None
        reason = f"it did not answer within {self._options.start_timeout_s:g} s"
        if self._holder.done():
            reason = self._log.cut_off or _reason(None if self._holder.cancelled() else self._holder.exception())
        await self.close()
        printed = self._log.last_lines()
        return f"{reason}; it printed:\n{printed}\n" if printed else reason

    async def _hold(self) -> None:
        """Own the session: it must be entered and left by one task."""
        from mcp import Client

        try:
            async with Client(self._transport(), mode="auto") as client:
                # the SDK applies the server's schema in this event loop; `McpTool` does so in a worker process
                client.session.validate_tool_result = _accept
                self.tools = await _list_tools(client)
                self._client = client
                self._opened.set()
                await self._log.ended.wait()
        finally:
            self._log.ended.set()

    def _transport(self) -> Any:
        options = self._options
        if options.url:
            return http_transport(
                options.url,
                headers=options.headers(),
                max_message_bytes=options.max_message_bytes,
                time_limit_s=max(options.call_timeout_s, options.start_timeout_s),
                log=self._log,
            )
        return stdio_transport(
            options.command,
            env=options.environment(),
            cwd=options.cwd or None,
            max_message_bytes=options.max_message_bytes,
            log=self._log,
        )

    async def close(self) -> None:
        """End the session; returns when the server's process is gone."""
        self._log.ended.set()
        if self._holder is None:
            return
        if self._opened.is_set():
            await asyncio.wait({self._holder}, timeout=CLOSE_TIMEOUT_S)
        self._holder.cancel()
        await asyncio.wait({self._holder})
        with contextlib.suppress(BaseException):
            self._holder.result()  # a server that leaves badly has still left

    async def call(self, tool: str, arguments: Mapping[str, JsonValue]) -> CallToolResult:
        """Call a tool. Raises `LostError`, and `ToolError` or `ToolFault` by who is to blame for what came.

        A call without an answer in time is the model's while the server answers others, else the server is lost.
        """
        from mcp import MCPError

        if self._client is None or not self.is_open:
            raise LostError("it is gone")
        try:
            async with asyncio.timeout(self._options.call_timeout_s):
                return await self._client.call_tool(tool, dict(arguments))
        except TimeoutError as error:
            await asyncio.wait({self._start_probe()})
            if not self.is_open:
                raise LostError(self._log.cut_off or "it is gone") from error
            limit = f"{self._options.call_timeout_s:g} s"
            raise ToolError(FailureKind.TIMEOUT, f"{tool}: no result within {limit}.") from error
        except asyncio.CancelledError:
            self._start_probe()
            raise
        except MCPError as error:
            raise self._judge(tool, error) from error
        except Exception as error:  # the SDK's verdict on a result that breaks the protocol
            raise self._fault(f"answered with what is no result of {tool}: {_reason(error)}") from error

    def _judge(self, tool: str, error: Any) -> Exception:
        from mcp.types import (
            CONNECTION_CLOSED,
            INTERNAL_ERROR,
            INVALID_PARAMS,
            INVALID_REQUEST,
            METHOD_NOT_FOUND,
            PARSE_ERROR,
            REQUEST_TIMEOUT,
        )

        message = cut_middle(str(error.message), MAX_MESSAGE_CHARS)
        if error.code == TOO_LARGE or TOO_LARGE_TEXT in message or SSE_TOO_LARGE_TEXT in message:
            limit = f"{self._options.max_result_mb:g} MB"
            return ToolError(
                FailureKind.EXECUTION_ERROR, f"{tool}: the result is larger than {limit}. Ask for less of it."
            )
        if error.code == INVALID_PARAMS:
            return ToolError(FailureKind.BAD_ARGUMENTS, f"{tool}: {message}")
        if error.code == CONNECTION_CLOSED:
            return LostError(self._log.cut_off or self._last_words() or message)
        if error.code == INVALID_REQUEST:  # over HTTP: the server has forgotten the session
            self._log.ended.set()
        ours = (INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR, REQUEST_TIMEOUT, UNREADABLE)
        if error.code in ours or (error.code == INTERNAL_ERROR and message == HTTP_ERROR_TEXT):
            return self._fault(f"answered {tool} with an error: {message}")
        return ToolError(FailureKind.EXECUTION_ERROR, f"{tool}: {message}")

    def _last_words(self) -> str:
        printed = self._log.last_lines(1)
        return f"it ended, saying {cut_middle(printed, MAX_MESSAGE_CHARS)!r}" if printed else ""

    def _fault(self, what: str) -> ToolFault:
        return ToolFault(f"{self._options.place} {what}.")

    def _start_probe(self) -> asyncio.Task[None]:
        """A call was given up: does the server still answer? One that does not is ended, so that the next call works.

        One probe serves all calls that were given up meanwhile.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._end_if_hung())
        return self._probe

    async def _end_if_hung(self) -> None:
        assert self._client is not None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._client.list_tools(cache_mode="bypass")
        except Exception as error:
            why = "" if isinstance(error, TimeoutError) else f": {_reason(error)}"
            self._log.cut_off = self._log.cut_off or f"it no longer answered after a call was given up{why}"
            self._log.ended.set()


async def _accept(name: str, result: CallToolResult) -> None:
    """Accept any result."""


async def _list_tools(client: Client) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor or len(tools) > MAX_TOOLS:
            break
    if len(tools) > MAX_TOOLS:
        raise LostError(f"it lists more than {MAX_TOOLS} tools")
    return tuple(tools)


def _reason(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is None:
        return "it ended"
    if isinstance(error, LostError):
        return str(error)
    return cut_middle(f"{type(error).__name__}: {error}", MAX_MESSAGE_CHARS)
