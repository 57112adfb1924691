"""A service that fails one query, or all of them?"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from axpo.errors import ToolFault
from axpo.tools.search.http import RequestRefused

PROBE_QUERY = "weather"
"""A query that no service refuses and every search engine finds something for."""
PROOF_S = 60.0
"""How long an answer, or the failure of a probe, speaks for the service."""


class Proof:
    """Whether a service answers at all: shown by its latest answer, else by a probe."""

    def __init__(self, probe: Callable[[], Awaitable[object]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._lock = asyncio.Lock()
        self._failure: RequestRefused | ToolFault | None = None
        self._known_since_s = -math.inf

    def add_answer(self) -> None:
        """The service has just answered a query."""
        self._failure, self._known_since_s = None, self._clock()

    async def require(self, *, since_s: float | None = None) -> None:
        """Return if the service has answered since then (default: within `PROOF_S`), else raise what a probe met with.

        Raises `RequestRefused` or `ToolFault`; those who ask at once share one probe.
        """
        async with self._lock:
            if self._known_since_s < (self._clock() - PROOF_S if since_s is None else since_s):
                try:
                    await self._probe()
                    self.add_answer()
                except (RequestRefused, ToolFault) as error:
                    self._failure, self._known_since_s = error, self._clock()
            failure = self._failure
        if failure is not None:
            raise failure.with_traceback(None)
