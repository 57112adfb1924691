"""A probe for people: a verdict in two sentences, tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axpo.evaluation.probe_numbers import Correlation, DiversityNumbers, ProbeNumbers, RecoveryNumbers
from axpo.measures.sums import Rate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

FEW_CLUSTERS = 1.5
"""Below so many clusters a prefix, calls hardly differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCounts:
    """How much was sampled, and what was lost to faults of ours."""

    questions: int
    siblings: int
    """Rollouts that ended."""
    siblings_lost: int
    group_size: int
    tool_using: int
    questions_with_tool: int
    """With at least one tool-using sibling."""
    triggered: int
    """Questions whose tool-using siblings are all wrong."""
    candidates: int
    """Failed prefixes that could be continued."""
    prefixes: int
    """Failed prefixes that were continued."""
    probed_questions: int
    continuations: int
    continuations_lost: int
    num_continuations: int
    """K"""
    fresh: int
    fresh_lost: int
    judge_asked: int = 0
    judge_failed: int = 0


def verdict(counts: ProbeCounts, numbers: ProbeNumbers) -> str:
    """Two sentences: how much calls vary, and whether continuing pays; one when nothing could be probed."""
    if not counts.triggered:
        return _nothing_triggered(counts)
    if not numbers.diversity.num_prefixes:
        start = f"Nothing was measured on {_plural(counts.triggered, 'triggered question', 'triggered questions')}"
        if not counts.prefixes:
            return f"{start}: none of the failed calls leaves anything to sample within the limits."
        return f"{start}: all {counts.continuations_lost:,} continuations were lost to infrastructure failures."
    return f"{_how_varied(counts, numbers)} {_how_well(counts, numbers.recovery)}"


def _nothing_triggered(counts: ProbeCounts) -> str:
    if not counts.questions_with_tool:
        return (
            f"Nothing to probe: none of {counts.siblings:,} rollouts calls a tool. Check that the prompt lists the "
            "tools, or fine-tune on demonstrations first."
        )
    return (
        "Nothing to probe: every question on which a tool was called "
        f"({counts.questions_with_tool:,}) has a right tool-using rollout. Probe more questions, or harder ones."
    )


def _how_varied(counts: ProbeCounts, numbers: ProbeNumbers) -> str:
    of = numbers.diversity
    varies = "hardly varies" if (of.clusters.estimate or 0.0) < FEW_CLUSTERS else "varies"
    return (
        f"Sampled again after the same failed thinking, the call {varies}: {counts.num_continuations} calls are of "
        f"{_number(of.clusters)} kinds on average{_range(of.clusters, share=False)}, and {_percent(of.single_cluster)} "
        f"of {_plural(of.num_prefixes, 'prefix', 'prefixes')} give one kind only{_range(of.single_cluster)}"
        f"{_confidence_clause(numbers.correlation)}."
    )


def _confidence_clause(correlation: Correlation) -> str:
    of = correlation.interval
    if of.estimate is None:
        return ""
    if of.low is None or of.high is None or of.low <= 0 <= of.high:
        return "; how sure the policy was of its call says nothing certain about that"
    if of.high < 0:
        return "; the surer the policy was of its call, the less it varies"
    return "; the surer the policy was of its call, the more it varies"


def _how_well(counts: ProbeCounts, recovery: RecoveryNumbers) -> str:
    last = recovery.pass_at[-1]
    found = f"{_percent(recovery.prefixes)} of the prefixes have a right continuation{_range(recovery.prefixes)}"
    if last.difference.estimate is None:
        return f"{found[0].upper()}{found[1:]}; nothing could be compared with fresh rollouts."
    against = (
        f"{found}, {_percent(last.fresh_tool)} a right one that uses a tool among {last.k} fresh rollouts of the "
        f"question{_range(last.fresh_tool)}, {_percent(last.fresh_any)} a right one of either sort"
    )
    low, high = last.difference.low, last.difference.high
    if low is None or high is None:
        return f"{against[0].upper()}{against[1:]}: one question is too few to tell which is better."
    if low > 0:
        return f"Continuing finds right tool use more often than starting over: {against}."
    if high < 0:
        return f"Starting over finds right tool use more often than continuing: {against}."
    return f"Continuing and starting over cannot be told apart: {against}."


# -- terminal ---------------------------------------------------------------------------------------------------------


def render(counts: ProbeCounts, numbers: ProbeNumbers) -> Iterable[RenderableType]:
    """What to print, one after the other, for `rich`."""
    from rich.text import Text

    yield Text(_headline(counts))
    if numbers.diversity.num_prefixes:
        yield _diversity_table(numbers)
        yield _recovery_table(numbers.recovery, counts)
        if numbers.terciles:
            yield _tercile_table(numbers, counts)
        yield Text("\n".join(_details(counts, numbers)))
    yield Text(verdict(counts, numbers), style="bold")


