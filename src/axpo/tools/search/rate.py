"""Requests a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


class RateLimiter:
    """At most `per_s` requests a second, evenly spaced, and none while the service asks for patience."""

    def __init__(
        self,
        per_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._interval_s = 1.0 / per_s if per_s else 0.0
        self._clock = clock
        self._sleep = sleep
        self._queue = asyncio.Lock()
        self._next_s = 0.0

    async def wait(self) -> float:
        """Return when it is this request's turn: the seconds waited. Turns are in order of the calls; who is cancelled
        gives up the turn.
        """
        started_s = self._clock()
        async with self._queue:
            while (delay_s := self._next_s - self._clock()) > 0:
                await self._sleep(delay_s)
            now_s = self._clock()
            self._next_s = now_s + self._interval_s
        return now_s - started_s

    def pause(self, seconds: float) -> None:
        """Let no further request go for a while."""
        self._next_s = max(self._next_s, self._clock() + seconds)
