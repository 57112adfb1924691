"""Runs tool calls: what every tool gets whoever wrote it.

A call passes, in this order: is the tool there, do the arguments fit its schema, is a place free, is the tool up. Then
it runs under a timeout; a fault of ours is tried again; what comes back is bounded. Every outcome is a `ToolResult` or
a fault of ours (`ToolFault`): the first belongs to the model, which reads it, the second never costs it anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

from axpo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    QuotaError,
    RolloutFault,
    ToolError,
    ToolFault,
)
from axpo.protocols import ClosableTool, MeteredTool, SelfTimedTool, StatefulTool, Tool, ToolContext
from axpo.rollout.arguments import find_misfit
from axpo.rollout.bounds import Bounds, Shorten, bound_content, shorten_by_bytes
from axpo.types import Content, FailureKind, ToolCall, ToolFailure, ToolResult

CLOSE_TIMEOUT_S = 10.0
"""How long a tool may take to release what it holds for a rollout."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """How one tool is run. `bounds` says what of its results the model sees."""

    timeout_s: float = 30.0
    """Wall clock of one try."""
    max_concurrent: int = 64
    """Calls of the tool that run at once; others wait, which is never charged to the rollout."""
    max_retries: int = 2
    """Further tries after a fault of ours."""
    backoff_s: float = 0.5
    """Pause before the first further try; it doubles with each."""
    breaker_faults: int = 5
    """After this many faults in a row (those of calls that ran at the same time are one) nobody calls the tool for
    `breaker_pause_s`; then one call tries, and the others wait for how it ends."""
    breaker_pause_s: float = 10.0
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(slots=True)
class _Lane:
    """The traffic of one tool in one event loop."""

    gate: asyncio.Semaphore
    num_faults: int = 0
    """In a row."""
    last_fault_s: float = -math.inf
    probe: asyncio.Future[bool] | None = None
    """The tool is down: resolves to whether the call that tries it succeeded."""


@dataclass(slots=True, kw_only=True)
class ToolExecutor:
    """All tools of a run. One object serves all rollouts and any number of event loops, one after the other."""

    tools: Mapping[str, Tool]
    limits: Mapping[str, ToolLimits] = field(default_factory=lambda: dict[str, ToolLimits]())
    """By tool name."""
    default_limits: ToolLimits = field(default_factory=ToolLimits)
    """Of tools that `limits` does not name."""
    shorten: Shorten = shorten_by_bytes
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    faults: Counter[str] = field(default_factory=lambda: Counter[str]())
    """Faults of ours by tool since somebody last cleared it; none of them is in a rollout's record."""
    _lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lane]] = field(
        default_factory=WeakKeyDictionary, init=False
    )

    async def run(self, call: ToolCall, context: ToolContext, *, offered: Sequence[str] | None = None) -> ToolResult:
        """One call. `offered`: names of the tools that the rollout may use; None: all.

        Raises `ToolFault` when the tool failed by a fault of ours at every try. What ends the run passes: `QuotaError`,
        and what the user has to mend.
        """
        started_s = self.clock()
        if (failure := await self._refuse(call, list(self.tools if offered is None else offered))) is not None:
            return ToolResult(call=call, failure=failure)
        limits = self.limits.get(call.name, self.default_limits)
        context.is_cached = context.is_cut = False
        num_tries, queued_s = 0, 0.0
        while True:
            num_tries += 1
            try:
                async with self._admitted(call.name, limits):
                    queued_s, context.waited_s = self.clock() - started_s, 0.0
                    content, failure = await self._try(self.tools[call.name], call, context, limits)
                break
            except ToolFault as fault:
                self.faults[call.name] += 1
                if not fault.can_retry or num_tries > limits.max_retries:
                    raise
                _log.info("tool %s: try %d of %d: %s", call.name, num_tries, limits.max_retries + 1, fault)
                await self.sleep(limits.backoff_s * 2 ** (num_tries - 1))
        content, failure, is_cut = self._bound(content, failure, limits.bounds, context)
        context.images.extend(block.image for block in content if block.image is not None)
        return ToolResult(
            call=call,
            content=content,
            failure=failure,
            wall_time_s=self.clock() - started_s,
            queue_time_s=queued_s + context.waited_s,
            num_tries=num_tries,
            is_cached=context.is_cached,
            is_cut=is_cut or context.is_cut,
        )

    async def replay(self, results: Sequence[ToolResult], context: ToolContext) -> float:
        """Bring `context` to where it stood after `results`: their images are there, and stateful tools were called.

        Returns the seconds that the calls waited. Raises `ToolFault` when a tool answers otherwise than it did.
        """
        waited_s = 0.0
        for recorded in results:
            has_run = recorded.failure is None or recorded.failure.kind not in _NEVER_RAN
            if has_run and isinstance(self.tools.get(recorded.call.name), StatefulTool):
                again = await self.run(recorded.call, context)
                waited_s += again.queue_time_s
                if (again.content, again.failure) != (recorded.content, recorded.failure):
                    raise ToolFault(
                        f"tool {recorded.call.name}: call {recorded.call.id} was replayed for a branch and did not "
                        "answer what is on record; a stateful tool has to be deterministic given its calls",
                        can_retry=False,
                    )
            else:
                context.images.extend(block.image for block in recorded.content if block.image is not None)
        return waited_s

    async def close_rollout(self, context: ToolContext) -> None:
        """Release what tools hold for the rollout. Their errors are logged: the rollout is over."""
        stateful = {name: tool for name, tool in self.tools.items() if isinstance(tool, StatefulTool)}
        closings = [_close_rollout(tool, context) for tool in stateful.values()]
        for name, error in zip(stateful, await asyncio.gather(*closings, return_exceptions=True), strict=True):
            if isinstance(error, Exception):
                _log.warning("tool %s: closing rollout %s: %r", name, context.rollout_id, error)

    def close(self) -> None:
        """Release what tools hold for the run, all of them even when one fails. Calling it again does nothing."""
        with contextlib.ExitStack() as stack:
            for tool in self.tools.values():
                if isinstance(tool, ClosableTool):
                    stack.callback(tool.close)

    def take_service_numbers(self) -> dict[str, float]:
        """Metrics that no rollout holds: faults of ours by tool since the last call, and what paid services counted."""
        metrics: dict[str, float] = {f"tools/{name}/faults": self.faults.pop(name, 0) for name in self.tools}
        for name, tool in self.tools.items():
            stats: Mapping[str, float] = tool.stats() if isinstance(tool, MeteredTool) else {}
            metrics |= {f"tools/{name}/{key}_total": stats[key] for key in ("requests", "cost_usd") if key in stats}
        return metrics

    # -- one try ------------------------------------------------------------------------------------------------------

    async def _try(
        self, tool: Tool, call: ToolCall, context: ToolContext, limits: ToolLimits
    ) -> tuple[tuple[Content, ...], ToolFailure | None]:
        deadline = asyncio.timeout(limits.timeout_s)
        try:
            async with deadline:
                return _checked_content(await tool.run(call, context)), None
        except ToolError as error:
            kind = FailureKind(error.kind) if error.kind in set(FailureKind) else FailureKind.TOOL_FAULT
            if not kind.is_model_fault:
                raise ToolFault(f"tool {call.name}: {error}", can_retry=False) from error
            return (), ToolFailure(kind=kind, message=str(error))
        except DataError as error:  # the model chose what could not be made into a picture or a text
            return (), ToolFailure(kind=FailureKind.EXECUTION_ERROR, message=str(error))
        except _ENDS_THE_RUN:
            raise
        except Exception as error:
            if deadline.expired():  # a TimeoutError of the tool's own, a lost connection say, is not the model's doing
                message = f"{call.name} did not finish within {limits.timeout_s:g} s."
                if isinstance(tool, SelfTimedTool):
                    raise ToolFault(f"tool {message}", can_retry=False) from error
                return (), ToolFailure(kind=FailureKind.TIMEOUT, message=message)
            message = f"tool {call.name} raised {type(error).__name__}: {error}"
            raise ToolFault(message, can_retry=False) from error

    async def _refuse(self, call: ToolCall, offered: Sequence[str]) -> ToolFailure | None:
        """Why the call cannot run at all, in words for the model."""
        if call.parse_error is not None:
            return ToolFailure(kind=FailureKind.MALFORMED_CALL, message=call.parse_error)
        if call.name not in offered:
            message = f"There is no tool named {call.name[:64]!r}. Tools: {', '.join(offered) or 'none'}."
            return ToolFailure(kind=FailureKind.UNKNOWN_TOOL, message=message)
        with _ours(f"tool {call.name}: its schema cannot be applied"):
            misfit = await find_misfit(call.arguments, self.tools[call.name].spec)
        if misfit is None:
            return None
        return ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message=f"{call.name}: {misfit}")

    def _bound(
        self, content: tuple[Content, ...], failure: ToolFailure | None, bounds: Bounds, context: ToolContext
    ) -> tuple[tuple[Content, ...], ToolFailure | None, bool]:
        with _ours("a result cannot be cut to its bounds"):
            if failure is not None:
                message = self.shorten(failure.message, bounds.max_tokens)
                return (), replace(failure, message=message), message != failure.message
            content, is_cut = bound_content(content, bounds, context.store, self.shorten)
            return content, None, is_cut

    # -- traffic ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admitted(self, name: str, limits: ToolLimits) -> AsyncGenerator[None]:
        """A place among the running calls of a tool that is up; counts how the call ends."""
        lanes = self._lanes.setdefault(asyncio.get_running_loop(), {})
        lane = lanes.setdefault(name, _Lane(asyncio.Semaphore(limits.max_concurrent)))
        async with lane.gate, self._circuit(name, lane, limits):
            yield

    @contextlib.asynccontextmanager
    async def _circuit(self, name: str, lane: _Lane, limits: ToolLimits) -> AsyncGenerator[None]:
        probe: asyncio.Future[bool] | None = None
        while lane.num_faults >= limits.breaker_faults and probe is None:
            if lane.probe is None:
                probe = lane.probe = asyncio.get_running_loop().create_future()
            elif not await asyncio.shield(lane.probe):
                raise ToolFault(f"tool {name} is down: {lane.num_faults} faults in a row")
        is_up = False
        started_s = self.clock()
        try:
            if probe is not None:
                _log.warning("tool %s: %d faults in a row, paused", name, lane.num_faults)
                await self.sleep(limits.breaker_pause_s)
            yield
            is_up = True
        except RolloutFault:
            if started_s > lane.last_fault_s:  # calls that ran together met one and the same trouble
                lane.num_faults += 1
            lane.last_fault_s = self.clock()
            raise
        finally:
            if is_up:
                lane.num_faults = 0
            if probe is not None:
                lane.probe = None
                probe.set_result(is_up)


_NEVER_RAN = (FailureKind.MALFORMED_CALL, FailureKind.UNKNOWN_TOOL, FailureKind.BAD_ARGUMENTS)
_ENDS_THE_RUN = (RolloutFault, QuotaError, ConfigError, CheckpointError, MissingExtraError)


@contextlib.contextmanager
def _ours(what: str) -> Generator[None]:
    """Whatever goes wrong in here is a fault of ours."""
    try:
        yield
    except _ENDS_THE_RUN:
        raise
    except Exception as error:
        raise ToolFault(f"{what}: {type(error).__name__}: {error}", can_retry=False) from error


def _checked_content(content: Any) -> tuple[Content, ...]:
    blocks = cast("tuple[Any, ...]", content) if isinstance(content, tuple) else ()
    if not blocks or not all(isinstance(block, Content) for block in blocks):
        raise TypeError(f"expected a tuple of at least one axpo.types.Content from a tool, got {content!r:.80}")
    return blocks


async def _close_rollout(tool: StatefulTool, context: ToolContext) -> None:
    async with asyncio.timeout(CLOSE_TIMEOUT_S):
        await tool.close_rollout(context)
