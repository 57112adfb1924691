"""The pages about the algorithm say what is: the example runs, every name exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path

import pytest

import axpo.algo
from axpo.trainer.config import Config

ROOT = Path(__file__).parents[2]


def test_the_example_prints_what_the_page_shows():
    page = (ROOT / "docs/algorithm.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "docs/algorithm.md", "exec"), {})
    assert printed.getvalue() == shown


PAPER_MAP = (ROOT / "docs/paper_map.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(axpo\.algo\.\w+\.\w+)`", PAPER_MAP))))
def test_every_function_of_the_paper_map_exists_and_is_public(name):
    module, function = name.rsplit(".", 1)
    assert getattr(importlib.import_module(module), function) is getattr(axpo.algo, function)


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[^`]+::\w+)`", PAPER_MAP))))
def test_every_test_of_the_paper_map_exists(reference):
    path, name = reference.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`((?:algorithm|data|rollout|run)\.\w+)`", PAPER_MAP))))
def test_every_option_of_the_paper_map_exists(option):
    table, field = option.split(".")
    assert field in Config.model_fields[table].annotation.model_fields


def test_the_paper_map_answers_every_ambiguity_once():
    assert re.findall(r"^\| A(\d+) \|", PAPER_MAP, re.MULTILINE) == [str(n) for n in range(1, 25)]


@pytest.mark.parametrize("name", axpo.algo.__all__)
def test_every_public_function_has_an_example(name):
    assert ">>>" in inspect.getdoc(getattr(axpo.algo, name))
