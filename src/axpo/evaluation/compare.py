"""Two evaluations on the same questions: differences with intervals, and which questions only one of them solves.

"Tools on against tools off" is the comparison of two evaluations that differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axpo.errors import DataError
from axpo.evaluation.averages import benchmark_seed, common_k, ratios_of
from axpo.evaluation.draws import Ratio, mean_of
from axpo.evaluation.scorecard import BenchmarkSummary, QuestionResult, check_unique
from axpo.evaluation.statistics import Interval

OVERALL = "Overall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number of both sides and A minus B, in shares."""

    name: str
    a: float | None
    b: float | None
    difference: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkComparison:
    """One benchmark on the questions that both were asked."""

    name: str
    title: str
    area: str
    num_shared: int
    num_only_a: int
    num_only_b: int
    """Questions that only one side was asked; they are left out."""
    num_samples_a: int
    num_samples_b: int
    judged_by_a: str
    judged_by_b: str
    """Whose rules, and which judge."""
    differences: tuple[Difference, ...]
    solved_by_both: int
    solved_only_by_a: int
    solved_only_by_b: int
    """Solved: at least one sample is right. The two are the discordant pairs."""
    solved_by_none: int
    only_a_ids: tuple[str, ...]
    only_b_ids: tuple[str, ...]
    """Problem ids of the discordant pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageComparison:
    """An unweighted mean over benchmarks."""

    title: str
    benchmarks: tuple[str, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B."""

    label_a: str
    label_b: str
    benchmarks: tuple[BenchmarkComparison, ...]
    averages: tuple[AverageComparison, ...]
    """Each area with several benchmarks, then all."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    """Benchmarks that only one side has; they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A benchmark of both sides, cut to the questions they share, in one order."""

    a: BenchmarkSummary
    b: BenchmarkSummary
    questions_a: tuple[QuestionResult, ...]
    questions_b: tuple[QuestionResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """A number of both sides with its draws."""

    a: Ratio
    b: Ratio
    difference: Ratio


def compare(
    a: Sequence[BenchmarkSummary],
    b: Sequence[BenchmarkSummary],
    *,
    labels: tuple[str, str] = ("A", "B"),
    seed: int = 0,
) -> Comparison:
    """A minus B in Pass@1, Pass@k (k: what all have) and tool use; per benchmark, per area, overall.

    Intervals are paired: both sides are resampled with the same clusters of questions. Averages resample each
    benchmark on its own.

    Raises:
        DataError: when a side names a benchmark twice, or when they share no benchmark or no question of one.
    """
    check_unique(tuple(a), owner=labels[0])
    check_unique(tuple(b), owner=labels[1])
    names_a, names_b = ([summary.info.name for summary in side] for side in (a, b))
    by_name = {summary.info.name: summary for summary in b}
    pairs = [_pair(summary, by_name[summary.info.name], labels) for summary in a if summary.info.name in by_name]
    if not pairs:
        raise DataError(
            f"compare: {labels[0]} has {', '.join(names_a) or 'no benchmark'}, {labels[1]} has "
            f"{', '.join(names_b) or 'no benchmark'}. Nothing was measured on both."
        )
    k = common_k([summary for pair in pairs for summary in (pair.a, pair.b)])
    metrics = tuple(dict.fromkeys(("pass@1", f"pass@{k}", "tool_use_rate", "tool_use_any")))
    sides = [_measure(pair, metrics, seed=benchmark_seed(pair.a, seed)) for pair in pairs]
    return Comparison(
        label_a=labels[0],
        label_b=labels[1],
        benchmarks=tuple(_compare_one(pair, numbers) for pair, numbers in zip(pairs, sides, strict=True)),
        averages=_averages(pairs, sides),
        only_in_a=tuple(name for name in names_a if name not in names_b),
        only_in_b=tuple(name for name in names_b if name not in names_a),
    )


def _pair(a: BenchmarkSummary, b: BenchmarkSummary, labels: tuple[str, str]) -> _Pair:
    of_a, of_b = ({question.problem_id: question for question in side.questions} for side in (a, b))
    shared = sorted(of_a.keys() & of_b.keys())
    if not shared:
        raise DataError(
            f"compare: {a.info.title}: {labels[0]} was asked {len(of_a)} questions, {labels[1]} {len(of_b)}, and none "
            "is the same. Evaluate both with the same preset, slice and data."
        )
    return _Pair(
        a=a,
        b=b,
        questions_a=tuple(of_a[problem_id] for problem_id in shared),
        questions_b=tuple(of_b[problem_id] for problem_id in shared),
    )


def _measure(pair: _Pair, names: Sequence[str], *, seed: int) -> dict[str, _Sides]:
    ratios = ratios_of({"a": pair.questions_a, "b": pair.questions_b}, names, seed=seed)
    return {
        name: _Sides(a=ratios["a", name], b=ratios["b", name], difference=ratios["a", name] - ratios["b", name])
        for name in names
    }


def _compare_one(pair: _Pair, numbers: dict[str, _Sides]) -> BenchmarkComparison:
    solved = [
        (a.problem_id, a.num_correct > 0, b.num_correct > 0)
        for a, b in zip(pair.questions_a, pair.questions_b, strict=True)
    ]
    only_a = tuple(problem_id for problem_id, by_a, by_b in solved if by_a and not by_b)
    only_b = tuple(problem_id for problem_id, by_a, by_b in solved if by_b and not by_a)
    return BenchmarkComparison(
        name=pair.a.info.name,
        title=pair.a.info.title,
        area=pair.a.info.area,
        num_shared=len(solved),
        num_only_a=len(pair.a.questions) - len(solved),
        num_only_b=len(pair.b.questions) - len(solved),
        num_samples_a=pair.a.num_samples,
        num_samples_b=pair.b.num_samples,
        judged_by_a=_judged_by(pair.a),
        judged_by_b=_judged_by(pair.b),
        differences=tuple(_difference(name, [sides]) for name, sides in numbers.items()),
        solved_by_both=sum(by_a and by_b for _, by_a, by_b in solved),
        solved_only_by_a=len(only_a),
        solved_only_by_b=len(only_b),
        solved_by_none=sum(not by_a and not by_b for _, by_a, by_b in solved),
        only_a_ids=only_a,
        only_b_ids=only_b,
    )


def _judged_by(summary: BenchmarkSummary) -> str:
    rules = "the authors' rules" if summary.info.is_official else "axpo's rules"
    if not summary.info.needs_judge:
        return rules
    return f"{rules} with {summary.judge}" if summary.judge else f"{rules} without a judge"


def _averages(pairs: Sequence[_Pair], numbers: Sequence[dict[str, _Sides]]) -> tuple[AverageComparison, ...]:
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(pair.a.info.area, []).append(index)
    groups = list(members.items()) if len(members) > 1 else []
    groups.append((OVERALL, list(range(len(pairs)))))
    return tuple(
        AverageComparison(
            title=title,
            benchmarks=tuple(pairs[index].a.info.name for index in indices),
            differences=tuple(_difference(name, [numbers[index][name] for index in indices]) for name in numbers[0]),
        )
        for title, indices in groups
        if len(indices) > 1
    )


def _difference(name: str, sides: Sequence[_Sides]) -> Difference:
    return Difference(
        name=name,
        a=mean_of([side.a for side in sides]).interval.estimate,
        b=mean_of([side.b for side in sides]).interval.estimate,
        difference=mean_of([side.difference for side in sides]).interval,
    )


# -- text -------------------------------------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: a table of differences in percentage points, and the discordant questions."""
    a, b = _escape(comparison.label_a), _escape(comparison.label_b)
    parts = [
        f"# {a} against {b}",
        f"Differences are {a} − {b} in percentage points on the questions that both were asked, with 95 % intervals "
        "of a paired bootstrap clustered by question; in parentheses both sides, in percent. **Bold**: the interval "
        "excludes zero.",
        _difference_table(comparison),
        "## Questions",
        "Solved: at least one sample is right.",
        _question_table(comparison, a, b),
        *_remarks(comparison, a, b),
    ]
    return "\n\n".join(parts) + "\n"


