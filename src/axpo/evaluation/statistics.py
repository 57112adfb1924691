"""Intervals that respect how evaluation data hang together: samples of a question, questions of a picture, seeds.

Every quantity of an evaluation is a statistic of column totals over questions: Pass@k is total(pass@k) / total(1), the
box hit rate total(hits) / total(calls). So a question is a row of numbers that add up, a resample is a vector of
integer weights, and all resamples together are one matrix product.

Axis letters: Q question, C cluster, D column, R resample, S seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axpo.errors import DataError

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Column totals [..., D] -> values [...]; NaN where it is undefined."""

_MAX_WEIGHTS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its percentile bootstrap interval; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None


def ratio_of_totals(totals: Array) -> Array:
    """Column 0 over column 1: the mean of a ratio whose denominator varies between questions.

    >>> ratio_of_totals(np.array([[1.0, 4.0], [0.0, 0.0]])).tolist()
    [0.25, nan]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(totals[..., 1] == 0, np.nan, totals[..., 0] / totals[..., 1])


def clustered_bootstrap(
    values_by_question: ArrayLike,
    statistic: Statistic = ratio_of_totals,
    *,
    clusters: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap that draws whole clusters of questions with replacement.

    Args:
        values_by_question: [Q, D] addends of each question.
        statistic: of column totals, see `Statistic`.
        clusters: [Q] label of what a question shares with others (its picture); default: each question alone.
        num_resamples: R.
        seed: of the draws; equal seeds give equal intervals.
        level: coverage asked for.

    Returns:
        The statistic of all questions, and its interval. None where the statistic is undefined.

    Raises:
        DataError: when the shapes do not fit.

    >>> clustered_bootstrap([[1, 1], [1, 1], [1, 1]])
    Interval(estimate=1.0, low=1.0, high=1.0)
    """
    values_CD = _sum_clusters(_as_table(values_by_question), clusters)
    rng = np.random.default_rng(seed)
    draws_R = np.concatenate(
        [statistic(weights_RC @ values_CD) for weights_RC in _weight_blocks(rng, len(values_CD), num_resamples)]
    )
    return _interval(statistic(values_CD.sum(axis=0)), draws_R, level)


def paired_difference(
    values_by_question: ArrayLike,
    baseline_by_question: ArrayLike,
    statistic: Statistic = ratio_of_totals,
    *,
    clusters: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a difference of two systems measured on the same questions, row by row.

    Both systems are resampled with the same questions, so that what makes a question hard cancels. Arguments, result
    and errors as in `clustered_bootstrap`.
    """
    values_QD, baseline_QD = _as_table(values_by_question), _as_table(baseline_by_question)
    if values_QD.shape != baseline_QD.shape:
        raise DataError(
            f"paired_difference: {values_QD.shape} against {baseline_QD.shape} values. "
            "Both systems must be measured on the same questions, in the same order."
        )
    num_columns = values_QD.shape[1]

    def difference(totals: Array) -> Array:
        return statistic(totals[..., :num_columns]) - statistic(totals[..., num_columns:])

    both_QD = np.concatenate([values_QD, baseline_QD], axis=1)
    return clustered_bootstrap(
        both_QD, difference, clusters=clusters, num_resamples=num_resamples, seed=seed, level=level
    )


def crossed_bootstrap(
    values_by_seed: ArrayLike,
    statistic: Statistic = ratio_of_totals,
    *,
    baseline_by_seed: ArrayLike | None = None,
    clusters: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval over training seeds and questions at once: runs and questions are drawn independently of each other.

    Every run is measured on the same questions, so seeds and questions cross. The statistic is averaged over the runs
    in which it is defined. With few seeds a bootstrap is too narrow by about sqrt((S - 1) / S).

    Args:
        values_by_seed: [S, Q, D] addends of each question in each run.
        statistic: of column totals over questions, see `Statistic`.
        baseline_by_seed: [S', Q, D] of a method to subtract; its runs are drawn on their own, its questions together.
        clusters: [Q] as in `clustered_bootstrap`.
        num_resamples: R.
        seed: of the draws.
        level: coverage asked for.

    Raises:
        DataError: when the shapes do not fit.
    """
    arms = [_as_runs(values_by_seed, clusters)]
    if baseline_by_seed is not None:
        arms.append(_as_runs(baseline_by_seed, clusters))
        if arms[0].shape[1:] != arms[1].shape[1:]:
            raise DataError(f"crossed_bootstrap: questions differ, {arms[0].shape[1:]} against {arms[1].shape[1:]}.")
    signs = (1.0, -1.0)
    rng = np.random.default_rng(seed)
    estimate = sum(sign * _mean_of_defined(statistic(arm.sum(axis=1))) for sign, arm in zip(signs, arms, strict=False))
    blocks: list[Array] = []
    for weights_RC in _weight_blocks(rng, arms[0].shape[1], num_resamples):
        draws_R = np.zeros(len(weights_RC))
        for sign, arm in zip(signs, arms, strict=False):
            values_RS = statistic(np.einsum("rc,scd->rsd", weights_RC, arm))
            chosen_RS = rng.integers(arm.shape[0], size=values_RS.shape)
            draws_R += sign * _mean_of_defined(np.take_along_axis(values_RS, chosen_RS, axis=1))
        blocks.append(draws_R)
    return _interval(np.asarray(estimate), np.concatenate(blocks), level)


def _mean_of_defined(values: Array) -> Array:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    is_defined = np.isfinite(values)
    totals = np.stack([np.where(is_defined, values, 0.0).sum(axis=-1), is_defined.sum(axis=-1)], axis=-1)
    return ratio_of_totals(totals)


def _as_table(values: ArrayLike) -> Array:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] == 0:
        raise DataError(f"bootstrap: expected [questions, columns] with at least one question, got shape {table.shape}")
    return table


def _as_runs(values: ArrayLike, clusters: Sequence[str] | None) -> Array:
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 3 or runs.shape[0] == 0:
        raise DataError(f"crossed_bootstrap: expected [seeds, questions, columns], got shape {runs.shape}")
    return np.stack([_sum_clusters(_as_table(run), clusters) for run in runs])


def _sum_clusters(values_QD: Array, clusters: Sequence[str] | None) -> Array:
    if clusters is None:
        return values_QD
    if len(clusters) != len(values_QD):
        raise DataError(f"bootstrap: {len(clusters)} cluster labels for {len(values_QD)} questions")
    labels, index_Q = np.unique(np.asarray(clusters), return_inverse=True)
    values_CD = np.zeros((len(labels), values_QD.shape[1]))
    np.add.at(values_CD, index_Q, values_QD)
    return values_CD


def _weight_blocks(rng: np.random.Generator, num_clusters: int, num_resamples: int) -> Iterator[Array]:
    """How often each cluster is drawn in each resample, in blocks that bound memory."""
    block = max(1, _MAX_WEIGHTS // num_clusters)
    sizes = [min(block, num_resamples - start) for start in range(0, num_resamples, block)]
    chances = np.full(num_clusters, 1.0 / num_clusters)
    for size in sizes:
        yield rng.multinomial(num_clusters, chances, size=size).astype(np.float64)


def _interval(estimate: Array, draws_R: Array, level: float) -> Interval:
    draws_R = draws_R[np.isfinite(draws_R)]
    if not np.isfinite(estimate) or draws_R.size == 0:
        return Interval(estimate=None, low=None, high=None)
    low, high = np.quantile(draws_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=float(estimate), low=float(low), high=float(high))
