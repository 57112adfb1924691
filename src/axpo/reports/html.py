"""One self-contained HTML page about one or several runs: works offline, asks for nothing, runs only its own scripts.

What models and tools wrote reaches the page as escaped text (the overview) or as JSON that scripts set as text (the
curves, the rollouts). A content security policy names the hashes of the page's own scripts and styles; everything else
is refused, whatever a record holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from axpo.reports.browser import MAX_BYTES, MAX_STEPS, build_browser
from axpo.reports.curves import build_curves
from axpo.reports.definitions import define, load_definitions
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
from axpo.reports.thumbnails import Thumbnails
from axpo.reports.tools import tool_rows

MAX_PAGE_BYTES = 10_500_000
"""Thumbnails fill what the rollouts leave of it; overview, curves and index come on top, and stay below 15 MB."""

_METHOD_COLORS = {"SFT": ("#6b7280", "#9aa3af"), "GRPO": ("#d55e00", "#ff9a4d"), "AXPO": ("#0072b2", "#56b4e9")}
_OTHER_COLORS = (("#009e73", "#3fd0a4"), ("#b8578f", "#e29ac4"), ("#b07d00", "#f0c34a"), ("#5b4fb3", "#a79cf0"))
"""(light, dark); after Okabe and Ito, told apart with any colour vision."""

_SCRIPTS = ("page.js", "curves.js", "dialogue.js", "group.js", "rollouts.js")
"""Of ours, in one scope, in this order."""


def write_report(run_dirs: Sequence[Path], out_path: Path, *, rollouts: Literal["some", "all"] = "some") -> None:
    """Write the page, and the full pictures into a folder `<name of the page>_images` beside it.

    Runs that differ only in their seed are drawn as one method. `some` rollouts: at most 64 training steps, and no more
    than keeps the page below 15 MB; what was left out is said in the page. Whatever a run does not have yet
    (evaluations, resampling, pictures) is left out. Raises `DataError` when a folder is no run directory or a record in
    it is broken.
    """
    page = build_page(run_dirs, images=out_path.with_name(f"{out_path.stem}_images"), rollouts=rollouts)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    partial = out_path.with_name(f"{out_path.name}.partial")
    partial.write_bytes(page.encode("utf-8", "replace"))
    partial.replace(out_path)


def build_page(
    run_dirs: Sequence[Path], *, images: Path | None = None, rollouts: Literal["some", "all"] = "some"
) -> str:
    """The page as text. `images`: the folder beside it that full pictures are copied to; None leaves them out."""
    arms = load_arms(run_dirs)
    is_cut = rollouts == "some"
    thumbnails = Thumbnails(folder=images)
    browser = build_browser(
        [run for arm in arms for run in arm.runs],
        thumbnails,
        max_steps=MAX_STEPS if is_cut else None,
        max_bytes=MAX_BYTES if is_cut else None,
    )
    room = MAX_PAGE_BYTES - sum(len(part.data) for part in browser.parts)
    pictures = thumbnails.make(max_bytes=room if is_cut else None)
    static = files("axpo.reports") / "static"
    script = "\n".join(["(() => {", '"use strict";', *(_read(static, name) for name in _SCRIPTS), "})();"])
    plots = _read(static, "uplot.iife.min.js")
    style = "\n".join([_arm_styles(arms), _read(static, "uplot.min.css"), _read(static, "report.css")])
    template = _environment().get_template("report.html.j2")
    return template.render(
        **_overview(arms),
        policy=_policy(scripts=(plots, script), style=style),
        style=style,
        scripts=(plots, script),
        data={
            "page": _as_json(_page_data(arms)),
            "curves": _as_json(build_curves(arms)),
            "index": _as_json(browser.index),
            "pictures": _as_json(pictures),
        },
        parts=[part.data for part in browser.parts],
        cut=browser.cut,
        has_rollouts=bool(browser.parts),
    )


# -- the shell --------------------------------------------------------------------------------------------------------


def _read(folder: Any, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _as_json(value: Any) -> str:
    """JSON for a script element: no `<` in it, so that nothing can end the element or open a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(*, scripts: Sequence[str], style: str) -> str:
    """Nothing but these scripts, this style, and pictures that are in the page or in the folder beside it."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data: 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _arm_styles(arms: Sequence[Arm]) -> str:
    rules = (
        f".arm-{index} {{ --c: light-dark({light}, {dark}); }}" for index, (light, dark) in enumerate(arm_colors(arms))
    )
    return "\n".join(rules)


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
    environment.filters |= {"percent": percent, "seconds": _seconds, "define": define}
    return environment


def _seconds(value: float | None) -> str:
    """`0.0031` -> `3.1 ms`; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