def _difference_table(comparison: Comparison) -> str:
    names = [difference.name for difference in comparison.benchmarks[0].differences]
    lines = [["", "N", *(metric_title(name) for name in names)]]
    lines += [
        [_escape(one.title), str(one.num_shared), *(_cell(difference) for difference in one.differences)]
        for one in comparison.benchmarks
    ]
    lines += [
        [f"*{average.title}*", f"{len(average.benchmarks)} sets", *(_cell(d) for d in average.differences)]
        for average in comparison.averages
    ]
    return _table(lines)


def _question_table(comparison: Comparison, a: str, b: str) -> str:
    lines = [["", "both", f"only {a}", f"only {b}", "none"]]
    for one in comparison.benchmarks:
        counts = (one.solved_by_both, one.solved_only_by_a, one.solved_only_by_b, one.solved_by_none)
        lines.append([_escape(one.title), *map(str, counts)])
    return _table(lines)


def _remarks(comparison: Comparison, a: str, b: str) -> list[str]:
    remarks = [
        f"- {_escape(one.title)}: {one.num_only_a} of {a}'s questions and {one.num_only_b} of {b}'s have no "
        "counterpart and are left out."
        for one in comparison.benchmarks
        if one.num_only_a or one.num_only_b
    ]
    remarks += [
        f"- {_escape(one.title)}: {one.num_samples_a} samples a question of {a}, {one.num_samples_b} of {b}; "
        "who has more solves more."
        for one in comparison.benchmarks
        if one.num_samples_a != one.num_samples_b
    ]
    remarks += [
        f"- {_escape(one.title)}: {a} was judged by {_escape(one.judged_by_a)}, {b} by {_escape(one.judged_by_b)}; a "
        "part of the difference is theirs."
        for one in comparison.benchmarks
        if one.judged_by_a != one.judged_by_b
    ]
    for label, names in ((a, comparison.only_in_a), (b, comparison.only_in_b)):
        if names:
            remarks.append(f"- Only {label} has {', '.join(map(_escape, names))}.")
    return ["\n".join(remarks)] if remarks else []


def metric_title(name: str) -> str:
    """`pass@4` -> `Pass@4`, for headings."""
    titles = {"tool_use_rate": "Tool use (rollouts)", "tool_use_any": "Tool use (questions)"}
    return titles.get(name, name.replace("pass@", "Pass@"))


def _cell(difference: Difference) -> str:
    interval = difference.difference
    if interval.estimate is None:
        return "–"
    sides = f"({_percent(difference.a)} / {_percent(difference.b)})"
    if interval.low is None or interval.high is None:
        return f"{_points(interval.estimate)} {sides}"
    text = f"{_points(interval.estimate)} [{_points(interval.low)}, {_points(interval.high)}]"
    return f"**{text}** {sides}" if interval.low > 0 or interval.high < 0 else f"{text} {sides}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−") if abs(value) >= 0.0005 else "0.0"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _escape(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())
