"""Tools and rewards by name: literal tables for what ships, `module:attribute` for what is the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.errors import ConfigError, DataError
from axpo.protocols import RewardFn, Tool
from axpo.rewards import REWARDS, checked
from axpo.tools import BUILTIN_TOOLS
from axpo.tools.function import FunctionTool
from axpo.types import Problem


def build_tools(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools by the name the model knows them under. Raises `ConfigError`."""
    stray = [name for name in options if name not in names]
    if stray:
        raise ConfigError(f"data.tool_options: {stray[0]!r} is not in data.tools, which holds {', '.join(names)}.")
    tools: dict[str, Tool] = {}
    for name in names:
        tool = _build_tool(name, options.get(name, {}))
        if tool.spec.name in tools:
            raise ConfigError(
                f"data.tools: two tools are called {tool.spec.name!r}; the model could not tell them apart."
            )
        tools[tool.spec.name] = tool
    return tools


def _build_tool(name: str, options: Mapping[str, Any]) -> Tool:
    if ":" not in name:
        if name not in BUILTIN_TOOLS:
            raise ConfigError(
                f"data.tools: no built-in tool is called {name!r}; there are {', '.join(BUILTIN_TOOLS)}. "
                "Your own tool is written module:attribute."
            )
        return _make_tool(name, BUILTIN_TOOLS[name], options)
    found = import_object(name, option="data.tools")
    if inspect.isclass(found):
        found = _make_tool(name, found, options)
    elif options:
        raise ConfigError(f"data.tool_options: {name} is no class, so nothing can be passed to it.")
    if inspect.isroutine(found):
        return FunctionTool.from_function(found)
    if not isinstance(found, Tool):
        raise ConfigError(f"data.tools: {name} is neither a function nor an object with `spec` and `run`.")
    return found


def _make_tool(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"data.tool_options: {name} {error}; it takes {', '.join(inspect.signature(make).parameters) or 'nothing'}."
        ) from error
    return make(**options)


def build_reward(name: str | None) -> Callable[[Problem], RewardFn]:
    """Which reward judges a question: the user's own for all, else the one of its `answer_kind`."""
    if name is not None:
        own = checked(import_object(name, option="data.reward"), name)
        return lambda problem: own

    def reward_for(problem: Problem) -> RewardFn:
        if problem.answer_kind not in REWARDS:
            raise DataError(
                f"question {problem.id}: answer_kind {problem.answer_kind!r} has no reward; there are "
                f"{', '.join(REWARDS)}. Change it, or set data.reward to your own function."
            )
        return REWARDS[problem.answer_kind]

    return reward_for


def import_object(name: str, *, option: str) -> Any:
    """What `module:attribute` names, looked for in the current directory first. Raises `ConfigError`."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigError(f"{option}: {name!r} is not of the form module:attribute.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{option}: {name}: importing {module_name} failed: {error}.") from error
        raise ConfigError(
            f"{option}: {name}: there is no module {error.name}, neither in {Path.cwd()} nor among installed packages."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{option}: {name}: importing {module_name} failed: {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{option}: {name}: {module_name} has no {attribute!r}{_nearest(part, dir(found))}.")
        found = getattr(found, part)
    if not callable(found) and not isinstance(found, Tool):
        raise ConfigError(f"{option}: {name} is of type {type(found).__name__}; expected something that can be called.")
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
