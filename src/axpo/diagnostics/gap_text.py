"""A `Diagnosis` for people: a verdict in two sentences, tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from axpo.diagnostics.diagnosis import Diagnosis, Missing, Numbers, PartDiagnosis, StepNumbers
from axpo.measures.rates import RATES
from axpo.measures.sums import Rate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MAX_STEPS_SHOWN = 12
MAX_TOOLS_SHOWN = 8
MAX_PARTS_SHOWN = 6

_MIN_CALLS = 10
_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "The gap",
        ("tool_use_rate", "tool_use_any", "all_wrong_tool", "all_wrong_no_tool", "all_wrong_tool_post"),
    ),
    (
        "Right and wrong",
        ("accuracy", "accuracy_tool", "accuracy_no_tool", "accuracy_attempted", "reward_mean", "reward_resampled"),
    ),
    ("Groups", ("zero_signal", "all_right", "all_wrong", "same_first_call", "restore_rate", "restore_rate_all")),
    ("Tool calls", ("calls_per_rollout", "failure_rate", "never_ran", "calls_in_thinking")),
    ("Ends and lengths", ("truncated", "response_length", "turns")),
)


# -- verdict ----------------------------------------------------------------------------------------------------------


def verdict(part: PartDiagnosis) -> str:
    """Two sentences: what the rollouts show, and what follows."""
    return f"{_finding(part)} {_consequence(part)}"


def _finding(part: PartDiagnosis) -> str:
    numbers = part.total
    rates, use = numbers.rates, numbers.rates["tool_use_rate"].estimate or 0.0
    tool, no_tool, gap = rates["all_wrong_tool"], rates["all_wrong_no_tool"], numbers.gap
    if not use:
        return f"None of the {numbers.counts['rollouts']:,} rollouts calls a tool."
    used = f"{_percent(use)} of the rollouts call a tool"
    if not numbers.counts["scored"]:
        return f"{used}, but no rollout has a reward, so nothing can be said about right and wrong."
    if numbers.group_sizes.get("1", 0) == numbers.counts["groups"]:
        return f"{used}, but every question has a single rollout, so there are no groups to look into."
    if tool.estimate is None:
        return f"{used}, but none of those has a reward."
    wrong = f"in {_share_text(tool)} of the questions where siblings call one, all of those are wrong"
    if no_tool.estimate is None or gap.estimate is None:
        return f"{used}, and {wrong}; every rollout calls a tool, so there is nothing to compare with."
    against = f"against {_share_text(no_tool)} for siblings without a tool"
    if gap.low is None or gap.high is None:
        return f"{used}, and {wrong}, {against}: too few groups to tell."
    if gap.low > 0:
        return f"The thinking-acting gap is there: {used}, and {wrong}, {against}."
    if gap.high < 0:
        return f"There is no gap, acting does better than thinking: {used}, and {wrong}, {against}."
    return f"No gap can be told from these groups: {used}, and {wrong}, {against}, which may be chance."


def _consequence(part: PartDiagnosis) -> str:
    numbers, recovery = part.total, part.recovery
    calls = numbers.rates["failure_rate"]
    if not numbers.rates["tool_use_rate"].estimate:
        return (
            "AXPO has nothing to resample without a call: check that the prompt lists the tools and that the call "
            "format is one that is read here, or fine-tune on demonstrations first."
        )
    if calls.estimate is not None and calls.estimate > 0.5 and calls.denominator >= _MIN_CALLS:
        worst = max(numbers.failures.items(), key=lambda item: item[1], default=("", 0))[0]
        return (
            f"First mend the tools: {_percent(calls.estimate)} of the answered calls fail, most of them by "
            f"{worst.replace('_', ' ')}, and resampling cannot help there."
        )
    if not recovery.num_triggered:
        return "AXPO would resample nothing here: no question has only wrong tool-using rollouts."
    if not recovery.num_prefixes:
        return (
            f"AXPO would resample nothing: a budget of r = {recovery.budget_frac:g} with K = "
            f"{recovery.num_continuations} is less than one prefix at any step "
            f"with a triggered question ({recovery.num_triggered:,} of them)."
        )
    plan = (
        f"AXPO (r = {recovery.budget_frac:g}, K = {recovery.num_continuations}) would resample "
        f"{_count(recovery.num_prefixes, 'prefix', 'prefixes')} in {recovery.num_questions:,} of "
        f"{_count(recovery.num_triggered, 'triggered question', 'triggered questions')}"
    )
    if recovery.expected_recovered is None:
        return f"{plan}; how many would recover cannot be estimated from this dump."
    return (
        f"{plan} and, by Proposition 1 and its assumptions, recover about {recovery.expected_recovered:,.0f} of them."
    )


# -- terminal ---------------------------------------------------------------------------------------------------------


def render(diagnosis: Diagnosis) -> Iterable[RenderableType]:
    """What to print, one after the other, for `rich`."""
    from rich.text import Text

    for part in diagnosis.parts[:MAX_PARTS_SHOWN]:
        yield Text(f"{part.name}", style="bold")
        yield Text(_headline(part))
        yield _rates_table(part)
        if part.total.tools or part.total.failures:
            yield _tools_table(part.total)
        if len(part.steps) > 1:
            yield _steps_table(part.steps)
        yield Text("\n".join(_details(part)))
        yield Text(verdict(part), style="bold")
        yield Text("")
    yield Text("\n".join(_footnotes(diagnosis)))
    for part in diagnosis.parts[MAX_PARTS_SHOWN:]:
        yield Text(f"{part.name}: {_headline(part)}. {verdict(part)}")
    unread = list(_unread(diagnosis))
    if unread:
        yield Text("\n".join(unread))


def _headline(part: PartDiagnosis) -> str:
    counts = part.total.counts
    words = [
        part.title,
        _count(part.num_files, "file", "files"),
        _count(counts["rollouts"], "rollout", "rollouts"),
        f"{_count(counts['groups'], 'group', 'groups')} of {_sizes(part.total)}",
    ]
    words += [_count(len(part.steps), "step", "steps")] if part.steps else []
    words += [f"{counts['continuations']:,} continuations"] if counts["continuations"] else []
    return ", ".join(words)


def _sizes(numbers: Numbers) -> str:
    """The commonest group size, and how far they spread."""
    sizes = [int(size) for size in numbers.group_sizes]
    if not sizes:
        return "0"
    common = max(numbers.group_sizes, key=lambda size: numbers.group_sizes[size])
    return common if len(sizes) == 1 else f"{common} ({min(sizes)} to {max(sizes)})"


def _rates_table(part: PartDiagnosis) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "", "95 % interval", "of"):
        table.add_column(title, justify="left" if not title else "right")
    table.columns[1].justify = "right"
    for title, names in _SECTIONS:
        known = [(name, part.total.rates[name]) for name in names if part.total.rates[name].estimate is not None]
        if not known:
            continue
        table.add_row(f"[bold]{title}[/bold]")
        for name, rate in known:
            rule = RATES[name]
            label = f"  {rule.title}" + (f" ({part.total.lengths.unit})" if name == "response_length" else "")
            table.add_row(label, *_cells(rate, is_share=rule.is_share))
        if title == "The gap":
            if part.total.gap.estimate is not None:
                table.add_row("  difference of the all-wrong rates", *_cells(part.total.gap, is_share=True)[:2], "")
            if part.tool_use_change.estimate is not None:
                cells = _cells(part.tool_use_change, is_share=True)[:2]
                table.add_row("  change of tool use, first to last fifth of the steps", *cells, "")
    return table


def _tools_table(numbers: Numbers) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tool")
    for title in ("calls", "rollouts", "failed", "right"):
        table.add_column(title, justify="right")
    table.add_column("failures by kind")
    for name in list(numbers.tools)[:MAX_TOOLS_SHOWN]:
        tool = numbers.tools[name]
        failed, right = (_with_interval(rate) for rate in (tool.failure_rate, tool.accuracy))
        table.add_row(escape(name), f"{tool.calls:,}", f"{tool.rollouts:,}", failed, right, _kinds(tool.failures))
    left = len(numbers.tools) - MAX_TOOLS_SHOWN
    if left > 0:
        table.add_row(f"({left} more)")
    table.add_row("[bold]all calls[/bold]", "", "", "", "", _kinds(numbers.failures))
    return table


def _steps_table(steps: Sequence[StepNumbers]) -> Table:
    from rich import box
    from rich.table import Table

    columns = ("tool_use_rate", "all_wrong_tool", "all_wrong_no_tool", "accuracy", "zero_signal", "failure_rate")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("step", "rollouts", "triggered", *(name.replace("_", " ") for name in columns)):
        table.add_column(title, justify="right")
    for step in _spread(steps, MAX_STEPS_SHOWN):
        numbers = step.numbers
        counts = (f"{numbers.counts['rollouts']:,}", f"{numbers.counts['triggered']:,}")
        table.add_row(str(step.step), *counts, *(_with_interval(numbers.rates[name]) for name in columns))
    return table


def _spread(steps: Sequence[StepNumbers], count: int) -> list[StepNumbers]:
    """`count` of them, first and last included."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _details(part: PartDiagnosis) -> Iterable[str]:
    numbers, counts, recovery = part.total, part.total.counts, part.recovery
    without = {
        "one sample": counts["no_signal_one_sample"],
        "all right": counts["no_signal_all_right"],
        "all wrong": counts["no_signal_all_wrong"],
    }
    if any(without.values()):
        yield "Groups without signal: " + ", ".join(f"{count:,} {why}" for why, count in without.items()) + "."
    yield "Tool-using rollouts per group: " + _histogram(numbers.tool_counts) + "."
    if numbers.turns:
        yield "Turns per rollout: " + _histogram(numbers.turns) + "."
    lengths = numbers.lengths
    if lengths.p50 is not None:
        yield (
            f"Response lengths in {lengths.unit}: 10 % below {lengths.p10:,.0f}, half below {lengths.p50:,.0f}, "
            f"90 % below {lengths.p90:,.0f}, 99 % below {lengths.p99:,.0f}, longest {lengths.max:,}."
        )
    if recovery.num_triggered:
        yield (
            f"Under r = {recovery.budget_frac:g}, K = {recovery.num_continuations}: "
            f"{_count(recovery.num_triggered, 'triggered question', 'triggered questions')} with "
            f"{_count(recovery.num_candidates, 'candidate', 'candidates')}, "
            f"{_count(recovery.num_prefixes, 'prefix', 'prefixes')} chosen in "
            f"{_count(recovery.num_steps, 'step', 'steps')}."
        )
    if recovery.expected_recovered is not None and recovery.expected_fresh is not None:
        yield (
            f"Expected to recover {recovery.expected_recovered:,.1f} of {recovery.num_questions:,} by continuing "
            f"prefixes, {recovery.expected_fresh:,.1f} by as many new rollouts (assumptions below)."
        )
    elif recovery.num_triggered and recovery.why_not:
        yield f"No expectation of recovery: {recovery.why_not}"
    yield from part.notes


