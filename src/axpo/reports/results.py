"""Run records -> a Markdown page of results: `python -m axpo.reports.results OUT RUN...`.

Every number stands with its seeds, questions, samples, interval, device and commit.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from axpo.errors import UserError
from axpo.measures.intervals import UNKNOWN, Interval
from axpo.reports.charts import series
from axpo.reports.runs import Arm, load_arms
from axpo.reports.tables import (
    TableRow,
    columns,
    difference,
    final_table,
    percent,
    phase_seconds,
    points,
    run_facts,
)

NUM_WINDOWS = 5
"""Parts into which training is cut for the table of curves."""

_CURVES = {
    "rollout/tool_use_rate": "tool use",
    "rollout/all_wrong_tool": "tool siblings all wrong, before resampling",
    "rollout/all_wrong_tool_post": "the same, after resampling",
    "rollout/all_wrong_no_tool": "direct siblings all wrong",
    "resample/restore_rate": "restored, of the resampled",
    "resample/restore_rate_all": "restored, of the triggered",
    "zoom/box_hit_rate": "box hits",
    "reward/mean": "reward",
}


def write_results(run_dirs: Sequence[Path], out_path: Path, *, notes: str = "") -> None:
    """Write the page; `notes` is put under its title as it is.

    Raises `DataError` when a folder is no run directory or a record in it is broken.
    """
    arms = load_arms(run_dirs)
    rows = final_table(arms)
    sections = (
        "# Results",
        notes.strip(),
        _setting(arms, rows),
        "## Held-out questions after training",
        _final_section(rows),
        "## Differences",
        _difference_section(rows),
        "## Every run",
        _seed_section(rows),
        "## Training, in five parts",
        _curve_section(arms),
        "## Cost",
        _cost_section(arms),
        "## How the numbers are made",
        _METHOD_TEXT,
    )
    out_path.parent.mkdir(parents=True, exist_ok=True)
    out_path.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")


_METHOD_TEXT = """\
Pass@k is the unbiased estimator of Chen et al. 2021, averaged over questions; a rollout lost to an infrastructure
failure counts as wrong. Brackets are 95% confidence intervals over questions and training runs (`axpo.measures`):
questions about one image count as one observation, and what differs between runs enters with Student's t, so that five
runs give wider intervals than many would. A row of one run does not include the variance between training seeds.
Differences are taken on the same questions. A rate that a run cannot have, such as the box hits of a run without calls,
is averaged over the others. Tool use counts finished rollouts with an opened tool call; "any sample" counts questions
with at least one of them. A box hit is a zoom call whose box contains the whole target. Training rates count the
original siblings only."""


def _setting(arms: Sequence[Arm], rows: Sequence[TableRow]) -> str:
    evaluated = [outcomes for row in rows for outcomes in row.outcomes_by_run if outcomes]
    facts = run_facts(arms)
    if evaluated:
        facts["Questions"] = " · ".join(sorted({str(len(outcomes)) for outcomes in evaluated}))
        facts["Samples per question"] = " · ".join(sorted({str(outcomes[0].num_samples) for outcomes in evaluated}))
    infos = [run.info for arm in arms for run in arm.runs]
    facts["Machine"] = " · ".join(dict.fromkeys(str(info["machine"]) for info in infos if info.get("machine")))
    versions = [", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()) for info in infos]
    facts["Versions"] = " · ".join(dict.fromkeys(filter(None, versions)))
    return "\n".join(f"- {name}: {text}" for name, text in facts.items() if text)


def _final_section(rows: Sequence[TableRow]) -> str:
    if not rows:
        return "Nothing was evaluated."
    names = columns(rows)
    body = [
        [row.label, str(len(row.evaluations)), str(row.step), *(_cell(row.cells.get(name, UNKNOWN)) for name in names)]
        for row in rows
    ]
    return _table(["method", "runs", "step", *names.values()], body)


def _difference_section(rows: Sequence[TableRow]) -> str:
    names = [name for name in columns(rows) if name.startswith("pass@") or name == "tool_use_rate"]
    pairs = [
        (ours.label, theirs.label)
        for ours in rows
        for theirs in rows
        if ours.arm.method == "AXPO" and theirs.arm.method == "GRPO" and "Start" not in (ours.label, theirs.label)
    ]
    if not pairs:
        return "No pair of AXPO and GRPO runs."
    body = [
        [f"{ours} − {theirs}", *(_points_cell(difference(rows, ours, theirs, name)) for name in names)]
        for ours, theirs in pairs
    ]
    return _table(["percentage points", *(columns(rows)[name] for name in names)], body)


def _seed_section(rows: Sequence[TableRow]) -> str:
    names = list(columns(rows))
    body = [
        [row.label, str(run.seed), *(percent(_logged(run.eval_record(step), name)) for name in names)]
        for row in rows
        for run, step in row.evaluations
    ]
    return _table(["method", "seed", *columns(rows).values()], body)


def _curve_section(arms: Sequence[Arm]) -> str:
    last_step = max((record["step"] for arm in arms for run in arm.runs for record in run.train_records), default=0)
    if last_step < NUM_WINDOWS:
        return "Too few training steps."
    bounds = [last_step * part // NUM_WINDOWS for part in range(NUM_WINDOWS + 1)]
    windows = list(itertools.pairwise(bounds))
    body: list[list[str]] = []
    for key, name in _CURVES.items():
        for arm in arms:
            values = [value for curve in series(arm, key) for value in curve]
            means = [_mean(value for step, value in values if start < step <= stop) for start, stop in windows]
            if any(mean is not None for mean in means):
                body.append([name, arm.label, *(percent(mean) for mean in means)])
    return _table(["rate", "method", *(f"steps {start + 1}–{stop}" for start, stop in windows)], body)


def _cost_section(arms: Sequence[Arm]) -> str:
    body: list[list[str]] = []
    for arm in arms:
        siblings, extra, tokens, seconds = (
            _mean(value for curve in series(arm, key) for _, value in curve)
            for key in ("rollout/count", "resample/used", "tokens/generated", "seconds/step")
        )
        if siblings is not None:
            phases = ", ".join(f"{phase} {value:.2f}" for phase, value in phase_seconds(arm).items())
            body.append([arm.label, f"{siblings + (extra or 0):.1f}", _number(tokens), _number(seconds), phases])
    headings = ["method", "rollouts a step", "generated tokens a step", "seconds a step", "of which"]
    return _table(headings, body) if body else "No training step was recorded."


def _logged(record: dict[str, float | None] | None, name: str) -> float | None:
    return None if record is None else record.get(f"eval/{name}")


def _cell(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return percent(interval.estimate)
    return f"{percent(interval.estimate)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points_cell(interval: Interval) -> str:
    if interval.estimate is None:
        return "–"
    return f"{points(interval.estimate)} [{points(interval.low)}, {points(interval.high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _mean(values: Iterable[float]) -> float | None:
    items = list(values)
    return sum(items) / len(items) if items else None


def _table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m axpo.reports.results", description=__doc__)
    parser.add_argument("out", type=Path, help="Markdown file to write")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_argument("--notes", type=Path, help="Markdown file to put under the title")
    options = parser.parse_args(arguments)
    try:
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
        write_results(options.runs, options.out, notes=notes)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
