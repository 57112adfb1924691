"""Spearman's rank correlation, with an interval that draws whole clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from axpo.errors import DataError
from axpo.evaluation.statistics import Array, Interval

MIN_CLUSTERS = 3
"""Fewer say nothing about how much clusters differ."""


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


def clustered_spearman(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`spearman` with its percentile bootstrap interval; draws whole clusters with replacement, ranks anew each time.

    Args:
        first: [n] values.
        second: [n] values.
        clusters: [n] label of what an observation shares with others (its question).
        num_resamples: draws.
        seed: of the draws; equal seeds give equal intervals.
        level: coverage asked for.

    Returns:
        The estimate is None where a side does not vary; there is no interval of fewer than `MIN_CLUSTERS` clusters.

    Raises:
        DataError: when the lengths differ.

    >>> clustered_spearman([1, 2, 3, 4], [1, 2, 3, 4], ["a", "b", "c", "c"])
    Interval(estimate=1.0, low=1.0, high=1.0)
    """
    if len(clusters) != len(first):
        raise DataError(f"clustered_spearman: {len(clusters)} cluster labels for {len(first)} observations.")
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    estimate = spearman(a, b)
    labels, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if estimate is None or len(labels) < MIN_CLUSTERS:
        return Interval(estimate=estimate, low=None, high=None)
    members = [np.flatnonzero(index == number) for number in range(len(labels))]
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(num_resamples):
        chosen = np.concatenate([members[number] for number in rng.integers(len(labels), size=len(labels))])
        if (value := spearman(a[chosen], b[chosen])) is not None:
            draws.append(value)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if draws else (None, None)
    return Interval(
        estimate=estimate, low=None if low is None else float(low), high=None if high is None else float(high)
    )


def _centered_ranks(values: Array) -> Array:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[index]
    return ranks - ranks.mean() if ranks.size else ranks