def _footnotes(diagnosis: Diagnosis) -> Iterable[str]:
    """What is the same for many dumps, once."""
    shown = diagnosis.parts[:MAX_PARTS_SHOWN]
    if any(part.recovery.expected_recovered is not None for part in shown):
        yield "The expected recovery assumes:"
        yield from (f"  - {assumption}" for assumption in shown[0].recovery.assumptions)
    parts_of: dict[Missing, list[str]] = {}
    for part in shown:
        for missing in part.missing:
            parts_of.setdefault(missing, []).append(part.name)
    for missing, names in parts_of.items():
        where = "" if len(names) == len(shown) else f" for {', '.join(names)}"
        yield f"{missing.name} cannot be computed{where}: {missing.why}. Needed: {missing.needed}."


def _unread(diagnosis: Diagnosis) -> Iterable[str]:
    if diagnosis.num_malformed:
        yield f"Skipped {_count(diagnosis.num_malformed, 'malformed row', 'malformed rows')}, first:"
        yield from (f"  {place}" for place in diagnosis.malformed)
    if diagnosis.num_skipped:
        yield f"Not read: {_count(diagnosis.num_skipped, 'file', 'files')}, first:"
        yield from (f"  {place}" for place in diagnosis.skipped)


# -- cells ------------------------------------------------------------------------------------------------------------


