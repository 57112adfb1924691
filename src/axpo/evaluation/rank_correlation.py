"""Spearman's rank correlation with an interval clustered by question."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from axpo.errors import DataError
from axpo.measures.estimates import Array
from axpo.measures.intervals import Interval, student_t

MIN_CLUSTERS = 4
"""Fewer say nothing about how much clusters differ."""
_RANK_VARIANCE = 1.06


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Pearson correlation of the ranks, equal values sharing their mean rank (Spearman 1904).

    Args:
        first: [n] values.
        second: [n] values.

    Returns:
        -1..1; None where a side does not vary.

    Raises:
        DataError: when the lengths differ.

    >>> spearman([1, 2, 3, 4], [10, 20, 20, 40])
    0.9486832980505138
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(f"spearman: expected two lists of one length, got shapes {a.shape} and {b.shape}.")
    a, b = _centered_ranks(a), _centered_ranks(b)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return min(1.0, max(-1.0, float((a * b).sum()) / scale)) if scale > 0 else None


def clustered_spearman(first: Sequence[float], second: Sequence[float], clusters: Sequence[str]) -> Interval:
    """`spearman` with its 95% interval.

    Fisher's z with Student's t and the variance of a jackknife that leaves out one of C clusters at a time, but at
    least that of C independent observations, 1.06 / (C - 3) (Fieller, Hartley and Pearson 1957).

    Args:
        first: [n] values.
        second: [n] values.
        clusters: [n] label of what an observation shares with others (its question).

    Returns:
        The estimate is None where a side does not vary; there is no interval with fewer than `MIN_CLUSTERS` clusters.

    Raises:
        DataError: when the lengths differ.

    >>> interval = clustered_spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], ["a", "b", "c", "d", "d"])
    >>> interval.estimate, round(interval.low, 2), interval.high
    (1.0, -0.92, 1.0)
    """
    if len(clusters) != len(first):
        raise DataError(f"clustered_spearman: {len(clusters)} cluster labels for {len(first)} observations.")
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    estimate = spearman(a, b)
    labels, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if estimate is None or len(labels) < MIN_CLUSTERS:
        return Interval(estimate=estimate, low=None, high=None)
    count = len(labels)
    left_out = [spearman(a[index != number], b[index != number]) for number in range(count)]
    z_C = np.array([_fisher(value, count) for value in left_out if value is not None])
    jackknife = (count - 1) * float(z_C.var()) if z_C.size else 0.0
    half = student_t(count - 1) * math.sqrt(max(jackknife, _RANK_VARIANCE / (count - 3)))
    center = _fisher(estimate, count)
    low, high = math.tanh(center - half), math.tanh(center + half)
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate))


def _fisher(correlation: float, num_clusters: int) -> float:
    """Fisher's z, finite for a correlation of 1."""
    largest = 1 - 1 / num_clusters**2
    return math.atanh(min(largest, max(-largest, correlation)))


def _centered_ranks(values: Array) -> Array:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[index]
    return ranks - ranks.mean() if ranks.size else ranks
