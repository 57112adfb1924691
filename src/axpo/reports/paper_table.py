"""The paper's table: methods in rows, benchmarks in columns grouped by area, averages; as Markdown and as HTML.

Works for any benchmarks. An average stands only where a method has every benchmark of the group: means over different
sets do not compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from axpo.errors import DataError
from axpo.evaluation.averages import common_k, estimates_of
from axpo.evaluation.scorecard import BenchmarkSummary, check_unique
from axpo.measures.estimates import Estimate, average, describe_runs
from axpo.measures.intervals import UNKNOWN, Interval

AREAS = ("Reasoning", "Perception", "Search", "Own")
PAPER_PRESET = "axpo"
OVERALL = "All"

_ALARM_NOTES = {
    "no_judge": "without the judge that it needs: a lower bound",
    "missing_tool": "without the tool that it needs",
    "other_size": "not the published number of questions",
    "scaled_pictures": "pictures reached the model scaled down to less than half of their pixels",
    "lost_rollouts": "rollouts were lost and count as wrong",
    "truncated": "a limit ended more than a tenth of the rollouts",
    "unused_tool": "an offered tool was never called",
    "judge_failures": "the judge failed on some rollouts, which count as wrong",
    "undecided": "answers that no rule could decide count as wrong",
}
_JUDGING = ("no_judge", "judge_failures", "undecided")
"""Alarms that say nothing about tool use."""
_SIGNS = "†‡§¶‖"
_OF_AVERAGES = "°"
_METHOD = (
    "Percent. Small: 95% confidence interval, clustered by question. Averages are unweighted over benchmarks. In "
    "Pass@k a lost rollout is wrong and stays in n; tool use is of finished rollouts."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A benchmark, or the average of several."""

    title: str
    area: str
    benchmarks: tuple[str, ...]
    size: str
    """Its N; of an average, how many benchmarks."""
    is_average: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number and the signs of its footnotes."""

    interval: Interval
    marks: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One metric of all methods."""

    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """What `paper_markdown` and `paper_html` print."""

    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    footnotes: tuple[tuple[str, str], ...]
    """(sign, text)"""
    caption: str


def build_paper_table(methods: Sequence[tuple[str, Sequence[BenchmarkSummary]]]) -> PaperTable:
    """The table of some methods.

    Args:
        methods: (label, its benchmarks); the order of rows, and within an area that of columns. Those with one label
            are runs of one method (training seeds): their row is the mean.

    Raises:
        DataError: without benchmarks, when a method names one twice, or when runs of a method have others.
    """
    for label, summaries in methods:
        check_unique(tuple(summaries), owner=label)
    every = [summary for _, summaries in methods for summary in summaries]
    k = common_k(every)
    columns = tuple(_columns(every))
    signs = _sign_notes(every)
    metrics = {"pass@1": "Pass@1", f"pass@{k}": f"Pass@{k}"} | {
        "tool_use_rate": "Tool use, of rollouts",
        "tool_use_any": "Tool use, of questions",
    }
    samples = sorted({summary.num_samples for summary in every})
    by_label = _by_label(methods)
    measured = [(label, _measure(runs, list(metrics))) for label, runs in by_label.items()]
    about_runs = describe_runs({label: len(runs) for label, runs in by_label.items()})
    return PaperTable(
        columns=columns,
        sections=tuple(
            Section(
                title=title,
                rows=tuple(
                    (label, tuple(_cell(column, of_method, name, signs) for column in columns))
                    for label, of_method in measured
                ),
            )
            for name, title in metrics.items()
        ),
        footnotes=_footnotes(signs, columns),
        caption=f"{_METHOD} {about_runs} n = {', '.join(map(str, samples))} samples per question.",
    )


