"""Numbers measured on questions, by one training run or several, that can be subtracted and averaged with intervals.

Axis letters: S training run, Q question, C cluster of questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axpo.errors import DataError
from axpo.measures.intervals import UNKNOWN, Interval, Part, RunVariance, combine

Array = NDArray[np.float64]


class Questions:
    """The questions that numbers are measured on. Numbers of one `Questions` object are paired in a difference."""

    def __init__(self, clusters: Sequence[str]) -> None:
        """`clusters` [Q]: label of what a question shares with others, such as its image; else the question's own."""
        if not clusters:
            raise DataError("intervals: need at least one question.")
        labels, self._index_Q = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self._num_clusters = len(labels)

    def ratio(self, addends: ArrayLike, *, is_share: bool = True, method: str = "") -> Estimate:
        """Total numerator over total denominator.

        Args:
            addends: [Q, 2] numerator and denominator of each question; [S, Q, 2] of several training runs, whose
                ratios are averaged. A run without a denominator is left out.
            is_share: Whether the ratio is in 0..1.
            method: Whose runs they are. Numbers of one method come from the same runs.

        Raises:
            DataError: The shape does not fit the questions.

        >>> Questions(["a", "b"]).ratio([(1.0, 4.0), (3.0, 4.0)]).interval.estimate
        0.5
        """
        table = np.asarray(addends, dtype=np.float64)
        table_SQD = table[None] if table.ndim == 2 else table
        if table_SQD.ndim != 3 or 0 in table_SQD.shape or table_SQD.shape[1:] != (len(self._index_Q), 2):
            raise DataError(
                f"intervals: expected numerator and denominator of {len(self._index_Q)} questions, in one run or in "
                f"several, got an array of shape {table.shape}."
            )
        totals_CSD = np.zeros((self._num_clusters, len(table_SQD), 2))
        np.add.at(totals_CSD, self._index_Q, table_SQD.swapaxes(0, 1))
        return Estimate((_Term(self, method, is_share, totals_CSD[..., 0].T, totals_CSD[..., 1].T),))


class _Term:
    """A ratio with its weight in an `Estimate`."""

    def __init__(
        self, questions: Questions, method: str, is_share: bool, numerators_SC: Array, denominators_SC: Array
    ) -> None:
        self.questions, self.method, self.weight = questions, method, 1.0
        self._is_share = is_share
        totals_S = denominators_SC.sum(axis=1)
        # To first order, a cluster shifts the ratio R = N / D by (n - R d) / D, its influence. Squares add up to the
        # variance of `axpo.measures.intervals`; the products of two ratios' influences add up to their covariance.
        with np.errstate(divide="ignore", invalid="ignore"):  # a run without a denominator has no ratio
            self.values_S = np.where(totals_S > 0, numerators_SC.sum(axis=1) / totals_S, np.nan)
            share_SC = denominators_SC / totals_S[:, None]
            influence_SC = numerators_SC / totals_S[:, None] - self.values_S[:, None] * share_SC
        is_defined_S = totals_S > 0
        self._num_clusters = int((denominators_SC > 0).any(axis=0).sum())
        correction = math.sqrt(self._num_clusters / (self._num_clusters - 1)) if self._num_clusters > 1 else 0.0
        self.influence_SC = influence_SC * correction
        """Influence of each cluster on each run's ratio; NaN in runs without a ratio."""
        if is_defined_S.any():
            self.mean_influence_C = self.influence_SC[is_defined_S].mean(axis=0)
            self._size = 1 / float((share_SC[is_defined_S].mean(axis=0) ** 2).sum())
            self.value = float(self.values_S[is_defined_S].mean())
        else:
            self.value, self._size, self.mean_influence_C = math.nan, 0.0, influence_SC[0]

    def times(self, factor: float) -> _Term:
        term = object.__new__(_Term)
        term.__dict__.update(self.__dict__)
        term.weight = self.weight * factor
        return term

    @property
    def part(self) -> Part:
        return Part(
            estimate=self.value,
            variance=float(self.mean_influence_C @ self.mean_influence_C),
            num_clusters=self._num_clusters,
            size=self._size,
            is_share=self._is_share,
            weight=self.weight,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A sum of weighted ratios: one ratio, a difference, or an average over benchmarks."""

    terms: tuple[_Term, ...]

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference; what both share, questions or runs, cancels."""
        return Estimate((*self.terms, *(term.times(-1.0) for term in other.terms)))

    @property
    def interval(self) -> Interval:
        """The estimate with its 95% interval; unknown where a ratio has nothing to count."""
        if any(math.isnan(term.value) for term in self.terms):
            return UNKNOWN
        covariances = [
            [float(a.mean_influence_C @ b.mean_influence_C) if a.questions is b.questions else 0.0 for b in self.terms]
            for a in self.terms
        ]
        methods = dict.fromkeys(term.method for term in self.terms)
        runs = [_run_variance([term for term in self.terms if term.method == method]) for method in methods]
        return combine([term.part for term in self.terms], covariances, [run for run in runs if run is not None])


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean. Raises `DataError` when there is nothing to average."""
    if not estimates:
        raise DataError("intervals: an average needs at least one number.")
    return Estimate(tuple(term.times(1 / len(estimates)) for estimate in estimates for term in estimate.terms))


def describe_runs(num_runs: Mapping[str, int]) -> str:
    """A sentence on what intervals of these methods say about training seeds; method -> its number of runs."""
    single = [method for method, count in num_runs.items() if count == 1]
    if not single:
        return "Intervals include the variance between training runs."
    if len(single) < len(num_runs):
        return f"{', '.join(single)}: one run, so its variance between training seeds is not in the intervals."
    return (
        "One run of each method: intervals do not include the variance between training seeds. Two runs of one method "
        "may differ by more than they say."
    )


def _run_variance(terms: Sequence[_Term]) -> RunVariance | None:
    """Variance between the runs of one method; None with fewer than two runs that have all the ratios."""
    if len({len(term.values_S) for term in terms}) > 1:
        return None
    values_S = np.sum([term.weight * term.values_S for term in terms], axis=0)
    is_defined_S = np.isfinite(values_S)
    num_runs = int(is_defined_S.sum())
    if num_runs < 2:
        return None
    # Runs of one policy would still differ by their samples: by what each cluster adds to one run and not to another.
    # Terms on the same questions add up before the variance is taken, because their noise may cancel.
    by_questions: dict[int, Array] = {}
    for term in terms:
        influence_SC = term.weight * term.influence_SC[is_defined_S]
        key = id(term.questions)
        by_questions[key] = by_questions[key] + influence_SC if key in by_questions else influence_SC
    noise = sum(float(influence_SC.var(axis=0, ddof=1).sum()) for influence_SC in by_questions.values())
    between = float(values_S[is_defined_S].var(ddof=1))
    return RunVariance(between=between / num_runs, noise=noise / num_runs, degrees=num_runs - 1)
