"""Every ```python block of the documentation runs, in order, one namespace a page.

A block under a line `<!-- no-run -->` is left out. Pages run in an empty folder, so that blocks may write files.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^(?P<skip><!-- no-run -->\n\s*)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: str) -> list[tuple[int, str]]:
    """(line of the page where the code starts, code) of each block that is to run."""
    blocks = [match for match in BLOCK.finditer(page) if not match["skip"]]
    return [(page.count("\n", 0, match.start("code")) + 1, match["code"]) for match in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in python_blocks(page.read_text(encoding="utf-8")):
        padded = "\n" * (line - 1) + code  # tracebacks name the page's own lines
        exec(compile(padded, str(page), "exec"), module.__dict__)


def test_blocks_are_found_with_their_line_and_can_be_left_out() -> None:
    page = "# T\n\n```python\na = 1\n```\n\n<!-- no-run -->\n```python\nboom()\n```\n```toml\nx = 1\n```\n"
    assert python_blocks(page + "```python\nb\n```\n") == [(4, "a = 1\n"), (15, "b\n")]
