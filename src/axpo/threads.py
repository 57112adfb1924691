"""Blocking functions beside an event loop, in threads that can never hold up the end of the program."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def run_in_daemon_thread(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Await `function(*args, **kwargs)` run in a thread of its own.

    Unlike `asyncio.to_thread`, a call that never returns can be abandoned (cancel the await, or let it time out): the
    thread is a daemon, so neither the event loop nor the interpreter waits for it.
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

    threading.Thread(target=work, daemon=True, name=f"axpo-{getattr(function, '__name__', 'call')}").start()
    return await future
