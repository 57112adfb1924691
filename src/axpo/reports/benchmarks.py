"""One self-contained HTML page about an evaluation on benchmarks: works offline, runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axpo.errors import DataError
from axpo.evaluation.averages import common_k, macro_average
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import BenchmarkSummary, BreakdownRow
from axpo.evaluation.tallies import AMOUNTS
from axpo.measures.intervals import Interval
from axpo.reports.dialogues import PictureShelf, QuestionView, build_questions
from axpo.reports.paper_table import build_paper_table, paper_html
from axpo.reports.shell import StyleSheet, read_static, render_plain_page
from axpo.reports.shell import write_page as write_whole
from axpo.reports.tables import percent, points, share_range
from axpo.types import Problem

MAX_QUESTIONS = 40
MAX_PICTURE_BYTES = 9_000_000
MAX_TEXT_BYTES = 4_500_000
"""Of all benchmarks together: with the rest the page stays below 15 MB."""
NUM_BINS = 10
MAX_CATEGORY_ROWS = 100

_HEADLINES = {"tool_use_rate": "Tool use, of rollouts", "tool_use_any": "Tool use, of questions"}
_TITLES = {
    "executed_rate": "Rollouts with a call that ran",
    "executed_any": "Questions with a call that ran",
    "valid_call_rate": "Calls that were written rightly",
    "calls_per_rollout": "Calls per rollout",
    "accuracy_tool": "Right, of rollouts that call a tool",
    "accuracy_no_tool": "Right, of rollouts that call none",
    "all_wrong_tool": "All wrong, of questions' tool-using rollouts",
    "all_wrong_no_tool": "All wrong, of questions' direct rollouts",
    "all_wrong_gap": "Gap between the two, in points",
    "truncated": "Ended by a limit",
    "stop/turn_limit": "Ended by the turn limit",
    "stop/token_limit": "Ended by the token limit",
    "stop/time_limit": "Ended by the time limit",
    "lost": "Lost",
    "turns": "Turns per rollout",
    "prompt_tokens": "Prompt tokens per rollout",
    "completion_tokens": "Completion tokens per rollout",
    "seconds": "Seconds per rollout",
    "cost_usd": "US dollars per rollout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRecords:
    """One benchmark of an evaluation with the dialogues behind its numbers."""

    summary: BenchmarkSummary
    problems: tuple[Problem, ...]
    rollouts: tuple[JudgedRollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a page is about."""

    label: str
    """Of the model or method."""
    folder: Path
    """Its `images/` holds the pictures by content hash."""
    benchmarks: tuple[BenchmarkRecords, ...]
    facts: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """What was run: model, sampling, limits, judge, commit, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """One benchmark of the page."""

    index: int
    summary: BenchmarkSummary
    headlines: tuple[tuple[str, Interval], ...]
    numbers: tuple[tuple[str, str, str], ...]
    """(title, value, interval)"""
    tables: tuple[CategoryTable, ...]
    rules: tuple[tuple[str, int, float], ...]
    """(rule, count, share of the largest)"""
    bins: tuple[tuple[str, int, float], ...]
    """(effective share of the pixels, questions, share of the fullest)"""
    questions: tuple[QuestionView, ...]
    num_pictures_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryTable:
    """A breakdown to print."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """(measure, heading)"""
    rows: tuple[BreakdownRow, ...]
    num_left_out: int = 0


def write_page(
    evaluation: Evaluation,
    out_path: Path,
    *,
    others: Sequence[tuple[str, Sequence[BenchmarkSummary]]] = (),
    max_questions: int = MAX_QUESTIONS,
) -> None:
    """Write the page, below 15 MB.

    Args:
        evaluation: numbers and dialogues.
        out_path: the HTML file.
        others: (label, summaries) of further methods, for the table only.
        max_questions: whose dialogues are shown, of each benchmark.

    Raises:
        DataError: without a benchmark.
    """
    values, thumbnails = _context(evaluation, others, max_questions)
    images = "\n".join(f".{name} {{ background-image: url({data}); }}" for name, data in thumbnails.items())
    css = StyleSheet(read_static("benchmarks.css"), images)
    write_whole(render_plain_page("benchmarks.html.j2", css, **values), out_path)


def _context(
    evaluation: Evaluation, others: Sequence[tuple[str, Sequence[BenchmarkSummary]]], max_questions: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values for the template, and thumbnails by CSS class."""
    if not evaluation.benchmarks:
        raise DataError(f"benchmark page of {evaluation.label}: there is no benchmark.")
    summaries = [part.summary for part in evaluation.benchmarks]
    share = len(summaries)
    shelves = [PictureShelf(folder=evaluation.folder, max_bytes=MAX_PICTURE_BYTES // share) for _ in summaries]
    sections = [
        _build_section(index, part, shelf, max_questions, MAX_TEXT_BYTES // share)
        for index, (part, shelf) in enumerate(zip(evaluation.benchmarks, shelves, strict=True))
    ]
    values = {
        "title": evaluation.label,
        "verdict": write_verdict(summaries),
        "facts": dict(evaluation.facts) | _facts(summaries),
        "table": paper_html(build_paper_table([(evaluation.label, summaries), *others])),
        "alarms": [(summary.info.title, alarm) for summary in summaries for alarm in summary.alarms],
        "sections": sections,
    }
    return values, {name: data for shelf in shelves for name, data in shelf.thumbnails.items()}


def write_verdict(summaries: Sequence[BenchmarkSummary]) -> tuple[str, ...]:
    """Sentences that follow from the numbers alone."""
    k = common_k(summaries)
    one, best, tools = (macro_average(summaries, name) for name in ("pass@1", f"pass@{k}", "tool_use_rate"))
    where = summaries[0].info.title if len(summaries) == 1 else f"Unweighted mean of {len(summaries)} benchmarks"
    within = f", {percent(best.estimate)} of the questions solved within {k} tries" if k > 1 else ""
    bounds = f" (95% interval {share_range(one)})" if one.low is not None else ""
    lead = f"{where}: {percent(one.estimate)} right at the first try{bounds}{within}."
    alarms = sum(len(summary.alarms) for summary in summaries)
    said = [lead, f"{percent(tools.estimate)} of the rollouts call a tool. {_gap_sentence(summaries)}".strip()]
    if alarms:
        said.append(f"Read the {alarms} alarms below before you compare." if alarms > 1 else "Read the alarm below.")
    return tuple(said)


def _gap_sentence(summaries: Sequence[BenchmarkSummary]) -> str:
    """All-wrong shares of both subgroups, over all questions of all benchmarks that have both."""
    sides = ("all_wrong_tool", "all_wrong_no_tool")
    known = [[s.number(side).estimate for side in sides] for s in summaries]
    both = [(tool, direct) for tool, direct in known if tool is not None and direct is not None]
    if not both:
        return ""
    tool, direct = (sum(values) / len(both) for values in zip(*both, strict=True))
    over = "" if len(both) == 1 else f" (mean of {len(both)} benchmarks)"
    return (
        f"All tool-using rollouts of a question are wrong in {percent(tool)} of the questions that have any, all "
        f"direct ones in {percent(direct)}{over}."
    )


def _facts(summaries: Sequence[BenchmarkSummary]) -> dict[str, str]:
    tokens = sum(summary.totals.prompt_tokens + summary.totals.completion_tokens for summary in summaries)
    costs = [summary.totals.cost_usd for summary in summaries if summary.totals.cost_usd is not None]
    facts = {
        "Questions": f"{sum(summary.num_questions for summary in summaries):,}",
        "Samples per question": " · ".join(dict.fromkeys(str(summary.num_samples) for summary in summaries)),
        "Tools": " · ".join(dict.fromkeys(tool for summary in summaries for tool in summary.tools)) or "none",
        "Judge": " · ".join(dict.fromkeys(summary.judge for summary in summaries if summary.judge)) or "none",
        "Preset": " · ".join(dict.fromkeys(summary.info.preset for summary in summaries)),
        "Tokens": f"{tokens:,}",
    }
    return facts | ({"Cost": f"${sum(costs):,.2f}"} if costs else {})


# -- sections ---------------------------------------------------------------------------------------------------------


def _build_section(
    index: int, part: BenchmarkRecords, shelf: PictureShelf, max_questions: int, max_text_bytes: int
) -> SectionView:
    summary = part.summary
    questions = build_questions(
        part.problems, part.rollouts, shelf, max_questions=max_questions, max_text_bytes=max_text_bytes
    )
    passes = {m.name: m.name.replace("pass@", "Pass@") for m in summary.measures if m.name.startswith("pass@")}
    scores = {m.name: m.name.replace("score/", "").replace("_", " ") for m in summary.measures if "score/" in m.name}
    return SectionView(
        index=index,
        summary=summary,
        headlines=tuple((title, summary.number(name)) for name, title in (passes | scores | _HEADLINES).items()),
        numbers=tuple(
            (title, _value(name, interval.estimate), _interval(name, interval))
            for name, title in _TITLES.items()
            if (interval := summary.number(name)).estimate is not None
        ),
        tables=_category_tables(summary),
        rules=_bars([(rule.name, rule.count) for rule in summary.rules]),
        bins=_bars(_pixel_bins(summary)),
        questions=questions,
        num_pictures_left_out=shelf.num_left_out,
    )


def _category_tables(summary: BenchmarkSummary) -> tuple[CategoryTable, ...]:
    k = summary.num_samples
    headings = dict.fromkeys(("pass@1", f"pass@{k}"))
    columns = (*((name, name.replace("pass@", "Pass@")) for name in headings), ("tool_use_rate", "Tool use"))
    tables = [
        CategoryTable(
            title=f"By {breakdown.key.replace('_', ' ')}",
            columns=columns,
            rows=breakdown.rows[:MAX_CATEGORY_ROWS],
            num_left_out=max(0, len(breakdown.rows) - MAX_CATEGORY_ROWS),
        )
        for breakdown in summary.breakdowns
    ]
    if summary.rotations:
        names = [measure.name for measure in summary.rotations[0].measures]
        by_rotation = tuple((name, name) for name in names)
        tables.append(CategoryTable(title="Pass@1 by rotation", columns=by_rotation, rows=summary.rotations))
    return tuple(tables)


def _pixel_bins(summary: BenchmarkSummary) -> list[tuple[str, int]]:
    ratios = [question.pixel_ratio for question in summary.questions if question.pixel_ratio is not None]
    if not ratios:
        return []
    counts = [0] * NUM_BINS
    for ratio in ratios:
        counts[min(NUM_BINS - 1, max(0, int(ratio * NUM_BINS)))] += 1
    width = 100 // NUM_BINS
    return [(f"{width * i}–{width * (i + 1)} %", count) for i, count in enumerate(counts)]


def _bars(counts: Sequence[tuple[str, int]]) -> tuple[tuple[str, int, float], ...]:
    largest = max((count for _, count in counts), default=0) or 1
    return tuple((name, count, count / largest) for name, count in counts)


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "all_wrong_gap":
        return points(value)
    if name not in AMOUNTS:
        return percent(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.4f}" if name == "cost_usd" else f"{value:.2f}"


def _interval(name: str, interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{_value(name, interval.low)} to {_value(name, interval.high)}"