# -- the content ------------------------------------------------------------------------------------------------------


def _page_data(arms: Sequence[Arm]) -> dict[str, Any]:
    """Methods and runs by index, and the definitions that scripts attach to numbers."""
    runs = [(run, index) for index, arm in enumerate(arms) for run in arm.runs]
    return {
        "arms": [{"label": arm.label, "seeds": arm.seeds} for arm in arms],
        "runs": [{"name": run.name, "seed": run.seed, "arm": index} for run, index in runs],
        "definitions": {
            key: text for key, text in load_definitions().items() if key.startswith(("report/", "tools/failures/"))
        },
    }


def _overview(arms: Sequence[Arm]) -> dict[str, Any]:
    rows = final_table(arms)
    trained = [arm for arm in arms if arm.method != "Evaluation"]
    resampling = [arm for arm in arms if arm.method in ("AXPO", "GRPO")]
    return {
        "title": " and ".join(arm.label for arm in trained or arms),
        "verdict": write_verdict(arms, rows),
        "facts": run_facts(arms),
        "arms": arms,
        "rows": rows,
        "tables": [(label, columns(rows, label)) for label in ("", *categories(rows))],
        "changes": [(arms.index(arm), arm, _changes(arm)) for arm in resampling],
        "num_continuations": _num_continuations(arms),
        "tools": tool_rows(arms),
        "phases": _phases(arms),
        "phase_order": PHASES,
        "has_training": any(run.train_records for arm in arms for run in arm.runs),
        "alarms": alarm_rows(arms),
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


def _changes(arm: Arm) -> list[tuple[str, str, float | None, float | None]]:
    """What the story of a run is told with: first and last steps of the four telling rates."""
    keys = {
        "rollouts that call a tool": "rollout/tool_use_rate",
        "tool-using siblings all wrong": "rollout/all_wrong_tool",
        "direct siblings all wrong": "rollout/all_wrong_no_tool",
    }
    if arm.method == "AXPO":
        keys["resampled questions restored"] = "resample/restore_rate"
    return [(name, key, *edge_means(arm, key)) for name, key in keys.items()]


def _num_continuations(arms: Sequence[Arm]) -> int:
    axpo = next((arm for arm in arms if arm.method == "AXPO"), arms[0])
    return int(axpo.runs[0].table("algorithm").get("num_continuations", 4))


def _phases(arms: Sequence[Arm]) -> list[tuple[int, Arm, list[tuple[str, float, float, float]], float]]:
    """(index, arm, [(phase, seconds, start and width in percent of the longest step)], total) of arms with times."""
    named = [(index, arm, phase_seconds(arm)) for index, arm in enumerate(arms) if arm.runs[0].train_records]
    longest = max((sum(seconds.values()) for _, _, seconds in named), default=0.0) or 1.0
    bars: list[tuple[int, Arm, list[tuple[str, float, float, float]], float]] = []
    for index, arm, seconds in named:
        start, parts = 0.0, list[tuple[str, float, float, float]]()
        for phase, value in seconds.items():
            parts.append((phase, value, 100 * start / longest, 100 * value / longest))
            start += value
        if parts:
            bars.append((index, arm, parts, start))
    return bars
