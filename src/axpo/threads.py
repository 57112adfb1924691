"""Blocking functions beside an event loop, in threads that can never hold up the end of the program."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from axpo.errors import ToolFault

MAX_ABANDONED = 64
"""Of one tool."""

Result = TypeVar("Result")


async def run_in_daemon_thread(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Await `function(*args, **kwargs)` run in a thread of its own.

    Unlike `asyncio.to_thread`, a call that never returns can be abandoned (cancel the await, or let it time out): the
    thread is a daemon, so neither the event loop nor the interpreter waits for it. Raises `ToolFault` when the system
    has no thread left.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def resolve(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # the function's own None is a result

    def work() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function(*args, **kwargs)
        except StopIteration as raised:  # a future cannot hold it
            error = RuntimeError(f"{function!r} raised StopIteration")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(resolve, result, error)

    name = getattr(function, "__name__", "call")
    try:
        threading.Thread(target=work, daemon=True, name=f"axpo-{name}").start()
    except RuntimeError as error:
        raise ToolFault(f"no thread for {name}, {threading.active_count()} run: {error}.") from error
    return await future


class ToolThreads:
    """The threads of one tool. That of a call that was given up lives on for as long as its function takes."""

    def __init__(self, tool_name: str) -> None:
        self._tool_name = tool_name
        self._num_calls = 0
        self._running: set[threading.Thread] = set()

    @contextlib.contextmanager
    def call(self) -> Generator[None]:
        """Around a call that uses one thread at a time.

        Raises `ToolFault` while the threads of `MAX_ABANDONED` calls that were given up still run.
        """
        if len(self._running) - self._num_calls >= MAX_ABANDONED:
            raise ToolFault(
                f"tool {self._tool_name}: {MAX_ABANDONED} calls that were given up still run in their threads; its "
                "function does not return. Give what it waits for a timeout.",
                can_retry=False,
            )
        self._num_calls += 1
        try:
            yield
        finally:
            self._num_calls -= 1

    async def run(self, function: Callable[[], Result]) -> Result:
        """As `run_in_daemon_thread`, counted."""

        def counted() -> Result:
            thread = threading.current_thread()
            self._running.add(thread)
            try:
                return function()
            finally:
                self._running.discard(thread)

        counted.__name__ = self._tool_name
        return await run_in_daemon_thread(counted)
