"""A `Diagnosis` as one self-contained HTML page: the same look, the same offline promise as the report of a run.

Names of files, tools and questions come from other people's dumps: they reach the page as escaped text or as JSON that
is shown as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.diagnostics.diagnosis import Definition, Diagnosis, Missing, Numbers, PartDiagnosis
from axpo.diagnostics.gap_text import verdict
from axpo.errors import ConfigError
from axpo.measures.sums import Rate
from axpo.reports.definitions import define, load_definitions
from axpo.reports.diagnosis_views import (
    AFTER_RESAMPLING,
    Bar,
    Cell,
    LengthScale,
    bars,
    cell,
    length_scale,
    number_text,
    percent_text,
    step_curves,
    step_rows,
)
from axpo.reports.shell import color_rules, read_static, render_page, write_page

MAX_DUMPS = 40
"""Shown in full; of all others the overview has the verdict and the main numbers."""
MAX_ROWS = 400
"""Dumps in the overview."""
MAX_CURVES = 7
"""Dumps that are drawn, each in a colour of its own."""

_COLORS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9a4d"),
    ("#009e73", "#3fd0a4"),
    ("#b8578f", "#e29ac4"),
    ("#b07d00", "#f0c34a"),
    ("#5b4fb3", "#a79cf0"),
    ("#6b7280", "#9aa3af"),
)
_MAIN = (
    "tool_use_rate",
    "all_wrong_tool",
    "all_wrong_no_tool",
    "gap",
    "accuracy_tool",
    "accuracy_no_tool",
    "zero_signal",
)
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "The gap": (
        "tool_use_rate",
        "tool_use_any",
        "tool_use_change",
        "all_wrong_tool",
        "all_wrong_no_tool",
        "gap",
        "all_wrong_tool_post",
        "restore_rate",
        "restore_rate_all",
    ),
    "Right and wrong": (
        "accuracy",
        "accuracy_tool",
        "accuracy_no_tool",
        "accuracy_attempted",
        "reward_mean",
        "reward_tool",
        "reward_no_tool",
        "reward_resampled",
    ),
    "Groups": ("zero_signal", "all_right", "all_wrong", "same_first_call"),
    "Tool calls": ("calls_per_rollout", "failure_rate", "never_ran", "calls_in_thinking"),
    "Ends and lengths": ("truncated", "response_length", "turns"),
}
_SCRIPTS = ("page.js", "curves.js", "dumps.js", "start.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpView:
    """One dump, ready to be shown."""

    part: PartDiagnosis
    color: int
    verdict: str
    facts: Sequence[tuple[str, str, str]]
    """(name, text, definition)"""
    main: Sequence[Cell]
    sections: Sequence[tuple[str, Sequence[Cell]]]
    no_signal: Sequence[Bar]
    forecast: Sequence[tuple[str, str, str]]
    failures: Sequence[Bar]
    tools: Sequence[tuple[str, Any, Cell, Cell, str]]
    """(name, its `ToolNumbers`, failed, right, kinds of failure)"""
    tool_counts: Sequence[Bar]
    group_sizes: Sequence[Bar]
    turns: Sequence[Bar]
    lengths: LengthScale | None
    steps: Sequence[tuple[int | None, Sequence[str]]]
    step_columns: Sequence[tuple[str, str]]


def write_diagnosis(diagnosis: Diagnosis, out: Path) -> None:
    """Write the page. Raises `ConfigError` when it cannot be written."""
    try:
        write_page(build_diagnosis_page(diagnosis), out)
    except OSError as error:
        raise ConfigError(f"--html {out}: cannot be written: {error.strerror}.") from error


def build_diagnosis_page(diagnosis: Diagnosis) -> str:
    """The page as text."""
    parts = diagnosis.parts
    names = _names(parts)
    explain = _Explainer(diagnosis.definitions)
    drawn = [place for place, part in enumerate(parts) if len(part.steps) > 1][:MAX_CURVES]
    colors = {place: color for color, place in enumerate(drawn)}
    dumps = [_dump(part, colors.get(place, len(_COLORS)), explain) for place, part in enumerate(parts[:MAX_DUMPS])]
    return render_page(
        "diagnosis.html.j2",
        scripts=_SCRIPTS,
        styles=[color_rules(_COLORS), *map(read_static, ("uplot.min.css", "report.css", "diagnosis.css"))],
        data={
            "page": _page_data(_labels([names[place] for place in drawn])),
            "curves": step_curves([parts[place] for place in drawn], explain),
        },
        diagnosis=diagnosis,
        dumps=dumps,
        names=names,
        others=[
            (names[place], _verdict(part), _cells(part, _MAIN, explain))
            for place, part in enumerate(parts[:MAX_ROWS])
            if place >= MAX_DUMPS
        ],
        num_unshown=max(0, len(parts) - MAX_ROWS),
        num_undrawn=sum(len(part.steps) > 1 for part in parts) - len(drawn),
        main=[(_MAIN_TITLES[name], explain(name)) for name in _MAIN],
        explain=explain,
        has_curves=bool(drawn),
        missing=_missing(parts, names),
        title=f"{names[0]}" if len(parts) == 1 else f"{len(parts):,} dumps",
    )


_MAIN_TITLES = {
    "tool_use_rate": "Call a tool",
    "all_wrong_tool": "All wrong with a tool",
    "all_wrong_no_tool": "All wrong without",
    "gap": "Difference",
    "accuracy_tool": "Right with a tool",
    "accuracy_no_tool": "Right without",
    "zero_signal": "No signal",
}


class _Explainer:
    """What a number means: its title, where the paper has it, and the words of `docs/diagnose.md`."""

    def __init__(self, definitions: Mapping[str, Definition]) -> None:
        self._definitions = definitions

    def __call__(self, name: str) -> str:
        words = define(f"diagnose/{name}")
        rule = self._definitions.get(name)
        if rule is None:
            return words
        sentence = f"{rule.title[:1].upper()}{rule.title[1:]}."
        known = words if words.rstrip(".").lower() != rule.title.lower() else ""
        paper = f"{rule.paper} of the paper." if rule.paper else ""
        logged = f"A run logs it as {rule.logged_as}." if rule.logged_as else ""
        return " ".join(filter(None, (sentence, known, paper, logged)))

    def title(self, name: str) -> str:
        """A name for a row."""
        rule = self._definitions.get(name)
        return rule.title if rule is not None else _TITLES[name]

    def is_share(self, name: str) -> bool:
        """Whether it is shown in percent."""
        rule = self._definitions.get(name)
        return rule is None or rule.is_share


_TITLES = {
    "gap": "difference of the all-wrong rates",
    "tool_use_change": "change of tool use, first to last fifth of the steps",
}


def _names(parts: Sequence[PartDiagnosis]) -> list[str]:
    """Without the folders that all have in common."""
    split = [part.name.split("/") for part in parts]
    shared = 0
    while all(len(words) > shared + 1 and words[shared] == split[0][shared] for words in split):
        shared += 1
    return ["/".join(words[shared:]) for words in split]


def _labels(names: Sequence[str]) -> list[str]:
    """Without what all end in: `axpo-0` and `grpo-0` of `axpo-0/train-*.jsonl` and `grpo-0/train-*.jsonl`."""
    split = [name.split("/") for name in names]
    while len(split) > 1 and all(len(words) > 1 and words[-1] == split[0][-1] for words in split):
        split = [words[:-1] for words in split]
    return ["/".join(words) for words in split]


def _verdict(part: PartDiagnosis) -> str:
    return verdict(part).replace(" %", "\u00a0%")


def _page_data(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "arms": [{"label": label, "seeds": [0]} for label in labels],
        "runs": [{"name": label, "seed": 0, "arm": index} for index, label in enumerate(labels)],
        "definitions": {key: text for key, text in load_definitions().items() if key.startswith("report/")},
    }


def _dump(part: PartDiagnosis, color: int, explain: _Explainer) -> DumpView:
    total, counts = part.total, part.total.counts
    without = ("no_signal_one_sample", "no_signal_all_right", "no_signal_all_wrong")
    rest = counts["groups"] - sum(counts[name] for name in without)
    groups = {
        "one sample": (counts[without[0]], explain(without[0])),
        "all right": (counts[without[1]], explain(without[1])),
        "all wrong": (counts[without[2]], explain(without[2])),
        "others": (rest, explain("with_signal")),
    }
    columns = ("tool_use_rate", "all_wrong_tool", "all_wrong_no_tool", "accuracy", "zero_signal", "failure_rate")
    return DumpView(
        part=part,
        color=color,
        verdict=_verdict(part),
        facts=_facts(part, explain),
        main=_cells(part, _MAIN, explain, keep_all=True),
        sections=[(title, rows) for title, names in _SECTIONS.items() if (rows := _cells(part, names, explain))],
        no_signal=bars(
            {name: count for name, (count, _) in groups.items()}, {name: t for name, (_, t) in groups.items()}
        ),
        forecast=_forecast(part, explain),
        failures=bars({kind.replace("_", " "): count for kind, count in total.failures.items()}, explain("failures")),
        tools=[
            (
                name,
                tool,
                cell("", tool.failure_rate, explain("tool_failed"), is_share=True),
                cell("", tool.accuracy, explain("tool_right"), is_share=True),
                ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in tool.failures.items()) or "–",
            )
            for name, tool in total.tools.items()
        ],
        tool_counts=bars(total.tool_counts, explain("tool_counts")),
        group_sizes=bars(total.group_sizes, explain("group_sizes")),
        turns=bars(total.turns, explain("turns_histogram")),
        lengths=length_scale(total.lengths),
        steps=step_rows(part.steps, columns),
        step_columns=[
            ("Step", explain("step")),
            ("Rollouts", explain("rollouts")),
            ("Triggered", explain("triggered")),
            *((name.replace("_", " ").capitalize(), explain(name)) for name in columns),
        ],
    )


def _cells(part: PartDiagnosis, names: Sequence[str], explain: _Explainer, *, keep_all: bool = False) -> list[Cell]:
    """Numbers that have a value, or all of them."""
    found = ((name, _rate(part, name)) for name in names)
    return [
        cell(explain.title(name), rate, explain(name), is_share=explain.is_share(name), is_signed=name in _TITLES)
        for name, rate in found
        if keep_all
        or (rate.estimate is not None and (part.total.counts["continuations"] or name not in AFTER_RESAMPLING))
    ]


def _rate(part: PartDiagnosis, name: str) -> Rate:
    special = {"gap": part.total.gap, "tool_use_change": part.tool_use_change}
    return special[name] if name in special else part.total.rates[name]


def _facts(part: PartDiagnosis, explain: _Explainer) -> list[tuple[str, str, str]]:
    counts = part.total.counts
    shown = [
        ("Format", part.title, "format"),
        ("Files", f"{part.num_files:,}", "files"),
        ("Rollouts", f"{counts['rollouts']:,}", "rollouts"),
        ("With a reward", f"{counts['scored']:,}", "scored"),
        ("Groups", f"{counts['groups']:,} of {_sizes(part.total)}", "groups"),
        ("Steps", f"{len(part.steps):,}" if part.steps else "none", "steps"),
        ("Continuations", f"{counts['continuations']:,}", "continuations"),
    ]
    return [(name, text, explain(key)) for name, text, key in shown]


def _sizes(numbers: Numbers) -> str:
    sizes = numbers.group_sizes
    if not sizes:
        return "0"
    common = max(sizes, key=lambda size: sizes[size])
    ends = min(map(int, sizes)), max(map(int, sizes))
    return common if len(sizes) == 1 else f"{common} ({ends[0]} to {ends[1]})"


def _forecast(part: PartDiagnosis, explain: _Explainer) -> list[tuple[str, str, str]]:
    recovery = part.recovery
    fixed = [
        ("Budget r", f"{recovery.budget_frac:g}", "budget_frac"),
        ("Continuations per prefix K", f"{recovery.num_continuations}", "num_continuations"),
        ("Triggered questions", f"{recovery.num_triggered:,}", "triggered"),
        ("Candidates", f"{recovery.num_candidates:,}", "candidates"),
        ("Prefixes chosen", f"{recovery.num_prefixes:,}", "num_prefixes"),
        ("Questions resampled", f"{recovery.num_questions:,}", "num_questions"),
    ]
    expected = [
        ("Expected to recover", _decimal(recovery.expected_recovered), "expected_recovered"),
        ("By new rollouts instead", _decimal(recovery.expected_fresh), "expected_fresh"),
        ("Success of a tool use", percent_text(recovery.tool_success), "tool_success"),
        ("Correlation within questions", number_text(recovery.correlation), "correlation"),
    ]
    return [(name, text, explain(key)) for name, text, key in (*fixed, *expected)]


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _missing(parts: Sequence[PartDiagnosis], names: Sequence[str]) -> list[tuple[Missing, str]]:
    """What cannot be computed, and for which dumps."""
    found: dict[Missing, list[str]] = {}
    for part, name in zip(parts, names, strict=True):
        for missing in part.missing:
            found.setdefault(missing, []).append(name)
    return [(missing, _where(of, len(parts))) for missing, of in found.items()]


def _where(names: Sequence[str], num_parts: int) -> str:
    if len(names) == num_parts:
        return "all dumps" if num_parts > 1 else ""
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
