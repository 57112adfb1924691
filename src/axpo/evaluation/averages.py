"""Headline numbers of benchmarks from what summaries keep of each question: by run, over runs, averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from axpo.errors import DataError
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.scorecard import BenchmarkSummary, QuestionResult
from axpo.measures.estimates import Estimate, Questions, average
from axpo.measures.intervals import Interval
from axpo.measures.rates import RATES, Addends

HEADLINE_TOOL_USE = ("tool_use_rate", "tool_use_any")

Runs = Sequence[Sequence[QuestionResult]]
"""The questions of each training run, in one order."""


def common_k(summaries: Sequence[BenchmarkSummary]) -> int:
    """The largest k of which all have an estimate. Raises `DataError` when there is no benchmark."""
    if not summaries:
        raise DataError("benchmark numbers: there is no benchmark to compare.")
    return min(summary.num_samples for summary in summaries)


def question_addends(name: str) -> Callable[[QuestionResult], Addends]:
    """What a question adds to `pass@K`, `tool_use_rate` or `tool_use_any`. Raises `DataError` for other names."""
    if name in HEADLINE_TOOL_USE:
        return lambda question: RATES[name].addends(question.counts)
    k = name.removeprefix("pass@")
    if k == name or not k.isdecimal():
        raise DataError(f"benchmark numbers: {name!r} is none of pass@K, {', '.join(HEADLINE_TOOL_USE)}.")
    return lambda question: (pass_at_k(question.num_samples, question.num_correct, int(k)), 1.0)


def estimates_of(runs_by_method: Mapping[str, Runs], names: Sequence[str]) -> dict[tuple[str, str], Estimate]:
    """(method, name) -> headline number of one benchmark, the mean over the method's runs.

    The methods' numbers are measured on the same questions, so their difference is paired.

    Args:
        runs_by_method: the same questions in the same order for each run; numbers of samples may differ.
        names: see `question_addends`.

    Raises:
        DataError: when the runs' questions differ, or when a question has fewer samples than K.
    """
    asked = {tuple(question.problem_id for question in run) for runs in runs_by_method.values() for run in runs}
    if len(asked) != 1:
        raise DataError("paired numbers: all runs need the same questions in the same order.")
    questions = Questions([question.cluster for question in next(iter(runs_by_method.values()))[0]])
    return {
        (method, name): questions.ratio([list(map(question_addends(name), run)) for run in runs], method=method)
        for method, runs in runs_by_method.items()
        for name in names
    }


def macro_average(summaries: Sequence[BenchmarkSummary], name: str) -> Interval:
    """Unweighted mean over benchmarks, whose questions are independent.

    Equation: `1/|B| sum_b 1/|Q_b| sum_q x_q`, the averages of the paper's main table (arXiv:2605.28774). Deviation:
    none.

    Args:
        summaries: of different benchmarks.
        name: `pass@K`, `tool_use_rate` or `tool_use_any`.

    Raises:
        DataError: without benchmarks, or when a benchmark has fewer samples than K.
    """
    return average([estimates_of({"": [summary.questions]}, [name])["", name] for summary in summaries]).interval
