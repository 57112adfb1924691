"""95% confidence intervals for every number of this package: one method for shares, means, differences and averages.

What is sampled is a question, or a cluster of questions that share an image. Every number is a ratio of totals over
clusters, R = N / D, and its variance is that of the linearized ratio: C / (C - 1) * sum_c (n_c - R d_c)^2 / D^2
(Cochran 1977, section 6.4). Four rules turn variances into intervals:

- A share (0..1) gets Wilson's interval for `effective_count` observations, which stays inside 0..1 and is never empty.
  The bound toward the nearer edge is corrected for skewness (Gart and Nam 1988): without it, the interval of 1 of 50
  misses too often.
- Any other mean gets R +- t standard errors, with C - 1 degrees of freedom.
- In a difference or an average, the distances from estimate to bound combine like standard errors: their squares add
  up, with the correlation of numbers measured on the same clusters (Newcombe 1998; Zou and Donner 2008).
- With several training runs, what differs from run to run is estimated between runs, with Student's t and Welch's
  degrees of freedom, and what the runs have in common from the questions. The squares of both distances add up.

`benchmarks/interval_coverage.py` measures how often these intervals contain the true value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Z_95 = 1.959963984540054
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Gauss-Legendre quadrature, for the integral in `_student_t`."""
_SKEWNESS_SHIFT = (Z_95 * Z_95 - 1) / 6
"""Shift of a share's bound by its skewness, times count / (1 - 2 share)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95% confidence interval; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None


UNKNOWN = Interval(estimate=None, low=None, high=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share or mean measured on clusters, with its weight in a sum of parts."""

    estimate: float
    variance: float
    """Variance of the estimate over samples of clusters."""
    num_clusters: int
    """Clusters with something to count."""
    size: float
    """Number of equally large clusters that tell as much: D^2 / sum d^2."""
    is_share: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunVariance:
    """Variance of an estimate over the training runs of one method, in two parts."""

    between: float
    """Variance between run means, over the number of runs: what was observed."""
    noise: float
    """The part of `between` that sampling questions explains."""
    degrees: int
    """Number of runs minus one."""


def effective_count(share: float, variance: float, size: float) -> float:
    """Number of independent yes/no observations that tell as much about a share as the clusters do.

    It is size / d. The design effect d is the variance over that of clusters whose members all agree, s / size with
    s = share (1 - share), so it is 1 for yes/no data and smaller when a question is right in some samples only. Near 0
    and 1 few clusters vary and d is uncertain. Hence it is averaged with d = 1, which is the safe side: 4 size s
    observations say what was measured, one says 1.

    >>> effective_count(0.0, 0.0, 8)
    8.0
    """
    spread = share * (1 - share)
    if spread <= 0:
        return float(size)
    known = 4 * size * spread
    design_effect = variance * size / spread
    return size * (known + 1) / (known * design_effect + 1)