def _headline(counts: ProbeCounts) -> str:
    lost = counts.siblings_lost + counts.continuations_lost + counts.fresh_lost
    return (
        f"{counts.questions:,} questions with {counts.group_size} siblings each, {counts.tool_using:,} of "
        f"{counts.siblings:,} rollouts call a tool, {counts.triggered:,} questions are triggered\n"
        f"{counts.prefixes:,} of {counts.candidates:,} failed prefixes continued {counts.num_continuations} times, "
        f"{counts.fresh:,} fresh rollouts of their {_plural(counts.probed_questions, 'question', 'questions')}\n"
        f"lost to infrastructure failures: {lost:,}"
        + (
            f" ({counts.siblings_lost:,} siblings, {counts.continuations_lost:,} continuations, "
            f"{counts.fresh_lost:,} fresh rollouts)"
            if lost
            else ""
        )
    )


def _diversity_table(numbers: ProbeNumbers) -> Table:
    from rich.markup import escape

    rows = [("all", numbers.diversity)]
    rows += [(tool, of) for tool, of in numbers.by_tool.items() if len(numbers.by_tool) > 1]
    rows += [("all, joined by the judge", numbers.judged_diversity)] if numbers.judged_diversity else []
    table = _table("The call after a failed prefix (D3)", "prefixes", "kinds", "one kind only", "largest", "entropy")
    for name, of in rows:
        table.add_row(escape(name), f"{of.num_prefixes:,}", *_diversity_cells(of))
    return table


def _diversity_cells(of: DiversityNumbers) -> tuple[str, str, str, str]:
    return (
        _with_range(of.clusters, share=False, digits=1),
        _with_range(of.single_cluster),
        _with_range(of.largest_share),
        _with_range(of.entropy, share=False),
    )


def _recovery_table(recovery: RecoveryNumbers, counts: ProbeCounts) -> Table:
    title = "At least one right of k (D4)"
    table = _table(title, "continued", "fresh, with a tool", "difference", "fresh, with or without")
    for row in recovery.pass_at:
        table.add_row(
            f"Pass@{row.k}",
            _with_range(row.continued),
            _with_range(row.fresh_tool),
            _with_range(row.difference, sign="+"),
            _with_range(row.fresh_any),
        )
    table.add_row(f"prefixes, of {recovery.num_prefixes:,}", _with_range(recovery.prefixes))
    table.add_row(f"questions, of {counts.probed_questions:,}", _with_range(recovery.questions))
    return table


def _tercile_table(numbers: ProbeNumbers, counts: ProbeCounts) -> Table:
    title = f"By confidence of the failed call (Pass@{counts.num_continuations}; fresh: with a tool)"
    table = _table(title, "confidence", "kinds", "entropy", "continued", "fresh")
    for third in numbers.terciles:
        last = third.recovery.pass_at[-1]
        table.add_row(
            f"{third.name} ({third.recovery.num_prefixes:,})",
            f"{third.min_confidence:.2f} to {third.max_confidence:.2f}",
            _with_range(third.diversity.clusters, share=False, digits=1),
            _with_range(third.diversity.entropy, share=False),
            _with_range(last.continued),
            _with_range(last.fresh_tool),
        )
    return table


def _details(counts: ProbeCounts, numbers: ProbeNumbers) -> Iterable[str]:
    of = numbers.correlation
    if of.interval.estimate is None:
        yield "Confidence against entropy: no rank correlation, one of them does not vary."
    else:
        low, high = of.interval.low, of.interval.high
        interval = "no interval of so few" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
        yield (
            f"Confidence against entropy: rank correlation {of.interval.estimate:+.2f} ({interval}) over "
            f"{of.num_prefixes:,} prefixes of {_plural(of.num_questions, 'question', 'questions')}."
        )
    yield f"Malformed calls: {_percent(numbers.malformed)} of the continuations{_range(numbers.malformed)}."
    if counts.judge_asked:
        yield f"Judge: {counts.judge_asked:,} pairs asked, {counts.judge_failed:,} without a usable answer."
    yield "Intervals are 95% confidence intervals, clustered by question."


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


# -- cells ------------------------------------------------------------------------------------------------------------


def _with_range(rate: Rate, *, share: bool = True, sign: str = "", digits: int = 2) -> str:
    if rate.estimate is None:
        return "-"
    scale, spec = (100.0, f"{sign}.1f") if share else (1.0, f"{sign}.{digits}f")
    text = format(scale * rate.estimate, spec) + (" %" if share else "")
    if rate.low is None or rate.high is None:
        return text
    bound = f"{sign}.0f" if share else spec
    return f"{text} \\[{format(scale * rate.low, bound)}, {format(scale * rate.high, bound)}]"


def _range(rate: Rate, *, share: bool = True) -> str:
    """` (low to high)`, or nothing without an interval."""
    if rate.low is None or rate.high is None:
        return ""
    if share:
        return f" ({100 * rate.low:.0f} % to {100 * rate.high:.0f} %)"
    return f" ({rate.low:.1f} to {rate.high:.1f})"


def _percent(rate: Rate) -> str:
    return "-" if rate.estimate is None else f"{100 * rate.estimate:.0f} %"


def _number(rate: Rate) -> str:
    return "-" if rate.estimate is None else f"{rate.estimate:.1f}"


def _plural(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
