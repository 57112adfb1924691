"""Tools by name, and the executor that runs them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.cli.names import import_object
from axpo.errors import ConfigError
from axpo.files import temporary_folder
from axpo.protocols import ClosableTool, SelfTimedTool, Tool
from axpo.rollout.arguments import check_schema
from axpo.rollout.bounds import Bounds, Shorten
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.tasks import mini
from axpo.tools import BUILTIN_TOOLS, PAPER_TOOLS, PRESET_OPTIONS
from axpo.tools.function import FunctionTool
from axpo.tools.stateful import StatefulFunctionTool
from axpo.trainer.config import Config, ToolLimitsConfig

PAPER = "paper_tools"
MCP = "mcp:"
MINI_CORPUS = "mini:corpus"
FENCE_S = 600.0
"""Timeout of tools that bound a call's time themselves."""


def build_executor(config: Config, *, shorten: Shorten) -> ToolExecutor:
    """The tools of `[data]` with their limits. Raises `ConfigError`."""
    tools = build_tools(config.data.tools, config.data.tool_options)
    stray = [name for name in config.data.tool_limits if name not in tools]
    if stray:
        ToolExecutor(tools=tools).close()
        raise ConfigError(f"data.tool_limits: no tool is called {stray[0]!r}; there are {', '.join(tools) or 'none'}.")
    tables = {name: config.data.tool_limits.get(name, ToolLimitsConfig()) for name in tools}
    return ToolExecutor(
        tools=tools, limits={name: _limits(tools[name], table) for name, table in tables.items()}, shorten=shorten
    )


def _limits(tool: Tool, table: ToolLimitsConfig) -> ToolLimits:
    options = table.model_dump(exclude={"max_result_tokens", "max_result_images", "max_image_px"})
    if "timeout_s" not in table.model_fields_set and isinstance(tool, SelfTimedTool):
        options["timeout_s"] = FENCE_S
    return ToolLimits(
        **options,
        bounds=Bounds(
            max_tokens=table.max_result_tokens, max_images=table.max_result_images, max_image_px=table.max_image_px
        ),
    )


def check_tools(executor: ToolExecutor) -> None:
    """Let the tools find out now whether this machine can run them. Raises `ConfigError`."""
    for tool in executor.tools.values():
        if (check := getattr(tool, "check", None)) is not None:
            check()


def build_tools(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools by the name the model knows them under. Raises `ConfigError`; then none of them is left open."""
    names = [tool for name in names for tool in (PAPER_TOOLS if name == PAPER else (name,))]
    stray = [name for name in options if name not in names]
    if stray:
        raise ConfigError(f"data.tool_options: {stray[0]!r} is not in data.tools, which holds {', '.join(names)}.")
    tools: dict[str, Tool] = {}
    with contextlib.ExitStack() as opened:
        for name in names:
            for tool in _make_tools(name, options.get(name, {})):
                if isinstance(tool, ClosableTool):
                    opened.callback(tool.close)
                check_schema(tool.spec)
                if tool.spec.name in tools:
                    raise ConfigError(
                        f"data.tools: two tools are called {tool.spec.name!r}; the model could not tell them apart."
                    )
                tools[tool.spec.name] = tool
        opened.pop_all()
    return tools


def _make_tools(name: str, options: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tool of that name, or the several that belong to it."""
    if name.startswith(MCP):
        from axpo.tools.mcp import mcp_tools

        return mcp_tools(**{"name": name.removeprefix(MCP), **options})
    if ":" not in name:
        tool = _builtin_tool(name, options)
        return (tool, *getattr(tool, "companions", ()))
    found = import_object(name, option="data.tools")
    if inspect.isclass(found) and not hasattr(found, "spec"):
        return StatefulFunctionTool.from_class(found, options)
    if inspect.isclass(found):
        found = _construct(name, found, options)
    elif options:
        raise ConfigError(f"data.tool_options: {name} is no class, so nothing can be passed to it.")
    if inspect.isroutine(found):
        return (FunctionTool.from_function(found),)
    if not isinstance(found, Tool):
        raise ConfigError(f"data.tools: {name} is neither a function nor an object with `spec` and `run`.")
    return (found,)


def _builtin_tool(name: str, options: Mapping[str, Any]) -> Tool:
    if name not in BUILTIN_TOOLS:
        raise ConfigError(
            f"data.tools: no built-in tool is called {name!r}; there are {', '.join(BUILTIN_TOOLS)}, {PAPER}. "
            "Your own tool is written module:attribute, the tools of an MCP server mcp:NAME."
        )
    options = {**PRESET_OPTIONS.get(name, {}), **options}
    if options.get("index") == MINI_CORPUS:
        options["index"] = str(_mini_index())
    return _construct(name, import_object(BUILTIN_TOOLS[name], option="data.tools"), options)


def _construct(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"data.tool_options: {name} {error}; it takes {', '.join(inspect.signature(make).parameters) or 'nothing'}."
        ) from error
    return make(**options)


@functools.cache
def _mini_index() -> Path:
    """An index of the mini task's corpus, made once and removed when the program ends."""
    from axpo.tools.search import build_index

    folder = temporary_folder("axpo-mini-")
    source, index = folder / "corpus.jsonl", folder / "index"
    source.write_text("".join(json.dumps(row) + "\n" for row in mini.corpus()), encoding="utf-8")
    build_index(source, index)
    return index
