"""Means over benchmarks, and differences on the same questions, from what summaries keep of each question."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

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


def ratios_of(
    questions_by_side: Mapping[str, Sequence[QuestionResult]], names: Sequence[str], *, seed: int = 0
) -> dict[tuple[str, str], Ratio]:
    """(side, name) -> headline number of one benchmark, all from the same draws, so that sides can be subtracted.

    The difference of two sides has the interval of `axpo.evaluation.statistics.paired_difference`.

    Args:
        questions_by_side: the same questions in the same order for each side; numbers of samples may differ.
        names: see `question_addends`.
        seed: of the draws.

    Raises:
        DataError: when the sides' questions differ, or when a question has fewer samples than K.
    """
    asked = {tuple(question.problem_id for question in questions) for questions in questions_by_side.values()}
    if len(asked) != 1:
        raise DataError("paired numbers: all sides need the same questions in the same order.")
    named = {name: question_addends(name) for name in names}
    columns = {
        f"{side}/{name}": [addends(question) for question in questions]
        for side, questions in questions_by_side.items()
        for name, addends in named.items()
    }
    clusters = [question.cluster for question in next(iter(questions_by_side.values()))]
    ratios = resample(columns, clusters=clusters, seed=seed)
    return {(side, name): ratios[f"{side}/{name}"] for side in questions_by_side for name in names}


def headlines_of(summary: BenchmarkSummary, names: Sequence[str], *, seed: int = 0) -> dict[str, Ratio]:
    """Headline numbers of one benchmark by name."""
    ratios = ratios_of({"": summary.questions}, names, seed=benchmark_seed(summary, seed))
    return {name: ratios["", name] for name in names}


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
    return mean_of([headlines_of(summary, [name], seed=seed)[name] for summary in summaries]).interval


def benchmark_seed(summary: BenchmarkSummary, seed: int) -> int:
    """Another one for each benchmark: two of equal size must not draw the same positions."""
    return seed + zlib.crc32(summary.info.name.encode())
