"""An event loop in a thread of its own, for what must outlive the loop that asks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines of any number of event loops in one loop.

    A trainer runs an event loop per step. Connections, locks and rate limits belong to one loop; here they live in one
    that lasts. The thread is a daemon and starts with the first coroutine.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Await the coroutine, run in the thread. A cancelled await cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._started()))

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancel what is under way, run `last`, end the thread. Call it outside of any loop that still awaits."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid():
            if last is not None:
                last.close()
            return
        asyncio.run_coroutine_threadsafe(self._finish(last), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # threads do not survive a fork
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=self._name)
                self._thread.start()
            return self._loop

    @staticmethod
    async def _finish(last: Coroutine[Any, Any, None] | None) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if last is not None:
            await last
