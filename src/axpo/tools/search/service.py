"""Asking a paid service: the cache before it, its rate, its budget, its bill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args
from weakref import WeakValueDictionary

from axpo.errors import ConfigError, QuotaError, ToolError, ToolFault
from axpo.protocols import ToolContext
from axpo.tools.search.cache import AnswerCache, canonical
from axpo.tools.search.http import RequestRefused, TooManyRequests
from axpo.tools.search.loop_thread import LoopThread
from axpo.types import FailureKind, JsonValue

CacheMode = Literal["live", "record", "replay"]


@dataclass(slots=True, kw_only=True)
class ServiceStats:
    """What a service did in this process."""

    requests: int = 0
    """Sent over the network."""
    cached: int = 0
    """Answered from the cache."""
    faults: int = 0
    """Requests that brought no answer."""
    lost: int = 0
    """Answers that could not be stored in the cache."""
    cost_usd: float = 0.0
    """Of the requests that were answered."""


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
        self._next_s = 0.0

    async def wait(self) -> None:
        """Return when it is this request's turn; turns are in order of the calls."""
        now_s = self._clock()
        turn_s = max(now_s, self._next_s)
        self._next_s = turn_s + self._interval_s
        if turn_s > now_s:
            await self._sleep(turn_s - now_s)

    def pause(self, seconds: float) -> None:
        """Let no further request go for a while."""
        self._next_s = max(self._next_s, self._clock() + seconds)


