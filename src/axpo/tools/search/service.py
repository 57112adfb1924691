"""Asking a paid service: the cache before it, its rate, its budget, its bill."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast, get_args
from weakref import WeakValueDictionary

from axpo.errors import ConfigError, QuotaError, ToolError, ToolFault
from axpo.protocols import ToolContext
from axpo.tools.search.cache import AnswerCache, canonical
from axpo.tools.search.http import NoResults, RequestRefused, TooManyRequests
from axpo.tools.search.loop_thread import LoopThread
from axpo.tools.search.proof import Proof
from axpo.tools.search.rate import RateLimiter
from axpo.types import FailureKind, JsonValue

CacheMode = Literal["live", "record", "replay"]
_MAX_CALLS = 50_000
"""Answers kept for branches, far more than a step has: about 5 KB each."""
Ask = Callable[[], Awaitable[JsonValue]]
"""Sends a request: one attempt."""


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


class Service:
    """A service asked over the network, with everything that surrounds the asking.

    `cache_mode`: `live` asks always; `record` reads the cache, else asks and stores; `replay` only reads: a request
    that is not stored stops the run with a `ConfigError`. Cached answers come without leaving the caller's event loop,
    so that replayed runs repeat; requests run in a thread, equal ones wait for the first while recording.

    `max_requests` bounds what is sent through the cache file, by all processes and runs that share it, or without a
    cache by this object; a request without an answer does not count.

    `probe` sends a query that the service answers if it answers any. It tells a query that the service refuses (a
    `ToolError`) from a service that refuses all (a `ConfigError`), and results that are not there from engines that do
    not work. None: the service always works.
    """

    def __init__(
        self,
        name: str,
        *,
        probe: Callable[[], Awaitable[Any]] | None = None,
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
        self._proof = Proof(partial(self._send, probe or _nothing))
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._calls: OrderedDict[str, dict[str, JsonValue]] = OrderedDict()
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
        ask: Ask,
        context: ToolContext,
        *,
        is_paid: bool = True,
        call_id: str | None = None,
    ) -> JsonValue:
        """The answer to a request (its key in the cache), from the cache or by `ask`, which runs in the thread.

        What is not paid for (`is_paid`) knows no quota, rate or cost. Without a cache, a call with an id is asked for
        once: when a branch replays it, it gets the answer it had.

        Raises what `ask` raises, of which `ToolError` and `ToolFault` are stored too: a replayed run meets them again.
        """
        call = f"{call_id} {canonical(dict(request))}" if call_id is not None and self._cache is None else None
        outcome = self._stored(request) if call is None else self._calls.get(call)
        context.is_cached = outcome is not None
        if outcome is None:
            if self.is_replaying:
                raise ConfigError(
                    f"{self.name}: not in the cache {self._path()}: {canonical(dict(request))[:500]}. The replayed run "
                    "differs from the recorded one: same seeds, options and weights? Or use cache_mode = 'record'."
                )
            outcome, context.is_cached = await self.thread.run(self._ask_once(request, ask, context, is_paid))
            if call is not None and "fault" not in outcome:
                self._calls[call] = outcome
                while len(self._calls) > _MAX_CALLS:
                    self._calls.popitem(last=False)
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
        self, request: Mapping[str, JsonValue], ask: Ask, context: ToolContext, is_paid: bool
    ) -> tuple[dict[str, JsonValue], bool]:
        if self._cache is None:
            return await self._ask(ask, context, is_paid), False
        lock = self._locks.setdefault(canonical(dict(request)), asyncio.Lock())
        queued_s = time.monotonic()
        async with lock:
            context.waited_s += time.monotonic() - queued_s
            if (found := self._stored(request)) is not None:
                return found, True
            outcome = await self._ask(ask, context, is_paid)
            standing = self._cache.put(request, outcome, is_final="fault" not in outcome)
            return cast("dict[str, JsonValue]", standing), False

    async def _ask(self, ask: Ask, context: ToolContext, is_paid: bool) -> dict[str, JsonValue]:
        try:
            if is_paid:
                return {"value": await self._ask_paid(ask, context)}
            self._stats.requests += 1
            return {"value": await ask()}
        except ToolError as error:
            return {"refused": error.message, "kind": str(error.kind)}
        except ToolFault as error:
            self._stats.faults += 1
            return {"fault": str(error), "can_retry": error.can_retry}

    async def _ask_paid(self, ask: Ask, context: ToolContext) -> JsonValue:
        asked_s = time.monotonic()
        try:
            return await self._send(ask, context)
        except NoResults:
            await self._require_proof(context)
            return []
        except RequestRefused as refusal:
            try:
                # a key may be withdrawn during the run: earlier answers prove nothing then
                await self._require_proof(context, since_s=asked_s if refusal.is_access else None)
            except RequestRefused:
                raise ConfigError(f"{self.name}: {refusal}. {refusal.hint}") from refusal
            message = f"The search service refuses this. {refusal}"
            raise ToolError(FailureKind.BAD_ARGUMENTS, message) from refusal

    async def _require_proof(self, context: ToolContext, *, since_s: float | None = None) -> None:
        started_s = time.monotonic()
        try:
            await self._proof.require(since_s=since_s)
        finally:
            context.waited_s += time.monotonic() - started_s

    async def _send(self, ask: Ask, context: ToolContext | None = None) -> JsonValue:
        """One request that is paid for: its place in the quota, its turn, its cost."""
        self._reserve()
        is_answered = False
        try:
            waited_s = await self._limiter.wait()
            if context is not None:
                context.waited_s += waited_s
            self._stats.requests += 1
            value = await ask()
            is_answered = True
            self._proof.add_answer()
            return value
        except TooManyRequests as error:
            self._limiter.pause(error.retry_after_s)
            raise
        finally:  # also when it is cancelled
            self._settle(is_answered=is_answered)

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
                "Raise max_requests and continue with --resume."
            )
        self._num_reserved += 1

    def _settle(self, *, is_answered: bool) -> None:
        if is_answered:
            self._stats.cost_usd += self._cost_usd
        elif self._max_requests is not None:
            self._num_reserved -= 1
            if self._cache is not None:
                self._cache.release(self.name)


async def _nothing() -> None:
    pass


def _unwrap(outcome: Mapping[str, JsonValue]) -> JsonValue:
    if "fault" in outcome:
        raise ToolFault(outcome["fault"], can_retry=outcome.get("can_retry", True))
    if "refused" in outcome:
        raise ToolError(outcome["kind"], outcome["refused"])
    return outcome["value"]
