"""Many numbers of one set of questions from the same resamples, and what is built from them: means and differences.

Axis letters: Q question, R resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from axpo.errors import DataError
from axpo.evaluation.statistics import Array, Interval, clustered_bootstrap, ratio_of_totals

Addends = tuple[float, float]
"""Numerator and denominator that one question adds."""
NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of totals over questions with its bootstrap distribution; NaN where the denominator is zero."""

    estimate: float
    draws_R: Array
    """[num_resamples]; all NaN where one cluster alone tells: no interval follows from a single observation."""

    def __sub__(self, other: Ratio) -> Ratio:
        """The difference, resample by resample: paired when both come from one call of `resample`."""
        return Ratio(estimate=self.estimate - other.estimate, draws_R=self.draws_R - other.draws_R)

    @property
    def interval(self) -> Interval:
        """The estimate with its 95 % percentile interval; None where it is undefined."""
        draws_R = self.draws_R[np.isfinite(self.draws_R)]
        if not np.isfinite(self.estimate):
            return Interval(estimate=None, low=None, high=None)
        if draws_R.size == 0:
            return Interval(estimate=float(self.estimate), low=None, high=None)
        low, high = np.quantile(draws_R, [0.025, 0.975])
        return Interval(estimate=float(self.estimate), low=float(low), high=float(high))


def mean_over_runs(runs: Sequence[Ratio], *, seed: int = 0) -> Ratio:
    """The mean over runs of one method (training seeds), which were drawn with the same questions.

    Every resample draws runs, too, with replacement. With few runs the interval is too narrow by about
    sqrt((S - 1) / S).

    >>> once = Ratio(estimate=0.25, draws_R=np.array([0.2, 0.3]))
    >>> mean_over_runs([once, Ratio(estimate=0.75, draws_R=np.array([0.7, 0.8]))]).estimate
    0.5
    """
    draws_SR = np.stack([run.draws_R for run in runs])
    if len(runs) > 1:
        chosen_SR = np.random.default_rng(seed).integers(len(runs), size=draws_SR.shape)
        draws_SR = np.take_along_axis(draws_SR, chosen_SR, axis=0)
    return Ratio(estimate=float(np.mean([run.estimate for run in runs])), draws_R=draws_SR.mean(axis=0))


def resample(
    addends_by_name: Mapping[str, Sequence[Addends]], *, clusters: Sequence[str], seed: int = 0
) -> dict[str, Ratio]:
    """Total numerator over total denominator of each name, with one set of bootstrap draws for all of them.

    The draws are those of `axpo.evaluation.statistics.clustered_bootstrap`, so that a number has the same interval
    whether it is computed alone or with others. A number to which fewer than two clusters contribute has no interval.

    Args:
        addends_by_name: for each name [Q] what each question adds.
        clusters: [Q] label of what a question shares with others; they are drawn together.
        seed: of the draws.

    Raises:
        DataError: without questions, or when the lengths differ.

    >>> resample({"pass@1": [(1.0, 4.0), (3.0, 4.0)]}, clusters=["a", "b"])["pass@1"].estimate
    0.5
    """
    names = list(addends_by_name)
    if not names or any(len(column) != len(clusters) for column in addends_by_name.values()):
        lengths = sorted({len(column) for column in addends_by_name.values()})
        raise DataError(f"resample: {len(clusters)} cluster labels for columns of {lengths} questions.")
    table = np.concatenate([np.asarray(addends_by_name[name], dtype=np.float64) for name in names], axis=1)
    kept: list[Array] = []

    def keep(totals: Array) -> Array:
        kept.append(totals)
        return totals[..., 0]

    clustered_bootstrap(table, keep, clusters=clusters, num_resamples=NUM_RESAMPLES, seed=seed)
    totals_D = next(totals for totals in kept if totals.ndim == 1)
    totals_RD = np.concatenate([totals for totals in kept if totals.ndim == 2])
    ratios: dict[str, Ratio] = {}
    for index, name in enumerate(names):
        both = slice(2 * index, 2 * index + 2)
        draws_R = ratio_of_totals(totals_RD[:, both])
        if _num_contributing(addends_by_name[name], clusters) < 2:
            draws_R = np.full_like(draws_R, np.nan)
        ratios[name] = Ratio(estimate=float(ratio_of_totals(totals_D[both])), draws_R=draws_R)
    return ratios


def mean_of(ratios: Sequence[Ratio]) -> Ratio:
    """Unweighted mean; undefined when one of them is. Raises `DataError` of nothing."""
    if not ratios:
        raise DataError("mean_of: needs at least one ratio.")
    return Ratio(
        estimate=float(np.mean([ratio.estimate for ratio in ratios])),
        draws_R=np.mean([ratio.draws_R for ratio in ratios], axis=0),
    )


def _num_contributing(column: Sequence[Addends], clusters: Sequence[str]) -> int:
    return len({cluster for (_, denominator), cluster in zip(column, clusters, strict=True) if denominator})