class Service:
    """A service asked over the network, with everything that surrounds the asking.

    `cache_mode`: `live` asks always; `record` reads the cache, else asks and stores; `replay` only reads: a request
    that is not stored stops the run with a `ConfigError`. Cached answers come without leaving the caller's event loop,
    so that replayed runs repeat; requests run in a thread, equal ones wait for the first while recording.

    `max_requests` bounds what is sent through the cache file, by all processes and runs that share it, or without a
    cache by this object; a request without an answer does not count.
    """

    def __init__(
        self,
        name: str,
        *,
        cache: str | None = None,
        cache_mode: CacheMode = "live",
        max_requests: int | None = None,
        requests_per_second: float | None = None,
        cost_per_request: float = 0.0,
        limiter: RateLimiter | None = None,
    ) -> None:
        if cache_mode not in get_args(CacheMode):
            raise ConfigError(f"search: cache_mode must be live, record or replay, got {cache_mode!r}.")
        if (cache is None) != (cache_mode == "live"):
            raise ConfigError(
                f"search: cache_mode = {cache_mode!r} with cache = {cache!r}. record and replay need a cache = "
                '"file.sqlite"; live uses none.'
            )
        for option, value in (("max_requests", max_requests), ("requests_per_second", requests_per_second)):
            if value is not None and value <= 0:
                raise ConfigError(f"search: {option} must be above 0, got {value}. Leave it out for no limit.")
        if cost_per_request < 0:
            raise ConfigError(f"search: cost_per_request must not be negative, got {cost_per_request}.")
        self.name = name
        self.thread = LoopThread("axpo-search")
        self._mode = cache_mode
        self._cache = AnswerCache(cache, must_exist=cache_mode == "replay") if cache is not None else None
        self._max_requests = max_requests
        self._num_reserved = 0
        self._cost_usd = cost_per_request
        self._limiter = limiter or RateLimiter(requests_per_second)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stats = ServiceStats()

    @property
    def is_replaying(self) -> bool:
        """True when nothing is ever sent."""
        return self._mode == "replay"

    def stats(self) -> dict[str, float]:
        """Counts of this process, see `ServiceStats`."""
        self._stats.lost = self._cache.num_lost if self._cache is not None else 0
        return asdict(self._stats)

    async def answer(
        self,
        request: Mapping[str, JsonValue],
        ask: Callable[[], Awaitable[JsonValue]],
        context: ToolContext,
        *,
        is_paid: bool = True,
    ) -> JsonValue:
        """The answer to a request (its key in the cache), from the cache or by `ask`, which runs in the thread.

        What is not paid for (`is_paid`) knows no quota, rate or cost.

        Raises what `ask` raises, of which `ToolError` and `ToolFault` are stored too: a replayed run meets them again.
        """
        outcome = self._stored(request)
        context.is_cached = outcome is not None
        if outcome is None:
            if self.is_replaying:
                raise ConfigError(
                    f"{self.name}: not in the cache {self._path()}: {canonical(dict(request))[:500]}. The replayed run "
                    "differs from the recorded one: same seeds, options and weights? Or use cache_mode = 'record'."
                )
            outcome, context.is_cached = await self.thread.run(self._ask_once(request, ask, is_paid))
        return _unwrap(outcome)

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """End the thread (after `last`) and close the cache."""
        self.thread.close(last)
        if self._cache is not None:
            self._cache.close()

    def _path(self) -> str:
        return str(self._cache.path) if self._cache is not None else ""

    def _stored(self, request: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
        found = self._cache.get(request) if self._cache is not None else None
        if found is None or not (found[1] or self.is_replaying):
            return None
        self._stats.cached += 1
        return cast("dict[str, JsonValue]", found[0])

    async def _ask_once(
        self, request: Mapping[str, JsonValue], ask: Callable[[], Awaitable[JsonValue]], is_paid: bool
    ) -> tuple[dict[str, JsonValue], bool]:
        if self._cache is None:
            return await self._ask(ask, is_paid), False
        lock = self._locks.setdefault(canonical(dict(request)), asyncio.Lock())
        async with lock:
            if (found := self._stored(request)) is not None:
                return found, True
            outcome = await self._ask(ask, is_paid)
            standing = self._cache.put(request, outcome, is_final="fault" not in outcome)
            return cast("dict[str, JsonValue]", standing), False

    async def _ask(self, ask: Callable[[], Awaitable[JsonValue]], is_paid: bool) -> dict[str, JsonValue]:
        outcome: dict[str, JsonValue] = {}
        if is_paid:
            self._reserve()
        try:
            if is_paid:
                await self._limiter.wait()
            self._stats.requests += 1
            outcome = {"value": await ask()}
        except ToolError as error:
            outcome = {"refused": error.message, "kind": str(error.kind)}
        except RequestRefused as error:
            outcome = {"refused": f"The search service refuses this. {error}", "kind": str(FailureKind.BAD_ARGUMENTS)}
        except ToolFault as error:
            if isinstance(error, TooManyRequests):
                self._limiter.pause(error.retry_after_s)
            self._stats.faults += 1
            outcome = {"fault": str(error), "can_retry": error.can_retry}
        finally:  # also when it is cancelled
            if is_paid:
                self._settle(is_answered="value" in outcome)
        return outcome

    def _reserve(self) -> None:
        if self._max_requests is None:
            return
        has_room = self._num_reserved < self._max_requests
        if has_room and self._cache is not None:
            has_room = self._cache.reserve(self.name, self._max_requests)
        if not has_room:
            shared = f" sent through {self._path()}" if self._cache is not None else ""
            raise QuotaError(
                f"{self.name}: the quota of {self._max_requests} requests{shared} is used up. "
                "Raise max_requests and go on with --resume."
            )
        self._num_reserved += 1

    def _settle(self, *, is_answered: bool) -> None:
        if is_answered:
            self._stats.cost_usd += self._cost_usd
        elif self._max_requests is not None:
            self._num_reserved -= 1
            if self._cache is not None:
                self._cache.release(self.name)


def _unwrap(outcome: Mapping[str, JsonValue]) -> JsonValue:
    if "fault" in outcome:
        raise ToolFault(outcome["fault"], can_retry=outcome.get("can_retry", True))
    if "refused" in outcome:
        raise ToolError(outcome["kind"], outcome["refused"])
    return outcome["value"]