def _by_label(methods: Sequence[tuple[str, Sequence[BenchmarkSummary]]]) -> dict[str, list[Sequence[BenchmarkSummary]]]:
    """The runs of each method. Raises `DataError` when they were not asked the same questions."""
    runs_by_label: dict[str, list[Sequence[BenchmarkSummary]]] = {}
    for label, summaries in methods:
        runs_by_label.setdefault(label, []).append(summaries)
    for label, runs in runs_by_label.items():
        asked = {tuple((s.info.name, tuple(q.problem_id for q in s.questions)) for s in run) for run in runs}
        if len(asked) > 1:
            raise DataError(f"{label}: its {len(runs)} runs were not asked the same questions. Give them other labels.")
    return {f"{label} ({len(runs)} runs)" if len(runs) > 1 else label: runs for label, runs in runs_by_label.items()}


def _measure(
    runs: Sequence[Sequence[BenchmarkSummary]], names: Sequence[str]
) -> list[tuple[tuple[BenchmarkSummary, ...], dict[str, Estimate]]]:
    """For each benchmark its runs' summaries, and the means of their numbers."""
    measured: list[tuple[tuple[BenchmarkSummary, ...], dict[str, Estimate]]] = []
    for of_benchmark in zip(*runs, strict=True):
        estimates = estimates_of({"": [summary.questions for summary in of_benchmark]}, names)
        measured.append((of_benchmark, {name: estimates["", name] for name in names}))
    return measured


def _columns(every: Sequence[BenchmarkSummary]) -> Iterator[Column]:
    found = {area: list(dict.fromkeys(s.info.name for s in every if s.info.area == area)) for area in AREAS}
    strangers = sorted({summary.info.area for summary in every} - set(AREAS))
    if strangers:
        raise DataError(f"paper table: area {strangers[0]!r} is none of {', '.join(AREAS)}.")
    used = {area: names for area, names in found.items() if names}
    for area, names in used.items():
        for name in names:
            members = [summary for summary in every if summary.info.name == name]
            sizes = " / ".join(dict.fromkeys(str(summary.num_questions) for summary in members))
            title = members[0].info.title
            yield Column(title=title, area=area, benchmarks=(name,), size=f"N = {sizes}", is_average=False)
        if len(names) > 1 and len(used) > 1:
            yield _average_column("Average", area, names)
    everything = [name for names in used.values() for name in names]
    if len(everything) > 1:
        yield _average_column("Average", OVERALL, everything)


def _average_column(title: str, area: str, names: Sequence[str]) -> Column:
    return Column(title=title, area=area, benchmarks=tuple(names), size=f"of {len(names)}", is_average=True)


def _cell(
    column: Column,
    measured: Sequence[tuple[tuple[BenchmarkSummary, ...], Mapping[str, Estimate]]],
    name: str,
    signs: Mapping[str, str],
) -> Cell:
    members = [(runs, estimates) for runs, estimates in measured if runs[0].info.name in column.benchmarks]
    if len(members) < len(column.benchmarks):
        return Cell(interval=UNKNOWN)
    interval = average([estimates[name] for _, estimates in members]).interval
    is_pass = name.startswith("pass@")
    notes = {note for runs, _ in members for run in runs for note in summary_notes(run, is_pass=is_pass)}
    if column.is_average:
        return Cell(interval=interval, marks=_OF_AVERAGES if notes else "")
    return Cell(interval=interval, marks="".join(sign for text, sign in signs.items() if text in notes))


def summary_notes(summary: BenchmarkSummary, *, is_pass: bool = True) -> tuple[str, ...]:
    """What a reader must know to compare a number with the paper's: of Pass@k, or of tool use."""
    preset = summary.info.preset
    notes = [] if preset == PAPER_PRESET else [f"preset {preset}, not the paper's question set"]
    alarms = [alarm for alarm in summary.alarms if is_pass or alarm.name not in _JUDGING]
    return (*notes, *(_ALARM_NOTES.get(alarm.name, alarm.text) for alarm in alarms))


def _sign_notes(every: Sequence[BenchmarkSummary]) -> dict[str, str]:
    """Footnote -> its sign, in the order of first use."""
    notes = list(dict.fromkeys(note for summary in every for note in summary_notes(summary)))
    return {note: _SIGNS[index] if index < len(_SIGNS) else f"({index + 1})" for index, note in enumerate(notes)}