def share_bounds(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of `count` observations, the bound toward the nearer edge corrected for skewness.

    >>> low, high = share_bounds(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    shifted = share - _SKEWNESS_SHIFT * (1 - 2 * share) / count
    low = min(_wilson(share, count, -1), _wilson(shifted, count, -1))
    high = max(_wilson(share, count, 1), _wilson(shifted, count, 1))
    return (max(0.0, low) if share > 0 else 0.0), (min(1.0, high) if share < 1 else 1.0)


def _wilson(share: float, count: float, side: int) -> float:
    squared = Z_95 * Z_95 / count
    spread = max(0.0, share * (1 - share) / count + squared / (4 * count))
    return (share + squared / 2 + side * Z_95 * math.sqrt(spread)) / (1 + squared)


def combine(
    parts: Sequence[Part], covariances: Sequence[Sequence[float]] | None = None, runs: Sequence[RunVariance] = ()
) -> Interval:
    """Interval of the weighted sum of the parts.

    Args:
        parts: Shares and means, each with its weight.
        covariances: Of the parts' estimates over samples of clusters, without their weights; None: independent parts.
        runs: Variance of the sum between training runs, one entry for each method with several runs.

    Returns:
        There is no interval when a part was measured on fewer than two clusters.
    """
    estimate = math.fsum(part.weight * part.estimate for part in parts)
    if any(part.num_clusters < 2 for part in parts):
        return Interval(estimate=estimate, low=None, high=None)
    correlations = _correlations(parts, covariances)
    variance = _joint([part.weight * math.sqrt(part.variance) for part in parts], correlations)
    down, up = zip(*map(_distances, parts), strict=True)
    low = estimate - _distance_over_runs(_joint(down, correlations), variance, runs)
    high = estimate + _distance_over_runs(_joint(up, correlations), variance, runs)
    if all(part.is_share for part in parts):
        low = max(low, math.fsum(min(0.0, part.weight) for part in parts))
        high = min(high, math.fsum(max(0.0, part.weight) for part in parts))
    return Interval(estimate=estimate, low=low, high=high)


def _correlations(parts: Sequence[Part], covariances: Sequence[Sequence[float]] | None) -> list[list[float]]:
    numbers = range(len(parts))
    if covariances is None:
        return [[float(i == j) for j in numbers] for i in numbers]
    return [[1.0 if i == j else _correlation(parts[i], parts[j], covariances[i][j]) for j in numbers] for i in numbers]


def _correlation(first: Part, second: Part, covariance: float) -> float:
    """Correlation of two estimates, for two shares a little smaller than what was measured.

    Two systems that were right on the same few questions may still differ on others. The weight of 2 z^2 observations
    without correlation gives their difference the interval that Wilson gives to "no question on which they differ".
    """
    if covariance == 0 or first.variance <= 0 or second.variance <= 0:
        return 0.0
    correlation = min(1.0, max(-1.0, covariance / math.sqrt(first.variance * second.variance)))
    if not (first.is_share and second.is_share):
        return correlation
    known = 4 * math.sqrt(_information(first) * _information(second))
    return correlation * known / (known + 2 * Z_95 * Z_95)


def _information(part: Part) -> float:
    count = effective_count(part.estimate, part.variance, part.size)
    return max(0.0, part.estimate * (1 - part.estimate)) * count


def _distances(part: Part) -> tuple[float, float]:
    """Distances from the estimate to the lower and to the upper bound of what the part adds, with its weight's sign."""
    if part.is_share:
        low, high = share_bounds(part.estimate, effective_count(part.estimate, part.variance, part.size))
        below, above = part.estimate - low, high - part.estimate
    else:
        below = above = student_t(part.num_clusters - 1) * math.sqrt(part.variance)
    if part.weight < 0:
        below, above = above, below
    return part.weight * below, part.weight * above


def _joint(distances: Sequence[float], correlations: Sequence[Sequence[float]]) -> float:
    """Square of the joint distance of correlated parts."""
    pairs = ((i, j) for i in range(len(distances)) for j in range(len(distances)))
    return max(0.0, math.fsum(distances[i] * distances[j] * correlations[i][j] for i, j in pairs))


def _distance_over_runs(squared: float, variance: float, runs: Sequence[RunVariance]) -> float:
    """Distance from estimate to bound, given the square of the distance that the questions alone explain.

    The variance between runs contains the noise of questions that is not shared by runs, so that part is taken out of
    the questions' part. Runs never make an interval narrower.
    """
    between = math.fsum(run.between for run in runs)
    if between <= 0:
        return math.sqrt(squared)
    degrees = between**2 / math.fsum(run.between**2 / run.degrees for run in runs)
    noise = math.fsum(run.noise for run in runs)
    common = squared * max(0.0, 1 - noise / variance) if variance > 0 else squared
    return math.sqrt(max(squared, common + student_t(degrees) ** 2 * between))


def student_t(degrees: float) -> float:
    """97.5% quantile of Student's t, for any number of degrees of freedom from 1 on.

    >>> round(student_t(1), 3), round(student_t(2.5), 3), round(student_t(30), 3)
    (12.706, 3.575, 2.042)
    """
    return _student_t(min(1e6, max(1.0, round(degrees, 3))))


@lru_cache(maxsize=4096)
def _student_t(degrees: float) -> float:
    # With t = sqrt(degrees) tan(a), P(|T| < t) is the integral of cos^(degrees - 1) from 0 to a over that to pi / 2.
    whole = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)) * math.sqrt(math.pi) / 2
    low, high = 0.0, math.atan(13.0 / math.sqrt(degrees))  # t is below 13 for every number of degrees from 1 on
    for _ in range(60):
        angle = (low + high) / 2
        inside = angle / 2 * float(_WEIGHTS @ np.cos(angle / 2 * (_NODES + 1)) ** (degrees - 1))
        low, high = (angle, high) if inside < 0.95 * whole else (low, angle)
    return math.sqrt(degrees) * math.tan(low)
