"""The tools of an MCP server: sessions in a thread of their own, restarted when they are lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from axpo.errors import ConfigError, MissingExtraError, ToolError, ToolFault
from axpo.protocols import ToolContext
from axpo.threads import run_in_daemon_thread
from axpo.tools.mcp.connection import Connection, LostError
from axpo.tools.mcp.content import read_result
from axpo.tools.mcp.options import McpOptions
from axpo.tools.mcp.schema import misfit_of_result, unusable_reason
from axpo.types import Content, FailureKind, JsonValue, ToolCall, ToolSpec
from axpo.workers import WorkError

if TYPE_CHECKING:
    from mcp.types import CallToolResult

RESTART_WAIT_S = 5.0
"""A call waits for a restart this long, then it is a fault of ours: the time of a slow start is not the model's."""
MAX_BACKOFF_S = 60.0
MAX_SUSPECTS = 1024
LOSSES_TO_SUSPECT = 2
"""A call that was in flight at so many losses is tried on a server of its own."""
MAX_LONE_SERVERS = 4
LONE_WAIT_S = 100.0
"""A call waits for a place among them this long, then it is a fault of ours."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_Result = TypeVar("_Result")


def mcp_tools(**options: Any) -> tuple[McpTool, ...]:
    """Start an MCP server and offer its tools; `options` are those of `McpOptions`.

    Closing any of the tools ends the server. Raises `ConfigError` where the server cannot be reached or its tools not
    be used, `MissingExtraError` without the `mcp` package.
    """
    known = [field.name for field in fields(McpOptions)]
    unknown = [option for option in options if option not in known]
    if unknown:
        what = f"there is no option {unknown[0]!r}; there are {', '.join(known)}"
        raise ConfigError(f"MCP server {options.get('name', 'mcp')}: {what}. Correct it.")
    return McpServer(McpOptions(**options)).tools


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A tool as the server lists it."""

    spec: ToolSpec
    remote_name: str
    """The server's own name for it."""
    output_schema: dict[str, JsonValue] | None