def _footnotes(signs: dict[str, str], columns: Sequence[Column]) -> tuple[tuple[str, str], ...]:
    notes = tuple((sign, text) for text, sign in signs.items())
    if notes and any(column.is_average for column in columns):
        return (*notes, (_OF_AVERAGES, "a mean over marked numbers"))
    return notes


# -- printing ---------------------------------------------------------------------------------------------------------


def paper_markdown(table: PaperTable, *, level: int = 3) -> str:
    """A Markdown table for each metric, headings of `level`, then footnotes."""
    head = ["", *(_markdown_heading(column) for column in table.columns)]
    parts: list[str] = []
    for section in table.sections:
        lines = [head, ["---", *["---:"] * len(table.columns)]]
        lines += [[_plain(label), *map(_markdown_cell, cells)] for label, cells in section.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts += [f"{'#' * level} {section.title}", body]
    notes = [f"{sign} {_plain(text)}  " for sign, text in table.footnotes]
    return "\n\n".join(filter(None, [*parts, "\n".join(notes), table.caption])) + "\n"


def _markdown_heading(column: Column) -> str:
    if column.is_average:
        return f"*{column.area}*<br><sub>{column.size}</sub>"
    return f"{_plain(column.title)}<br><sub>{column.area}, {column.size}</sub>"


def _markdown_cell(cell: Cell) -> str:
    interval = cell.interval
    if interval.estimate is None:
        return "–"
    small = "" if interval.low is None else f"<br><sub>{_range(interval)}</sub>"
    return f"{_percent(interval.estimate)}{cell.marks}{small}"


def paper_html(table: PaperTable) -> str:
    """One HTML table with a row group for each metric, then footnotes. All names are escaped."""
    groups = "".join(f'<th colspan="{span}" scope="colgroup">{escape(area)}</th>' for area, span in _spans(table))
    heads = "".join(
        f'<th scope="col"{_kind(column)}>{escape(column.title)}<small>{escape(column.size)}</small></th>'
        for column in table.columns
    )
    bodies = "".join(_html_section(section, table.columns) for section in table.sections)
    notes = "".join(f"<li><b>{escape(sign)}</b> {escape(text)}</li>" for sign, text in table.footnotes)
    return (
        f'<div class="scroll"><table class="paper"><thead><tr><td></td>{groups}</tr><tr><td></td>{heads}</tr></thead>'
        f'{bodies}</table></div><ul class="footnotes">{notes}</ul><p class="note">{escape(table.caption)}</p>'
    )


def _html_section(section: Section, columns: Sequence[Column]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(_html_cell(cell, column) for cell, column in zip(cells, columns, strict=True))
        + "</tr>"
        for label, cells in section.rows
    )
    head = (
        f'<tr class="metric"><th scope="rowgroup">{escape(section.title)}</th><td colspan="{len(columns)}"></td></tr>'
    )
    return f"<tbody>{head}{rows}</tbody>"


def _html_cell(cell: Cell, column: Column) -> str:
    interval = cell.interval
    if interval.estimate is None:
        return f"<td{_kind(column)}>–</td>"
    small = "" if interval.low is None else f"<small>{_range(interval)}</small>"
    marks = f"<sup>{escape(cell.marks)}</sup>" if cell.marks else ""
    return f"<td{_kind(column)}>{_percent(interval.estimate)}{marks}{small}</td>"


def _kind(column: Column) -> str:
    return ' class="average"' if column.is_average else ""


def _spans(table: PaperTable) -> list[tuple[str, int]]:
    areas = [column.area for column in table.columns]
    return [(area, areas.count(area)) for area in dict.fromkeys(areas)]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _range(interval: Interval) -> str:
    assert interval.low is not None and interval.high is not None
    return f"{_percent(interval.low)}–{_percent(interval.high)}"


def _plain(text: str) -> str:
    """Text that stays text in a Markdown cell."""
    cleaned = " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
    return cleaned.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*")
