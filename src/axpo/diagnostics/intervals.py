"""Rates with 95 % intervals from sums that fit in a few numbers, however long the dump.

Every rate is total(numerator) / total(denominator) over groups. Rollouts of one group hang together, so the group is
the unit: the variance of R = N / D is G / (G - 1) * sum_g (n_g - R d_g)^2 / D^2 (the linearised ratio estimator,
Cochran 1977, 6.4), whose sum needs only the totals of n^2, n d and d^2.

A share (0..1) gets Wilson's interval with the effective number of observations R (1 - R) / variance (as for surveys,
Dean and Pagano 2015), which stays inside 0..1 and is never empty: where groups do not differ at all, their number
stands in. Any other mean gets R +- 1.96 standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A quotient of totals. All of it is None where there is nothing to count; an interval needs two groups."""

    estimate: float | None
    low: float | None
    high: float | None
    numerator: float
    denominator: float
    num_groups: int
    """Groups with something to count."""


@dataclass(slots=True)
class RatioSums:
    """What a rate and its interval need of all groups so far."""

    num_groups: int = 0
    n: float = 0.0
    d: float = 0.0
    nn: float = 0.0
    nd: float = 0.0
    dd: float = 0.0

    def add(self, numerator: float, denominator: float) -> None:
        """One group."""
        self.num_groups += 1
        self.n += numerator
        self.d += denominator
        self.nn += numerator * numerator
        self.nd += numerator * denominator
        self.dd += denominator * denominator

    def merge(self, other: RatioSums) -> None:
        """The groups of `other` too."""
        self.num_groups += other.num_groups
        self.n += other.n
        self.d += other.d
        self.nn += other.nn
        self.nd += other.nd
        self.dd += other.dd

    @property
    def estimate(self) -> float | None:
        """N / D."""
        return self.n / self.d if self.d else None

    @property
    def variance(self) -> float | None:
        """Of the estimate, groups being independent; None with fewer than two."""
        if self.num_groups < 2 or not self.d:
            return None
        ratio = self.n / self.d
        squares = max(0.0, self.nn - 2 * ratio * self.nd + ratio * ratio * self.dd)
        return squares / self.d**2 * self.num_groups / (self.num_groups - 1)

    def rate(self, *, is_share: bool) -> Rate:
        """The estimate with its interval.

        >>> sums = RatioSums()
        >>> for wrong in (1, 1, 0, 0):
        ...     sums.add(wrong, 1)
        >>> rate = sums.rate(is_share=True)
        >>> rate.estimate, round(rate.low, 2), round(rate.high, 2)
        (0.5, 0.13, 0.87)
        """
        estimate, variance = self.estimate, self.variance
        low = high = None
        if estimate is not None and variance is not None:
            if is_share:
                low, high = _wilson(estimate, _effective_count(estimate, variance, self.num_groups))
            else:
                half = Z_95 * math.sqrt(variance)
                low, high = estimate - half, estimate + half
        return Rate(
            estimate=estimate,
            low=low,
            high=high,
            numerator=self.n,
            denominator=self.d,
            num_groups=self.num_groups,
        )


def difference(first: RatioSums, second: RatioSums) -> Rate:
    """First share minus second, measured on different groups, hence independent."""
    return _difference(first, second, correlation=0.0, num_groups=first.num_groups + second.num_groups)


@dataclass(slots=True)
class PairSums:
    """Two shares measured on the same groups, for the interval of their difference."""

    first: RatioSums
    second: RatioSums
    num_groups: int = 0
    nn: float = 0.0
    nd: float = 0.0
    dn: float = 0.0
    dd: float = 0.0

    @classmethod
    def empty(cls) -> PairSums:
        """Of no groups."""
        return cls(RatioSums(), RatioSums())

    def add(self, first: tuple[float, float], second: tuple[float, float]) -> None:
        """Numerator and denominator of both in one group."""
        self.num_groups += 1
        for sums, (numerator, denominator) in ((self.first, first), (self.second, second)):
            if denominator:
                sums.add(numerator, denominator)
        self.nn += first[0] * second[0]
        self.nd += first[0] * second[1]
        self.dn += first[1] * second[0]
        self.dd += first[1] * second[1]

    def merge(self, other: PairSums) -> None:
        """The groups of `other` too."""
        self.num_groups += other.num_groups
        self.first.merge(other.first)
        self.second.merge(other.second)
        self.nn += other.nn
        self.nd += other.nd
        self.dn += other.dn
        self.dd += other.dd

    def difference(self) -> Rate:
        """First share minus second; that both were measured on the same groups is in the interval."""
        a, b = self.first.estimate, self.second.estimate
        va, vb = self.first.variance, self.second.variance
        correlation = 0.0
        if a is not None and b is not None and va and vb:
            cross = self.nn - b * self.nd - a * self.dn + a * b * self.dd
            sizes = [sums.num_groups / (sums.num_groups - 1) for sums in (self.first, self.second)]
            covariance = cross / (self.first.d * self.second.d) * math.sqrt(sizes[0] * sizes[1])
            correlation = min(1.0, max(-1.0, covariance / math.sqrt(va * vb)))
        return _difference(self.first, self.second, correlation=correlation, num_groups=self.num_groups)


def _difference(first: RatioSums, second: RatioSums, *, correlation: float, num_groups: int) -> Rate:
    """Difference of shares with an interval made of the two Wilson intervals (Newcombe 1998; Zou and Donner 2008)."""
    a, b = first.rate(is_share=True), second.rate(is_share=True)
    estimate = low = high = None
    if a.estimate is not None and b.estimate is not None:
        estimate = a.estimate - b.estimate
        if a.low is not None and a.high is not None and b.low is not None and b.high is not None:
            low = estimate - _joint(a.estimate - a.low, b.high - b.estimate, correlation)
            high = estimate + _joint(a.high - a.estimate, b.estimate - b.low, correlation)
    return Rate(
        estimate=estimate,
        low=low,
        high=high,
        numerator=estimate or 0.0,
        denominator=1.0 if estimate is not None else 0.0,
        num_groups=num_groups,
    )


def _joint(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first * first + second * second - 2 * correlation * first * second))


def _effective_count(share: float, variance: float, num_groups: int) -> float:
    spread = share * (1 - share)
    return spread / variance if variance > 0 and spread > 0 else float(num_groups)


def _wilson(share: float, count: float) -> tuple[float, float]:
    squared = Z_95 * Z_95
    center = (share + squared / (2 * count)) / (1 + squared / count)
    half = Z_95 / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count * count))
    return (center - half if share > 0 else 0.0), (center + half if share < 1 else 1.0)
