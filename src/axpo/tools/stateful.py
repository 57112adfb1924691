"""Tools made of a plain class: one instance for each rollout, its typed methods are what the model may call."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from axpo.errors import ConfigError, QuotaError, RolloutFault, ToolFault
from axpo.protocols import ToolContext
from axpo.threads import ToolThreads
from axpo.tools.function import FunctionTool, call_function
from axpo.types import Content, ToolCall

RESERVED_METHODS = ("close", "reset", "get_reward")
"""Public methods that the model never sees: `close` is called at the rollout's end, `reset` before the first call; TRL
lets `get_reward` judge the rollout, here a reward function does.
"""


class StatefulFunctionTool:
    """An `axpo.protocols.StatefulTool`: one method of a class whose instances belong to one rollout each.

    Made by `from_class`. The instance is made at the rollout's first call, shared by all tools of the class, and
    closed at the rollout's end by its `close()`, plain or async, if it has one. What its constructor raises is a fault
    of ours; for what its methods raise the rules of `axpo.tools.function.FunctionTool` hold, but after a `ToolFault` of
    theirs the call is not tried again: only a new rollout has a fresh instance.
    """

    def __init__(self, template: FunctionTool, *, method: str, make: Callable[[], Any], key: str) -> None:
        self.spec = template.spec
        self._template = template
        self._method = method
        self._make = make
        self._key = key

    @classmethod
    def from_class(
        cls, stateful: type[Any], options: Mapping[str, Any] | None = None, *, max_result_chars: int = 8000
    ) -> tuple[StatefulFunctionTool, ...]:
        """The tools of a class: `__call__`, named as the class in snake_case, else every public method.

        `options` are passed to the constructor. Raises `ConfigError` when they do not fit, or a method is no tool.
        """
        name = stateful.__qualname__
        try:
            inspect.signature(stateful).bind(**(options or {}))
        except TypeError as error:
            takes = ", ".join(inspect.signature(stateful).parameters) or "nothing"
            raise ConfigError(f"tool class {name}: {error}; it takes {takes}.") from error
        reset = getattr(stateful, "reset", None)
        if reset is not None and not _needs_nothing(reset):
            raise ConfigError(f"tool class {name}: reset needs arguments and gets none. Give them defaults.")
        methods = _tool_methods(stateful)
        if not methods:
            raise ConfigError(f"tool class {name} has neither __call__ nor public methods. Write one.")

        def make() -> Any:
            instance = stateful(**(options or {}))
            if callable(getattr(instance, "reset", None)):
                instance.reset()
            return instance

        key = f"{stateful.__module__}.{name}"
        return tuple(
            cls(
                # bound to a stand-in, so that `self` is no argument
                FunctionTool.from_function(
                    MethodType(function, object()), name=tool_name, max_result_chars=max_result_chars
                ),
                method=function.__name__,
                make=make,
                key=key,
            )
            for tool_name, function in methods.items()
        )

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Check the arguments, make the instance if there is none yet, call its method; see `FunctionTool.run`."""

        async def method(**arguments: Any) -> Any:
            state: _Instance = context.state.setdefault(self._key, _Instance(self._make))
            return await state.call(self._method, arguments, self._template.threads)

        return await self._template.run_as(method, call, context)

    async def close_rollout(self, context: ToolContext) -> None:
        """Close the rollout's instance, once for all tools of the class."""
        state: _Instance | None = context.state.pop(self._key, None)
        if state is not None:
            await state.close()


class _Instance:
    """An instance that is made when it is first called, in a thread: constructors may block."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make_it = make
        self._turn = asyncio.Lock()
        self._running: asyncio.Task[Any] | None = None
        self._lock = threading.Lock()
        self._made: Any = None
        self._is_made = False
        self._is_closed = False

    async def call(self, method: str, arguments: Mapping[str, Any], threads: ToolThreads) -> Any:
        """One call after the other, also after one that was given up but goes on in its thread."""
        async with self._turn:
            if self._running is not None:
                await asyncio.wait({self._running})
            if not self._is_made:
                await self._make(threads)
            function = getattr(self._made, method)
            try:
                if inspect.iscoroutinefunction(function):
                    return await call_function(function, arguments, threads)
                self._running = asyncio.create_task(call_function(function, arguments, threads))
                self._running.add_done_callback(_take_outcome)
                return await asyncio.shield(self._running)
            except ToolFault as fault:
                fault.can_retry = False  # a second try would find an instance that the first may have changed
                raise

    async def _make(self, threads: ToolThreads) -> None:
        try:
            await threads.run(self._make_in_thread)
        except (RolloutFault, QuotaError):
            raise
        except (Exception, SystemExit) as error:
            raise ToolFault(f"making the tool's instance failed: {type(error).__name__}: {error}") from error

    def _make_in_thread(self) -> None:
        made = self._make_it()
        with self._lock:
            self._made, self._is_made = made, True
            is_late = self._is_closed
        if is_late:  # the rollout was given up meanwhile
            asyncio.run(_close(made))

    async def close(self) -> None:
        """Close what was made, even if a call that was given up still uses it; what is still being made is closed as
        soon as it is made.
        """
        with self._lock:
            self._is_closed = True
        if self._is_made:
            await _close(self._made)


def _take_outcome(task: asyncio.Task[Any]) -> None:
    """The outcome of a call that was given up interests nobody: asyncio must not complain about it."""
    if not task.cancelled():
        task.exception()


async def _close(instance: Any) -> None:
    close = getattr(instance, "close", None)
    if callable(close):
        await call_function(close, {}, ToolThreads("close"))


def _tool_methods(stateful: type[Any]) -> dict[str, Callable[..., Any]]:
    """The functions that are tools, by the tools' names."""
    own_call = inspect.getattr_static(stateful, "__call__", None)
    if inspect.isfunction(own_call):
        snake_case = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stateful.__name__).lower()
        return {snake_case: own_call}
    return {
        name: function
        for name in dir(stateful)
        if inspect.isfunction(function := inspect.getattr_static(stateful, name))
        and not name.startswith("_")
        and name not in RESERVED_METHODS
    }


def _needs_nothing(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(MethodType(method, object())).bind()
    except TypeError:
        return False
    return True
