"""`docs/metrics.md` names every key that can be logged and every alarm, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from axpo.diagnostics.health import ALARM_NAMES, HealthMonitor
from axpo.diagnostics.recorder import read_metrics
from axpo.rollout.executor import ToolExecutor
from axpo.tools.fakes import EchoTool
from synthetic_run import write_run

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"[a-z]+/[a-z0-9_@]+")
NOT_KEYS = {"runs/run"}  # a default path


def documented(section: str | None = None) -> set[str]:
    """First cells of the tables."""
    text = (ROOT / "docs/metrics.md").read_text()
    before, alarms = text.split("## Alarms")
    keys, alarms = alarms.split("| alarm |")
    before += keys
    return set(re.findall(r"^\| `([^`]+)` \|", alarms if section == "Alarms" else before, flags=re.MULTILINE))


def literal_keys() -> Iterator[str]:
    """String constants that look like a key, in everything that logs."""
    for package in ("trainer", "diagnostics", "evaluation"):
        for path in (ROOT / "src/axpo" / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
                    yield node.value


def logged_keys(folder: Path) -> Iterator[str]:
    """What a run with tools, target boxes and resampling writes; intervals belong to their key."""
    write_run(folder, num_steps=1, num_questions=4, eval_steps=(1,))
    for record in read_metrics(folder):
        for key in set(record) - {"kind", "step"}:
            if not key.endswith(("_low", "_high")) or key.startswith("train/"):
                yield {"eval/pass@4": "eval/pass@{n}"}.get(key, key.replace("image_zoom_in", "{name}"))


def service_keys() -> set[str]:
    """What the executor adds for a tool that asks a paid service."""

    class Paid(EchoTool):
        def stats(self) -> dict[str, float]:
            return {"requests": 3, "cost_usd": 0.1}

    metrics = ToolExecutor(tools={"paid": Paid(name="paid")}).take_service_numbers()
    return {key.replace("paid", "{name}") for key in metrics}


def alarm_keys() -> set[str]:
    """What an alarm adds."""
    monitor = HealthMonitor([{"non_finite": ["train/loss"]}])
    return {key.replace("non_finite", "{name}") for key in monitor.metrics()}


def test_every_key_is_explained_and_every_explained_key_exists(tmp_path: Path) -> None:
    logged = set(logged_keys(tmp_path)) | service_keys() | alarm_keys()
    assert set(literal_keys()) - NOT_KEYS | logged == documented()


def test_every_alarm_is_explained() -> None:
    assert set(ALARM_NAMES) == documented("Alarms")
