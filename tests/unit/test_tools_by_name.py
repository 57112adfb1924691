"""From names in a configuration to tools in an executor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.tools import build_executor, build_tools
from axpo.errors import ConfigError
from axpo.protocols import StatefulTool
from axpo.rollout.bounds import shorten_by_bytes
from axpo.trainer.config import parse_config


def config(**data: Any) -> Any:
    return parse_config({"model": {"path": "mini"}, "data": data}, origin="test.toml")


def test_the_papers_tools_have_the_papers_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-x")
    tools = build_tools(["paper_tools"], {})
    assert list(tools) == ["python", "image_zoom_in", "tavily-search"]
    properties = {name: tool.spec.parameters["properties"] for name, tool in tools.items()}
    assert {name: list(of_tool) for name, of_tool in properties.items()} == {
        "python": ["code", "timeout"],
        "image_zoom_in": ["bbox_2d", "label", "img_idx"],
        "tavily-search": ["query", "max_results"],
    }
    assert properties["python"]["timeout"]["default"] == 12
    assert properties["tavily-search"]["max_results"]["default"] == 5
    assert tools["tavily-search"]._domains.exclude == ["huggingface.co"]


def test_a_tool_brings_its_companions(tmp_path: Path) -> None:
    tools = build_tools(["search"], {"search": {"index": "mini:corpus", "fetch": True}})
    assert list(tools) == ["search", "open_page"]


def test_a_class_is_one_instance_for_each_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting_tools.py").write_text(
        "class Tally:\n"
        '    """Counts."""\n'
        "    def __init__(self, start: int = 0) -> None:\n"
        "        self.count = start\n"
        "    def __call__(self, step: int) -> int:\n"
        '        """Counts on.\n\n        Args:\n            step: How far.\n        """\n'
        "        self.count += step\n"
        "        return self.count\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tools = build_tools(["counting_tools:Tally"], {"counting_tools:Tally": {"start": 5}})
    [tool] = tools.values()
    assert isinstance(tool, StatefulTool)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["zoom"], {}, "no built-in tool is called 'zoom'; there are image_zoom_in, python"),
        (["search"], {}, "index"),
        (["search"], {"search": {"index": "nowhere"}}, "nowhere"),
        (["python"], {"python": {"memory": 3}}, "it takes memory_mb"),
        (["python"], {"python": {"memory_mb": 0}}, "memory_mb must be at least"),
        (["image_zoom_in"], {"python": {}}, "'python' is not in data.tools"),
        (["mcp:clock"], {"mcp:clock": {"command": ["no-such-program"]}}, "no-such-program"),
        (["python", "python"], {}, "two tools are called 'python'"),
    ],
)
def test_mistakes_name_the_option(names: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tools(names, options)


def test_limits_are_looked_up_by_the_name_the_model_knows() -> None:
    tables = {"image_zoom_in": {"timeout_s": 3, "max_concurrent": 2, "max_result_tokens": 10}}
    executor = build_executor(config(tools=["image_zoom_in", "python"], tool_limits=tables), shorten=shorten_by_bytes)
    zoom, python = executor.limits["image_zoom_in"], executor.limits["python"]
    assert (zoom.timeout_s, zoom.max_concurrent, zoom.bounds.max_tokens) == (3, 2, 10)
    assert python.timeout_s > 31, "the tool ends long calls itself; the executor's timeout is the second fence"
    with pytest.raises(ConfigError, match=r"data\.tool_limits: no tool is called 'pyton'"):
        build_executor(config(tools=["python"], tool_limits={"pyton": {}}), shorten=shorten_by_bytes)
    with pytest.raises(ConfigError, match=r"unknown option; did you mean data\.tool_limits\.python\.timeout_s\?"):
        config(tools=["python"], tool_limits={"python": {"timeout": 3}})


def test_limits_survive_the_saved_configuration() -> None:
    import tomllib

    from axpo.trainer.config import format_toml, parse_config

    original = config(tools=["python"], tool_limits={"python": {"timeout_s": 45.0}})
    saved = parse_config(tomllib.loads(format_toml(original)), origin="saved")
    assert saved == original
    assert json.loads(saved.model_dump_json()) == json.loads(original.model_dump_json())