def _cells(rate: Rate, *, is_share: bool) -> tuple[str, str, str]:
    """Estimate, interval, denominator."""
    show = _percent if is_share else _number
    interval = "-" if rate.low is None or rate.high is None else f"{show(rate.low)} to {show(rate.high)}"
    return "-" if rate.estimate is None else show(rate.estimate), interval, f"{rate.denominator:,.0f}"


def _with_interval(rate: Rate) -> str:
    if rate.estimate is None:
        return "-"
    if rate.low is None or rate.high is None:
        return _percent(rate.estimate)
    return f"{_percent(rate.estimate)} \\[{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _share_text(rate: Rate) -> str:
    if rate.estimate is None:
        return "-"
    if rate.low is None or rate.high is None:
        return _percent(rate.estimate)
    return f"{_percent(rate.estimate)} ({_percent(rate.low)} to {_percent(rate.high)})"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _kinds(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in failures.items()) or "-"


def _histogram(counts: Mapping[str, int]) -> str:
    """`value: share`, all beyond ten values together."""
    total = sum(counts.values())
    items = list(counts.items())
    shown = [f"{value}: {100 * count / total:.0f} %" for value, count in items[:10]]
    rest = sum(count for _, count in items[10:])
    return ", ".join(shown) + (f", more: {100 * rest / total:.0f} %" if rest else "")
