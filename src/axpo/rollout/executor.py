"""Runs tool calls: what every tool gets whoever wrote it.

A call passes, in this order: is the tool there, do the arguments fit its schema, is a place free, is the tool up. Then
it runs under a timeout; a fault of ours is tried again; what comes back is bounded. Every outcome is a `ToolResult` or
a fault of ours (`ToolFault`): the first belongs to the model, which reads it, the second never costs it anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

from axpo.errors import QuotaError, RolloutFault, ToolError, ToolFault, UserError
from axpo.protocols import ClosableTool, StatefulTool, Tool, ToolContext
from axpo.rollout.arguments import explain_misfit
from axpo.rollout.bounds import Bounds, Shorten, bound_content, shorten_by_bytes
from axpo.types import Content, FailureKind, ToolCall, ToolFailure, ToolResult

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
    breaker_faults: int = 10
    """After this many faults in a row nobody calls the tool for `breaker_pause_s`; then one call tries, and the others
    wait for how it ends."""
    breaker_pause_s: float = 10.0
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(slots=True)
class _Lane:
    """The traffic of one tool in one event loop."""

    gate: asyncio.Semaphore
    num_faults: int = 0
    """In a row."""
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
    _lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lane]] = field(
        default_factory=WeakKeyDictionary, init=False
    )

    async def run(self, call: ToolCall, context: ToolContext, *, offered: Sequence[str] | None = None) -> ToolResult:
        """One call. `offered`: names of the tools that the rollout may use; None: all.

        Raises `ToolFault` when the tool failed by a fault of ours at every try. `QuotaError` and `UserError` pass.
        """
        started_s = self.clock()
        names = list(self.tools if offered is None else offered)
        if (failure := _refuse(call, names, self.tools)) is not None:
            return ToolResult(call=call, failure=failure)
        limits = self.limits.get(call.name, self.default_limits)
        context.is_cached = False
        num_tries, waited_s = 0, 0.0
        while True:
            num_tries += 1
            try:
                async with self._admitted(call.name, limits):
                    waited_s = self.clock() - started_s
                    content, failure = await self._try(self.tools[call.name], call, context, limits)
                break
            except ToolFault as fault:
                if not fault.can_retry or num_tries > limits.max_retries:
                    raise
                _log.info("tool %s: try %d of %d: %s", call.name, num_tries, limits.max_retries + 1, fault)
                await self.sleep(limits.backoff_s * 2 ** (num_tries - 1))
        content, is_cut = bound_content(content, limits.bounds, context.store, self.shorten)
        if failure is not None:
            message = self.shorten(failure.message, limits.bounds.max_tokens)
            failure, is_cut = replace(failure, message=message), message != failure.message
        context.images.extend(block.image for block in content if block.image is not None)
        return ToolResult(
            call=call,
            content=content,
            failure=failure,
            wall_time_s=self.clock() - started_s,
            queue_time_s=waited_s,
            num_tries=num_tries,
            is_cached=context.is_cached,
            is_cut=is_cut,
        )

    async def replay(self, results: Sequence[ToolResult], context: ToolContext) -> None:
        """Bring `context` to where it stood after `results`: their images are there, and stateful tools were called.

        Raises `ToolFault` when such a tool answers otherwise than it did.
        """
        for recorded in results:
            if isinstance(self.tools.get(recorded.call.name), StatefulTool):
                again = await self.run(recorded.call, context)
                if (again.content, again.failure) != (recorded.content, recorded.failure):
                    raise ToolFault(
                        f"tool {recorded.call.name}: call {recorded.call.id} was replayed for a branch and did not "
                        "answer what is on record; a stateful tool has to be deterministic given its calls",
                        can_retry=False,
                    )
            else:
                context.images.extend(block.image for block in recorded.content if block.image is not None)

    async def close_rollout(self, context: ToolContext) -> None:
        """Release what tools hold for the rollout. Their errors are logged: the rollout is over."""
        for name, tool in self.tools.items():
            if isinstance(tool, StatefulTool):
                try:
                    await tool.close_rollout(context)
                except Exception as error:
                    _log.warning("tool %s: closing rollout %s: %s", name, context.rollout_id, error)

    def close(self) -> None:
        """Release what tools hold for the run. Calling it again does nothing."""
        for tool in self.tools.values():
            if isinstance(tool, ClosableTool):
                tool.close()

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
        except (RolloutFault, QuotaError, UserError):
            raise
        except Exception as error:
            if deadline.expired():  # a TimeoutError of the tool's own, a lost connection say, is not the model's doing
                message = f"{call.name} did not finish within {limits.timeout_s:g} s."
                if getattr(tool, "is_timeout_ours", False):
                    raise ToolFault(f"tool {message}") from error
                return (), ToolFailure(kind=FailureKind.TIMEOUT, message=message)
            message = f"tool {call.name} raised {type(error).__name__}: {error}"
            raise ToolFault(message, can_retry=False) from error

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
                raise ToolFault(f"tool {name} is down: {lane.num_faults} faults in a row", can_retry=False)
        is_up = False
        try:
            if probe is not None:
                _log.warning("tool %s: %d faults in a row, paused", name, lane.num_faults)
                await self.sleep(limits.breaker_pause_s)
            yield
            is_up = True
        except RolloutFault:
            lane.num_faults += 1
            raise
        finally:
            if is_up:
                lane.num_faults = 0
            if probe is not None:
                lane.probe = None
                probe.set_result(is_up)


def _refuse(call: ToolCall, offered: Sequence[str], tools: Mapping[str, Tool]) -> ToolFailure | None:
    """Why the call cannot run at all, in words for the model."""
    if call.parse_error is not None:
        return ToolFailure(kind=FailureKind.MALFORMED_CALL, message=call.parse_error)
    if call.name not in offered:
        message = f"There is no tool named {call.name[:64]!r}. Tools: {', '.join(offered) or 'none'}."
        return ToolFailure(kind=FailureKind.UNKNOWN_TOOL, message=message)
    misfit = explain_misfit(call.arguments, tools[call.name].spec)
    return None if misfit is None else ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message=f"{call.name}: {misfit}")


def _checked_content(content: Any) -> tuple[Content, ...]:
    blocks = cast("tuple[Any, ...]", content) if isinstance(content, tuple) else ()
    if not blocks or not all(isinstance(block, Content) for block in blocks):
        raise TypeError(f"expected a tuple of at least one axpo.types.Content from a tool, got {content!r:.80}")
    return blocks
