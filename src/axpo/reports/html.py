"""One self-contained HTML page about one or several runs: works offline, runs no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from axpo.reports.charts import PANELS, draw_charts
from axpo.reports.pictures import PictureBook
from axpo.reports.runs import Arm, load_arms
from axpo.reports.tables import (
    PHASES,
    alarm_rows,
    categories,
    columns,
    edge_means,
    final_table,
    percent,
    phase_seconds,
    run_facts,
    write_verdict,
)
from axpo.reports.tools import tool_panels, tool_rows
from axpo.reports.trees import build_group, choose_groups

_METHOD_COLORS = {"SFT": ("#6b7280", "#9aa3af"), "GRPO": ("#d55e00", "#ff9a4d"), "AXPO": ("#0072b2", "#56b4e9")}
_OTHER_COLORS = (("#009e73", "#3fd0a4"), ("#b8578f", "#e29ac4"), ("#b07d00", "#f0c34a"), ("#5b4fb3", "#a79cf0"))
"""(light, dark); after Okabe and Ito, told apart with any colour vision."""


def write_report(run_dirs: Sequence[Path], out_path: Path, *, max_groups: int = 6) -> None:
    """Write the page. Runs that differ only in their seed are drawn as one method.

    Whatever a run does not have yet (evaluations, resampling, pictures) is left out. Raises `DataError` when a folder
    is no run directory or a record in it is broken.
    """
    arms = load_arms(run_dirs)
    page = _environment().get_template("report.html.j2").render(_context(arms, max_groups=max_groups))
    out_path.parent.mkdir(parents=True, exist_ok=True)
    partial = out_path.with_name(f"{out_path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out_path)


def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("axpo.reports")
    environment = Environment(
        autoescape=True,  # everything a model wrote is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"percent": percent, "signed": _signed, "seconds": _seconds}
    return environment


def _signed(value: float) -> str:
    """An advantage: `−0.50`; zero has no sign."""
    return f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"


def _seconds(value: float | None) -> str:
    """`0.0031` -> `3.1 ms`; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _context(arms: Sequence[Arm], *, max_groups: int) -> dict[str, Any]:
    rows, pictures = final_table(arms), PictureBook()
    groups = [build_group(group, arms, pictures) for group in choose_groups(arms, max_groups=max_groups)]
    trained = [arm for arm in arms if arm.method != "Evaluation"]
    resampling = [arm for arm in arms if arm.method in ("AXPO", "GRPO")]
    return {
        "title": " and ".join(arm.label for arm in trained or arms),
        "verdict": write_verdict(arms, rows),
        "facts": run_facts(arms),
        "arms": arms,
        "colors": arm_colors(arms),
        "rows": rows,
        "tables": [("Held-out questions", columns(rows))]
        + [(f"Held-out questions: {label}", columns(rows, label)) for label in categories(rows)],
        "changes": [(arms.index(arm), arm, _changes(arm)) for arm in resampling],
        "num_continuations": _num_continuations(arms),
        "charts": draw_charts(arms, (*PANELS, *tool_panels(arms))),
        "tools": tool_rows(arms),
        "phases": _phases(arms),
        "phase_order": PHASES,
        "alarms": alarm_rows(arms),
        "groups": groups,
        "pictures": pictures.entries,
        "configs": [(arm.label, json.dumps(arm.runs[0].config, indent=2, default=str)) for arm in arms],
        "runs": [(run, arm) for arm in arms for run in arm.runs],
    }


def arm_colors(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(light, dark) colour of each arm: a method's own for its first arm, others in a fixed order."""
    taken: set[str] = set()
    others = iter(_OTHER_COLORS * len(arms))
    colors: list[tuple[str, str]] = []
    for arm in arms:
        is_first = arm.method in _METHOD_COLORS and arm.method not in taken
        taken.add(arm.method)
        colors.append(_METHOD_COLORS[arm.method] if is_first else next(others))
    return colors


def _changes(arm: Arm) -> list[tuple[str, float | None, float | None]]:
    """What the story of a run is told with: first and last steps of the four telling rates."""
    keys = {
        "rollouts that call a tool": "rollout/tool_use_rate",
        "tool-using siblings all wrong": "rollout/all_wrong_tool",
        "direct siblings all wrong": "rollout/all_wrong_no_tool",
    }
    if arm.method == "AXPO":
        keys["resampled questions restored"] = "resample/restore_rate"
    return [(name, *edge_means(arm, key)) for name, key in keys.items()]


def _num_continuations(arms: Sequence[Arm]) -> int:
    axpo = next((arm for arm in arms if arm.method == "AXPO"), arms[0])
    return int(axpo.runs[0].table("algorithm").get("num_continuations", 4))


def _phases(arms: Sequence[Arm]) -> list[tuple[str, list[tuple[str, float]], float]]:
    """(label, seconds by phase, total) of each arm that logged times."""
    named = [(arm.label, list(phase_seconds(arm).items())) for arm in arms if arm.runs[0].train_records]
    return [(label, phases, sum(value for _, value in phases)) for label, phases in named if phases]
