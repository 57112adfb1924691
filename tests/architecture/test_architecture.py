"""Is it still this house? Who may import whom is held by `.importlinter`."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import axpo
from axpo.cli.overrides import load_config

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "matplotlib", "math_verify", "pyarrow")


def heavy_modules_after(statement: str) -> set[str]:
    """Which heavy packages a clean interpreter has loaded after a statement."""
    program = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return set(re.findall(r"'(\w+)'", done.stderr))


def modules() -> list[str]:
    # modules that run when imported are the commands themselves
    return sorted(m.name for m in pkgutil.walk_packages(axpo.__path__, "axpo.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize(
    "statement",
    [
        "import axpo",
        "import axpo.types, axpo.errors, axpo.protocols, axpo.images, axpo.trainer.config, axpo.cli.overrides",
        "import axpo.reports.html",
    ],
)
def test_light_modules_load_nothing_heavy(statement: str) -> None:
    assert heavy_modules_after(statement) == set()


@pytest.mark.parametrize("command", ["", "train", "sft", "eval", "report", "doctor", "demo"])
def test_help_is_printed_without_loading_torch(command: str) -> None:
    words = [command, "--help"] if command else ["--help"]
    statement = (
        f"from axpo.cli.main import main\ntry:\n    main({words})\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert heavy_modules_after(statement) == set()


def test_the_algorithm_loads_torch_and_no_model_library() -> None:
    assert heavy_modules_after("import axpo.algo") == {"torch"}


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is_for_and_exports_what_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    missing = [exported for exported in getattr(module, "__all__", ()) if not hasattr(module, exported)]
    assert missing == []


RECIPES = [path for path in sorted(ROOT.glob("recipes/**/*.toml")) if "records" not in path.parts]
"""Kept records hold the configuration of their own commit."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(path: Path) -> None:
    assert load_config(path).model.path


def test_no_file_is_long_and_no_module_has_an_empty_name() -> None:
    sources = list((ROOT / "src").rglob("*.py"))
    too_long = [path.name for path in sources if len(path.read_text().splitlines()) > 530]
    vague = [path.name for path in sources if path.stem in ("utils", "common", "helpers", "misc")]
    assert (too_long, vague) == ([], [])
