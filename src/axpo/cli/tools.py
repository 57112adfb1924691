"""Tools by name, and the executor that runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axpo.cli.names import import_object
from axpo.errors import ConfigError
from axpo.protocols import Tool
from axpo.rollout.bounds import Bounds, Shorten
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.tools import BUILTIN_TOOLS
from axpo.tools.function import FunctionTool
from axpo.trainer.config import Config, ToolLimitsConfig


def build_executor(config: Config, *, shorten: Shorten) -> ToolExecutor:
    """The tools of `[data]` with their limits. Raises `ConfigError`."""
    tools = build_tools(config.data.tools, config.data.tool_options)
    stray = [name for name in config.data.tool_limits if name not in tools]
    if stray:
        raise ConfigError(f"data.tool_limits: no tool is called {stray[0]!r}; there are {', '.join(tools) or 'none'}.")
    return ToolExecutor(
        tools=tools,
        limits={name: _limits(table) for name, table in config.data.tool_limits.items()},
        shorten=shorten,
    )


def _limits(table: ToolLimitsConfig) -> ToolLimits:
    return ToolLimits(
        **table.model_dump(exclude={"max_result_tokens", "max_result_images", "max_image_px"}),
        bounds=Bounds(
            max_tokens=table.max_result_tokens, max_images=table.max_result_images, max_image_px=table.max_image_px
        ),
    )


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
