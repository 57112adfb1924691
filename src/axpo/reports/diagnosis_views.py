"""Numbers of a diagnosis as the page draws them: cells with intervals, bars, a scale of lengths, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.diagnostics.diagnosis import Distribution, PartDiagnosis, StepNumbers
from axpo.measures.sums import Rate

MAX_BARS = 14
"""Of a histogram; what is left is one bar more."""
MAX_STEP_ROWS = 40
MAX_POINTS = 1000
"""Of a curve; steps of a longer dump are pooled in windows of equal length."""

PANELS: Mapping[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "The gap": (
        ("Tool use", "Rollouts that call a tool.", ("tool_use_rate",)),
        (
            "All wrong",
            "Questions whose tries are all wrong. Solid: with a tool. Dashed: without.",
            ("all_wrong_tool", "all_wrong_no_tool"),
        ),
        (
            "After resampling",
            "Solid: all wrong with a tool, recovered ones not counted. Dashed: resampled ones that were recovered.",
            ("all_wrong_tool_post", "restore_rate"),
        ),
    ),
    "Reward and signal": (
        ("Reward", "Mean over rollouts.", ("reward_mean",)),
        ("Right with and without a tool", "Solid: with. Dashed: without.", ("accuracy_tool", "accuracy_no_tool")),
        ("Groups without signal", "One reward for all: no advantage is left.", ("zero_signal",)),
    ),
    "Calls and lengths": (
        ("Failed calls", "Of the answered ones. Dashed: calls that never ran.", ("failure_rate", "never_ran")),
        ("Ended by a limit", "Rollouts that were cut off.", ("truncated",)),
        ("Response length", "Mean, in the unit of the dump.", ("response_length",)),
    ),
}
"""Section -> (title, caption, rates). Rates of one panel have one unit."""


AFTER_RESAMPLING = ("all_wrong_tool_post", "restore_rate", "restore_rate_all", "reward_resampled")
"""Rates that say something only where something was resampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number with its interval. Places of its bar are in percent of the track; None where it has no bar."""

    title: str
    meaning: str
    text: str
    """A dash where there is nothing to count."""
    interval: str
    of: str
    """What it is a share or a mean of, and how many groups that is."""
    place: float | None = None
    start: float = 0.0
    width: float = 0.0
    zero: float | None = None
    """Where a number that may be negative has its zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    share: float
    width: float
    """In percent of the longest."""
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthScale:
    """Quantiles of lengths on a scale from nothing to the longest, in percent of it."""

    unit: str
    numbers: tuple[tuple[str, str, str], ...]
    """(name, text, name of the definition)"""
    marks: tuple[tuple[str, float], ...]
    """(quantile, place)"""
    start: float
    width: float
    """From the 10 % to the 90 % quantile."""


def cell(title: str, rate: Rate, meaning: str, *, is_share: bool, is_signed: bool = False) -> Cell:
    """`is_signed`: a difference of shares, -1 to 1."""
    show = percent_text if is_share else number_text
    has_interval = rate.low is not None and rate.high is not None
    interval = f"{show(rate.low)} to {show(rate.high)}" if has_interval else "no interval"
    groups = f"{rate.num_groups:,} {'group' if rate.num_groups == 1 else 'groups'}"
    of = groups if is_signed else f"n = {rate.denominator:,.0f} in {groups}"
    of = f"n = {groups}" if rate.denominator == rate.num_groups and not is_signed else of
    if rate.estimate is None:
        return Cell(title=title, meaning=meaning, text="–", interval="", of="")
    plain = Cell(title=title, meaning=meaning, text=show(rate.estimate), interval=interval, of=of)
    if not is_share:
        return plain

    def place(value: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, value)) if is_signed else 100 * max(0.0, min(1.0, value))

    low, high = (rate.low, rate.high) if has_interval else (rate.estimate, rate.estimate)
    assert low is not None and high is not None
    return Cell(
        title=title,
        meaning=meaning,
        text=f"{'+' if is_signed and rate.estimate > 0 else ''}{plain.text}",
        interval=interval,
        of=of,
        place=place(rate.estimate) * 0.98,
        start=place(low),
        width=max(0.5, place(high) - place(low)) if has_interval else 0.0,
        zero=50.0 if is_signed else None,
    )


def percent_text(value: float | None) -> str:
    """`12.3 %`, a dash for nothing."""
    return "–" if value is None else f"{100 * value:.1f} %".replace("-", "−")


