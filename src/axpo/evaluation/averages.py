"""Means over benchmarks, and differences on the same questions, from what summaries keep of each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axpo.errors import DataError
from axpo.evaluation.draws import Addends, Ratio, mean_of, resample
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.scorecard import BenchmarkSummary, QuestionResult
from axpo.evaluation.statistics import Interval

HEADLINE_TOOL_USE = ("tool_use_rate", "tool_use_any")


def common_k(summaries: Sequence[BenchmarkSummary]) -> int:
    """The largest k of which all have an estimate. Raises `DataError` of nothing."""
    if not summaries:
        raise DataError("benchmark numbers: there is no benchmark to compare.")
    return min(summary.num_samples for summary in summaries)


def question_addends(name: str) -> Callable[[QuestionResult], Addends]:
    """What a question adds to `pass@K`, `tool_use_rate` or `tool_use_any`. Raises `DataError` for other names."""
    if name == "tool_use_rate":
        return lambda question: (float(question.num_tool), float(question.num_samples))
    if name == "tool_use_any":
        return lambda question: (float(question.num_tool > 0), 1.0)
    k = name.removeprefix("pass@")
    if k == name or not k.isdecimal():
        raise DataError(f"benchmark numbers: {name!r} is none of pass@K, {', '.join(HEADLINE_TOOL_USE)}.")
    return lambda question: (pass_at_k(question.num_samples, question.num_correct, int(k)), 1.0)


def ratio_of(questions: Sequence[QuestionResult], name: str, *, seed: int = 0) -> Ratio:
    """One headline number of one benchmark, see `question_addends`."""
    addends = question_addends(name)
    column = [addends(question) for question in questions]
    return resample({name: column}, clusters=[question.cluster for question in questions], seed=seed)[name]


def difference_of(
    questions: Sequence[QuestionResult], baseline: Sequence[QuestionResult], name: str, *, seed: int = 0
) -> Ratio:
    """`questions` minus `baseline`: the same questions in the same order, drawn together.

    Both may have different numbers of samples. The interval is that of
    `axpo.evaluation.statistics.paired_difference`.

    Raises:
        DataError: when the questions differ.
    """
    if [question.problem_id for question in questions] != [question.problem_id for question in baseline]:
        raise DataError("difference: both sides need the same questions in the same order.")
    addends = question_addends(name)
    columns = {side: [addends(q) for q in asked] for side, asked in (("ours", questions), ("theirs", baseline))}
    ratios = resample(columns, clusters=[question.cluster for question in questions], seed=seed)
    return ratios["ours"] - ratios["theirs"]


def macro_average(summaries: Sequence[BenchmarkSummary], name: str, *, seed: int = 0) -> Interval:
    """Unweighted mean over benchmarks; each is resampled on its own.

    Equation: `1/|B| sum_b 1/|Q_b| sum_q x_q`, the averages of the paper's main table (arXiv:2605.28774). Deviation:
    none.

    Args:
        summaries: of different benchmarks.
        name: `pass@K`, `tool_use_rate` or `tool_use_any`.
        seed: of the draws; every benchmark gets its own from it.

    Raises:
        DataError: of no benchmark, or when a benchmark has fewer samples than K.
    """
    ratios = [ratio_of(s.questions, name, seed=benchmark_seed(seed, index)) for index, s in enumerate(summaries)]
    return mean_of(ratios).interval


def benchmark_seed(seed: int, index: int) -> int:
    """Another one for each benchmark: two of equal size must not draw the same positions."""
    return seed + 1 + index