class McpTool:
    """An `axpo.protocols.Tool` of an MCP server."""

    bounds_its_time: Literal[True] = True

    def __init__(self, server: McpServer, offer: _Offer) -> None:
        self.spec = offer.spec
        self._offer = offer
        self._server = server

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Call the server.

        Raises `ToolError` where the server says that the call is wrong or failed, and where the call alone takes the
        server down or asks for more than `max_result_mb`; `ToolFault` where server or network failed.
        """
        _check_sendable(self.spec.name, call.arguments)
        result = await self._server.call(self._offer.remote_name, call.arguments, context)
        return await run_in_daemon_thread(self._read, result, context)

    def _read(self, result: CallToolResult, context: ToolContext) -> tuple[Content, ...]:
        schema = self._offer.output_schema
        if schema is not None and not result.is_error:
            try:
                misfit = misfit_of_result(schema, result.structured_content)
            except (WorkError, ValueError, RecursionError) as error:
                reason = f"{self.spec.name}: the result cannot be checked: {str(error)[:200]}"
                raise ToolError(FailureKind.EXECUTION_ERROR, reason) from error
            if misfit:
                raise ToolFault(f"{self._server.place} answered with what is no result of {self.spec.name}: {misfit}.")
        return read_result(result, self.spec.name, context)

    def close(self) -> None:
        """End the server, for all its tools."""
        self._server.close()


class McpServer:
    """An MCP server that is kept running. Its sessions live in a daemon thread with an event loop of its own, because
    those of training come and go.
    """

    def __init__(self, options: McpOptions) -> None:
        _require_mcp()
        options.check_environment()
        self._options = options
        self._connection: Connection | None = None
        self._restart: asyncio.Task[str] | None = None
        self._num_losses = 0
        """In a row, without an answer between them."""
        self._has_answered = False
        self._suspects: Counter[str] = Counter()
        self._culprits: dict[str, None] = {}
        """Calls that took down a server of their own, the oldest first."""
        self._thread = _LoopThread(f"axpo-mcp-{options.name}", self._shut_down)
        try:
            offered = self._thread.run(self._open_first)
            self._offers = _make_offers(options, offered)
            _check_schemas(options, self._offers)
        except BaseException:
            self.close()
            raise
        self.tools = tuple(McpTool(self, offer) for offer in self._offers)

    @property
    def place(self) -> str:
        """The server as messages name it."""
        return self._options.place

    async def call(self, tool: str, arguments: Mapping[str, JsonValue], context: ToolContext) -> CallToolResult:
        """Call a tool by the server's own name for it, from any event loop.

        What it waits for servers to start is added to `context.waited_s`.
        """
        return await self._thread.wait_for(lambda: self._call(tool, arguments, context), self._options.place)

    def close(self) -> None:
        """End the server; returns when its processes are gone. Calling it again does nothing."""
        self._thread.close()

    # -- in the thread's event loop -----------------------------------------------------------------------------------

    async def _open_first(self) -> tuple[Any, ...]:
        self._lone_servers = asyncio.Semaphore(MAX_LONE_SERVERS)
        connection = Connection(self._options)
        try:
            await connection.open()
        except LostError as error:
            place = " ".join(self._options.command) or self._options.url
            raise self._options.error(f"{place!r} cannot be used: {error}", "Try it by hand.") from error
        self._connection = connection
        return connection.tools

    async def _shut_down(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait({self._restart})
        if self._connection is not None:
            await self._connection.close()

    async def _call(self, tool: str, arguments: Mapping[str, JsonValue], context: ToolContext) -> CallToolResult:
        key = hashlib.sha256(json.dumps([tool, arguments], sort_keys=True).encode()).hexdigest()
        if self._is_suspect(key):
            async with self._lone_place(context):
                if self._is_suspect(key):  # and was not tried while this call waited
                    return await self._call_alone(key, tool, arguments, context)
        with _waiting(context):
            connection = await self._open_connection()
        try:
            result = await connection.call(tool, arguments)
        except LostError as error:
            if self._options.command:  # a server elsewhere is not ours to try out
                self._suspects[key] += 1
                _forget_oldest(self._suspects)
            raise ToolFault(f"{self._options.place} was lost during a call of {tool}: {error}.") from error
        except ToolError:
            self._note_answer()
            raise
        self._note_answer()
        return result

    def _note_answer(self) -> None:
        self._has_answered = True
        self._num_losses = 0

    def _is_suspect(self, key: str) -> bool:
        return self._has_answered and self._suspects[key] >= LOSSES_TO_SUSPECT

    @contextlib.asynccontextmanager
    async def _lone_place(self, context: ToolContext) -> AsyncGenerator[None]:
        with _waiting(context):
            try:
                async with asyncio.timeout(LONE_WAIT_S):
                    await self._lone_servers.acquire()
            except TimeoutError as error:
                reason = "too many calls, each in flight when it was lost before, wait for a server of their own"
                raise ToolFault(f"{self._options.place}: {reason}.") from error
        try:
            yield
        finally:
            self._lone_servers.release()

    async def _call_alone(
        self, key: str, tool: str, arguments: Mapping[str, JsonValue], context: ToolContext
    ) -> CallToolResult:
        """The call on a server of its own. If that is lost too, the call is what takes it down: the model is told.

        Otherwise a model could escape the judgement of a wrong rollout by a call that crashes the server.
        """
        verdict = ToolError(FailureKind.EXECUTION_ERROR, f"{tool}: these arguments make it crash or hang. Use others.")
        if key in self._culprits:
            raise verdict
        connection = Connection(self._options)
        with _waiting(context):
            try:
                await connection.open()
            except LostError as error:
                raise ToolFault(f"{self._options.place} cannot be started: {error}.") from error
        try:
            return await connection.call(tool, arguments)
        except LostError as error:
            self._culprits[key] = None
            _forget_oldest(self._culprits)
            raise verdict from error
        finally:
            if key not in self._culprits:
                del self._suspects[key]
            with _waiting(context):
                await connection.close()

    async def _open_connection(self) -> Connection:
        """The session, after one restart for all calls that wait where it was lost."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._restart is None or self._restart.done():
            self._restart = asyncio.create_task(self._start_again())
        restart = self._restart
        await asyncio.wait({restart}, timeout=RESTART_WAIT_S)
        reason = restart.result() if restart.done() else "it is being restarted"
        if reason or self._connection is None or not self._connection.is_open:
            raise ToolFault(f"{self._options.place} is down: {reason or 'lost again'}.")
        return self._connection

    async def _start_again(self) -> str:
        """Why it failed, or nothing."""
        if self._num_losses:
            await asyncio.sleep(min(0.25 * 2**self._num_losses, MAX_BACKOFF_S))
        self._num_losses += 1
        if self._connection is not None:
            await self._connection.close()
        self._connection = connection = Connection(self._options)
        try:
            await connection.open()
            if _make_offers(self._options, connection.tools) != self._offers:
                await connection.close()
                return "its tools are no longer those that the model was told"
        except Exception as error:
            return str(error)
        return ""