def number_text(value: float | None) -> str:
    """Three digits; a dash for nothing."""
    if value is None:
        return "–"
    return (f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", "−")


def bars(counts: Mapping[str, int], meaning: str | Mapping[str, str]) -> list[Bar]:
    """A histogram; empty when there is nothing to count.

    >>> [(bar.label, bar.share, bar.width) for bar in bars({"0": 1, "1": 3}, "")]
    [('0', 0.25, 33.3), ('1', 0.75, 100.0)]
    """
    items = list(counts.items())
    rest = sum(count for _, count in items[MAX_BARS:])
    items = [*items[:MAX_BARS], *([("more", rest)] if rest else [])]
    total, longest = sum(count for _, count in items), max((count for _, count in items), default=0)
    return [
        Bar(
            label=label,
            count=count,
            share=count / total,
            width=round(100 * count / longest, 1),
            meaning=meaning if isinstance(meaning, str) else meaning[label],
        )
        for label, count in items
        if longest
    ]


def length_scale(lengths: Distribution) -> LengthScale | None:
    """None when no length is known."""
    quantiles = {"10 %": lengths.p10, "50 %": lengths.p50, "90 %": lengths.p90, "99 %": lengths.p99}
    known = {name: value for name, value in quantiles.items() if value is not None}
    if len(known) < len(quantiles) or not lengths.max:
        return None
    places = {name: min(100.0, 100 * value / lengths.max) for name, value in known.items()}
    numbers = [("mean", number_text(lengths.mean), "response_length")]
    numbers += [(f"{name} below", number_text(value), "quantile") for name, value in known.items()]
    return LengthScale(
        unit=lengths.unit,
        numbers=(*numbers, ("longest", f"{lengths.max:,}", "longest")),
        marks=tuple(places.items()),
        start=places["10 %"],
        width=max(0.5, places["90 %"] - places["10 %"]),
    )


def step_rows(steps: Sequence[StepNumbers], columns: Sequence[str]) -> list[tuple[int | None, list[str]]]:
    """Steps, first and last included, with rollouts, triggered questions and rates with intervals."""
    if len(steps) > MAX_STEP_ROWS:
        steps = [steps[round(index * (len(steps) - 1) / (MAX_STEP_ROWS - 1))] for index in range(MAX_STEP_ROWS)]
    rows: list[tuple[int | None, list[str]]] = []
    for step in steps:
        counts, rates = step.numbers.counts, step.numbers.rates
        texts = [f"{counts['rollouts']:,}", f"{counts['triggered']:,}"]
        rows.append((step.step, [*texts, *(_with_interval(rates[name]) for name in columns)]))
    return rows


def _with_interval(rate: Rate) -> str:
    if rate.estimate is None or rate.low is None or rate.high is None:
        return percent_text(rate.estimate)
    return f"{percent_text(rate.estimate)} ({100 * rate.low:.0f}–{100 * rate.high:.0f})"


# -- curves -----------------------------------------------------------------------------------------------------------


def step_curves(parts: Sequence[PartDiagnosis], explain: Callable[[str], str]) -> dict[str, Any]:
    """What `curves.js` draws: panels with at least one value, and the series of each dump."""
    names = {name for panels in PANELS.values() for _, _, names in panels for name in names}
    series = [
        _series(part.steps, sorted(names - set(() if part.total.counts["continuations"] else AFTER_RESAMPLING)))
        for part in parts
    ]
    known = {key for one in series for key in one["values"]}
    sections: list[dict[str, Any]] = []
    for title, panels in PANELS.items():
        built = [
            {"title": heading, "caption": caption, "keys": keys, "scale": _scale(parts, names)}
            for heading, caption, names in panels
            if (keys := _keys(names, known, explain))
        ]
        if built:
            sections.append({"title": title, "panels": built})
    return {"sections": sections, "series": series}


def _keys(names: Sequence[str], known: set[str], explain: Callable[[str], str]) -> list[dict[str, Any]]:
    keys = [(dash, name) for dash, name in enumerate(names) if f"step/{name}" in known]
    return [{"key": f"step/{name}", "dash": dash, "def": explain(name)} for dash, name in keys]


def _scale(parts: Sequence[PartDiagnosis], names: Sequence[str]) -> str:
    """Rewards between 0 and 1 are drawn as shares, so that they can be compared with them."""
    if names[0] == "response_length":
        return "number"
    found = [step.numbers.rates[name].estimate for part in parts for step in part.steps for name in names]
    return "share" if all(value is None or 0 <= value <= 1 for value in found) else "number"


def _series(steps: Sequence[StepNumbers], names: Sequence[str]) -> dict[str, Any]:
    length = max(1, math.ceil(len(steps) / MAX_POINTS))
    windows = [steps[start : start + length] for start in range(0, len(steps), length)]
    values = {f"step/{name}": [_pooled(window, name) for window in windows] for name in names}
    return {
        "steps": [window[-1].step for window in windows],
        "values": {key: column for key, column in values.items() if any(value is not None for value in column)},
    }


def _pooled(window: Sequence[StepNumbers], name: str) -> float | None:
    """Total over total."""
    rates = [step.numbers.rates[name] for step in window]
    total = sum(rate.denominator for rate in rates)
    return float(f"{sum(rate.numerator for rate in rates) / total:.5g}") if total else None
