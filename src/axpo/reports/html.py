"""One self-contained HTML page about one or several runs: works offline, asks for nothing, runs only its own scripts.

What models and tools wrote reaches the page as escaped text (the overview) or as JSON that scripts set as text (the
curves, the rollouts). A content security policy names the hashes of the page's own scripts and styles; everything else
is refused, whatever a record holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from axpo.reports.browser import MAX_BYTES, MAX_STEPS, build_browser
from axpo.reports.curves import build_curves
from axpo.reports.definitions import load_definitions
from axpo.reports.runs import Arm, load_arms
from axpo.reports.shell import color_rules, read_static, render_page, write_page
from axpo.reports.tables import (
    PHASES,
    alarm_rows,
    categories,
    columns,
    edge_means,
    final_table,
    phase_seconds,
    run_facts,
    write_verdict,
)
from axpo.reports.thumbnails import Thumbnails
from axpo.reports.tools import tool_rows

LiveState = Mapping[str, str | int]
"""`version` of the page, as `/status` names the newest; `poll_ms` and `still_ms` of `axpo.reports.live`."""
MAX_PAGE_BYTES = 10_500_000
"""Thumbnails fill what the rollouts leave of it; overview, curves and index come on top, and stay below 15 MB."""

_METHOD_COLORS = {"SFT": ("#6b7280", "#9aa3af"), "GRPO": ("#d55e00", "#ff9a4d"), "AXPO": ("#0072b2", "#56b4e9")}
_OTHER_COLORS = (("#009e73", "#3fd0a4"), ("#b8578f", "#e29ac4"), ("#b07d00", "#f0c34a"), ("#5b4fb3", "#a79cf0"))
"""(light, dark); after Okabe and Ito, told apart with any colour vision."""

_SCRIPTS = ("page.js", "curves.js", "dialogue.js", "group.js", "rollouts.js", "start.js")
"""Of ours, in one scope, in this order."""


def write_report(run_dirs: Sequence[Path], out_path: Path, *, rollouts: Literal["some", "all"] = "some") -> None:
    """Write the page, and the full pictures into a folder `<name of the page>_images` beside it.

    Runs that differ only in their seed are drawn as one method. `some` rollouts: at most 64 training steps, and no more
    than keeps the page below 15 MB; what was left out is said in the page. Whatever a run does not have yet
    (evaluations, resampling, pictures) is left out. Raises `DataError` when a folder is no run directory or a record in
    it is broken.
    """
    thumbnails = Thumbnails(folder=out_path.with_name(f"{out_path.stem}_images"))
    write_page(build_page(run_dirs, thumbnails=thumbnails, rollouts=rollouts), out_path)


def build_page(
    run_dirs: Sequence[Path],
    *,
    thumbnails: Thumbnails,
    rollouts: Literal["some", "all"] = "some",
    live: LiveState | None = None,
) -> str:
    """The page as text. `live`: what `axpo watch` serves, which asks now and then whether there is a newer one."""
    arms = load_arms(run_dirs)
    is_cut = rollouts == "some"
    browser = build_browser(
        [run for arm in arms for run in arm.runs],
        thumbnails,
        max_steps=MAX_STEPS if is_cut else None,
        max_bytes=MAX_BYTES if is_cut else None,
    )
    room = MAX_PAGE_BYTES - sum(len(part.data) for part in browser.parts)
    pictures = thumbnails.make(max_bytes=room if is_cut else None)
    styles = [color_rules(arm_colors(arms)), read_static("uplot.min.css"), read_static("report.css")]
    return render_page(
        "report.html.j2",
        scripts=(*_SCRIPTS, *(("watch.js",) if live is not None else ())),
        styles=styles,
        data={
            "page": _page_data(arms),
            "curves": build_curves(arms),
            "index": browser.index,
            "pictures": pictures,
            **({"live": live} if live is not None else {}),
        },
        live=live is not None,
        **_overview(arms),
        parts=[part.data for part in browser.parts],
        cut=browser.cut,
        has_rollouts=bool(browser.parts),
    )


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