@contextlib.contextmanager
def _waiting(context: ToolContext) -> Generator[None]:
    """Time that is not the call's own."""
    started_s = time.monotonic()
    try:
        yield
    finally:
        context.waited_s += time.monotonic() - started_s


def _forget_oldest(keys: dict[str, Any]) -> None:
    while len(keys) > MAX_SUSPECTS:
        del keys[next(iter(keys))]


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str, shut_down: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._shut_down = shut_down
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True, name=name)
        self._thread.start()
        self._started.wait()

    async def _main(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._leave.wait()
        await self._shut_down()

    def run(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run a coroutine to its end, from outside any event loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    async def wait_for(self, work: Callable[[], Coroutine[Any, Any, _Result]], place: str) -> _Result:
        """Await a coroutine that runs in the thread; cancelling this cancels it there."""
        with self._lock:
            if self._loop is None:
                raise ToolFault(f"{place} is closed.", can_retry=False)
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # not we were cancelled, the thread is closing
                raise ToolFault(f"{place} was closed during a call.", can_retry=False) from None
            raise

    def close(self) -> None:
        """Shut down and wait for the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._leave is not None:
            loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()


# -- specs ------------------------------------------------------------------------------------------------------------


def _make_offers(options: McpOptions, listed: tuple[Any, ...]) -> tuple[_Offer, ...]:
    """The chosen ones of the tools that the server lists. Raises `ConfigError`."""
    names = [tool.name for tool in listed]
    missing = [name for name in options.tools if name not in names]
    if missing:
        raise options.error(f"it has no tool {missing[0]!r}", f"It offers {', '.join(names) or 'none'}.")
    offers: dict[str, _Offer] = {}
    for tool in listed:
        if options.tools and tool.name not in options.tools:
            continue
        if tool.name in offers:
            raise options.error(f"it has two tools called {tool.name!r}", "Choose others by tools = [...].")
        offers[tool.name] = _make_offer(options, tool)
    if not offers:
        raise options.error("it offers no tools", "Remove it.")
    return tuple(offers.values())


def _make_offer(options: McpOptions, tool: Any) -> _Offer:
    name = f"{options.prefix}{tool.name}"
    if not _TOOL_NAME.fullmatch(name):
        raise options.error(
            f"a tool is called {name[:100]!r}; a name has 1 to 64 letters, digits, _ . -",
            "Choose the others by tools = [...].",
        )
    parameters = cast("dict[str, JsonValue]", tool.input_schema)
    spec = ToolSpec(name=name, description=tool.description or tool.title or name, parameters=parameters)
    return _Offer(spec=spec, remote_name=tool.name, output_schema=tool.output_schema)


def _check_schemas(options: McpOptions, offers: tuple[_Offer, ...]) -> None:
    for offer in offers:
        what, kind = f"the argument schema of {offer.spec.name}", offer.spec.parameters.get("type")
        reason = unusable_reason(offer.spec.parameters) if kind == "object" else f"is of type {kind!r}, not 'object'"
        if not reason and offer.output_schema is not None:
            what, reason = f"the result schema of {offer.spec.name}", unusable_reason(offer.output_schema)
        if reason:
            raise options.error(f"{what} {reason}", "Choose other tools by tools = [...].")


def _check_sendable(name: str, arguments: Mapping[str, JsonValue]) -> None:
    """Raises `ToolError` for arguments that JSON cannot carry to a server."""
    from pydantic_core import to_json

    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
        to_json([[[[arguments]]]])  # as deep as the message around them
    except (ValueError, TypeError, RecursionError) as error:
        message = f"{name}: the arguments cannot be sent: {str(error)[:200]}"
        raise ToolError(FailureKind.BAD_ARGUMENTS, message) from error


def _require_mcp() -> None:
    try:
        importlib.import_module("mcp")
    except ImportError as error:
        raise MissingExtraError("tools of MCP servers need the mcp package: pip install 'axpo[mcp]'") from error
