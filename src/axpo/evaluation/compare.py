"""Two evaluations on the same questions: differences with intervals, and which questions only one of them solves.

"Tools on against tools off" is the comparison of two evaluations that differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axpo.errors import DataError
from axpo.evaluation.averages import common_k, estimates_of
from axpo.evaluation.scorecard import BenchmarkSummary, QuestionResult, check_unique
from axpo.measures.estimates import Estimate, average, describe_runs
from axpo.measures.intervals import Interval

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
    """Samples per question, of all runs."""
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
    num_runs_a: int
    num_runs_b: int
    includes_training_seeds: bool
    """True when both sides have several runs, so that intervals include the variance between training seeds."""
    benchmarks: tuple[BenchmarkComparison, ...]
    averages: tuple[AverageComparison, ...]
    """Each area with several benchmarks, then all."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    """Benchmarks that only one side has; they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """The runs of one side on one benchmark, cut to the questions that all runs of both sides share, in one order."""

    runs: tuple[BenchmarkSummary, ...]
    questions: tuple[tuple[QuestionResult, ...], ...]
    """Shared questions of each run."""
    num_left_out: int

    @property
    def num_samples(self) -> int:
        return sum(run.num_samples for run in self.runs)

    @property
    def solved(self) -> tuple[bool, ...]:
        """Whether at least one sample of any run is right, for each question."""
        return tuple(any(of.num_correct for of in runs) for runs in zip(*self.questions, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A benchmark of both sides."""

    a: _Side
    b: _Side

    @property
    def first(self) -> BenchmarkSummary:
        return self.a.runs[0]


Numbers = dict[tuple[str, str], Estimate]
"""(side, name) -> number of one benchmark."""


def compare(
    a: Sequence[Sequence[BenchmarkSummary]],
    b: Sequence[Sequence[BenchmarkSummary]],
    *,
    labels: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """A minus B in Pass@1, Pass@k (k: what all have) and tool use; per benchmark, per area, overall.

    Intervals are paired: what makes a question hard for both sides cancels.

    Args:
        a: the benchmarks of each training run of the first side.
        b: those of the second side.
        labels: names of the sides.

    Raises:
        DataError: when a run names a benchmark twice, or when the sides share no benchmark or no question of one.
    """
    for side, label in ((a, labels[0]), (b, labels[1])):
        for run in side:
            check_unique(tuple(run), owner=label)
    names_a, names_b = (_names(side) for side in (a, b))
    names = [name for name in names_a if name in names_b]
    if not names:
        raise DataError(
            f"compare: {labels[0]} has {', '.join(names_a) or 'no benchmark'}, {labels[1]} has "
            f"{', '.join(names_b) or 'no benchmark'}. Nothing was measured on both."
        )
    pairs = [_pair(_of_benchmark(a, name), _of_benchmark(b, name), labels) for name in names]
    k = common_k([run for pair in pairs for side in (pair.a, pair.b) for run in side.runs])
    metrics = tuple(dict.fromkeys(("pass@1", f"pass@{k}", "tool_use_rate", "tool_use_any")))
    numbers = [estimates_of({"a": pair.a.questions, "b": pair.b.questions}, metrics) for pair in pairs]
    return Comparison(
        label_a=labels[0],
        label_b=labels[1],
        num_runs_a=len(a),
        num_runs_b=len(b),
        includes_training_seeds=min(len(a), len(b)) > 1,
        benchmarks=tuple(_compare_one(pair, of) for pair, of in zip(pairs, numbers, strict=True)),
        averages=_averages(pairs, numbers),
        only_in_a=tuple(name for name in names_a if name not in names_b),
        only_in_b=tuple(name for name in names_b if name not in names_a),
    )


def _names(runs: Sequence[Sequence[BenchmarkSummary]]) -> list[str]:
    """Benchmarks that all runs have."""
    names = [{summary.info.name for summary in run} for run in runs]
    return [summary.info.name for summary in runs[0] if all(summary.info.name in of for of in names)] if runs else []


def _of_benchmark(runs: Sequence[Sequence[BenchmarkSummary]], name: str) -> tuple[BenchmarkSummary, ...]:
    return tuple(next(summary for summary in run if summary.info.name == name) for run in runs)


def _pair(a: tuple[BenchmarkSummary, ...], b: tuple[BenchmarkSummary, ...], labels: tuple[str, str]) -> _Pair:
    asked_a, asked_b = (
        set.intersection(*({question.problem_id for question in run.questions} for run in side)) for side in (a, b)
    )
    shared = sorted(asked_a & asked_b)
    if not shared:
        raise DataError(
            f"compare: {a[0].info.title}: {labels[0]} was asked {len(asked_a)} questions, {labels[1]} {len(asked_b)}, "
            "and none is the same. Evaluate both with the same preset, slice and data."
        )
    return _Pair(a=_side(a, shared, len(asked_a)), b=_side(b, shared, len(asked_b)))


def _side(runs: tuple[BenchmarkSummary, ...], shared: Sequence[str], num_asked: int) -> _Side:
    by_id = [{question.problem_id: question for question in run.questions} for run in runs]
    questions = tuple(tuple(of[problem_id] for problem_id in shared) for of in by_id)
    return _Side(runs=runs, questions=questions, num_left_out=num_asked - len(shared))


def _compare_one(pair: _Pair, numbers: Numbers) -> BenchmarkComparison:
    ids = [question.problem_id for question in pair.a.questions[0]]
    solved = list(zip(ids, pair.a.solved, pair.b.solved, strict=True))
    only_a = tuple(problem_id for problem_id, by_a, by_b in solved if by_a and not by_b)
    only_b = tuple(problem_id for problem_id, by_a, by_b in solved if by_b and not by_a)
    return BenchmarkComparison(
        name=pair.first.info.name,
        title=pair.first.info.title,
        area=pair.first.info.area,
        num_shared=len(solved),
        num_only_a=pair.a.num_left_out,
        num_only_b=pair.b.num_left_out,
        num_samples_a=pair.a.num_samples,
        num_samples_b=pair.b.num_samples,
        judged_by_a=_judged_by(pair.a),
        judged_by_b=_judged_by(pair.b),
        differences=_differences([numbers]),
        solved_by_both=sum(by_a and by_b for _, by_a, by_b in solved),
        solved_only_by_a=len(only_a),
        solved_only_by_b=len(only_b),
        solved_by_none=sum(not by_a and not by_b for _, by_a, by_b in solved),
        only_a_ids=only_a,
        only_b_ids=only_b,
    )


def _judged_by(side: _Side) -> str:
    return " and ".join(dict.fromkeys(map(_judge_of, side.runs)))


def _judge_of(summary: BenchmarkSummary) -> str:
    rules = "the authors' rules" if summary.info.is_official else "axpo's rules"
    if not summary.info.needs_judge:
        return rules
    return f"{rules} with {summary.judge}" if summary.judge else f"{rules} without a judge"


def _averages(pairs: Sequence[_Pair], numbers: Sequence[Numbers]) -> tuple[AverageComparison, ...]:
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(pair.first.info.area, []).append(index)
    groups = list(members.items()) if len(members) > 1 else []
    groups.append((OVERALL, list(range(len(pairs)))))
    return tuple(
        AverageComparison(
            title=title,
            benchmarks=tuple(pairs[index].first.info.name for index in indices),
            differences=_differences([numbers[index] for index in indices]),
        )
        for title, indices in groups
        if len(indices) > 1
    )


def _differences(numbers: Sequence[Numbers]) -> tuple[Difference, ...]:
    """Each number of both sides and its difference, averaged over benchmarks."""
    found: list[Difference] = []
    for name in dict.fromkeys(name for _, name in numbers[0]):
        a, b = (average([of[side, name] for of in numbers]) for side in ("a", "b"))
        found.append(Difference(name=name, a=a.interval.estimate, b=b.interval.estimate, difference=(a - b).interval))
    return tuple(found)


# -- text -------------------------------------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: a table of differences in percentage points, and the discordant questions."""
    a, b = _escape(comparison.label_a), _escape(comparison.label_b)
    parts = [
        f"# {a} against {b}",
        f"Differences are {a} − {b} in percentage points on the questions that both were asked, with 95% confidence "
        "intervals clustered by question; in parentheses both sides, in percent. **Bold**: the interval excludes zero.",
        describe_runs({a: comparison.num_runs_a, b: comparison.num_runs_b}),
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
