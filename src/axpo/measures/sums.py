"""Rates and their intervals from running sums, so that no list of all clusters is kept in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from axpo.measures.intervals import UNKNOWN, Interval, Part, combine


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A quotient of totals with its 95% interval.

    The estimate is None where there is nothing to count. An interval needs two groups.
    """

    estimate: float | None
    low: float | None
    high: float | None
    numerator: float
    denominator: float
    num_groups: int
    """Groups with something to count."""


@dataclass(slots=True)
class RatioSums:
    """Sums over groups that give a rate and its interval. A group is what is sampled: the rollouts of one question.

    `n` and `d` are totals of numerators and denominators, `nn`, `nd` and `dd` totals of their products.
    """

    num_groups: int = 0
    n: float = 0.0
    d: float = 0.0
    nn: float = 0.0
    nd: float = 0.0
    dd: float = 0.0

    def add(self, numerator: float, denominator: float) -> None:
        """Count one group; one with nothing to count is left out."""
        if not denominator:
            return
        self.num_groups += 1
        self.n += numerator
        self.d += denominator
        self.nn += numerator * numerator
        self.nd += numerator * denominator
        self.dd += denominator * denominator

    def merge(self, other: RatioSums) -> None:
        """Add the groups of `other`."""
        self.num_groups += other.num_groups
        self.n += other.n
        self.d += other.d
        self.nn += other.nn
        self.nd += other.nd
        self.dd += other.dd

    @property
    def estimate(self) -> float | None:
        """N / D; None where there is nothing to count."""
        return self.n / self.d if self.d else None

    @property
    def variance(self) -> float:
        """Variance of the estimate over samples of groups; 0 with fewer than two."""
        if self.num_groups < 2:
            return 0.0
        ratio = self.n / self.d
        squares = max(0.0, self.nn - 2 * ratio * self.nd + ratio * ratio * self.dd)
        return squares / self.d**2 * self.num_groups / (self.num_groups - 1)

    def part(self, *, is_share: bool, weight: float = 1.0) -> Part | None:
        """The rate as a part of a sum; None where there is nothing to count."""
        if self.estimate is None:
            return None
        return Part(
            estimate=self.estimate,
            variance=self.variance,
            num_clusters=self.num_groups,
            size=self.d**2 / self.dd,
            is_share=is_share,
            weight=weight,
        )

    def rate(self, *, is_share: bool) -> Rate:
        """The estimate with its interval.

        >>> sums = RatioSums()
        >>> for wrong in (1, 1, 0, 0):
        ...     sums.add(wrong, 1)
        >>> rate = sums.rate(is_share=True)
        >>> rate.estimate, round(rate.low, 2), round(rate.high, 2)
        (0.5, 0.13, 0.87)
        """
        part = self.part(is_share=is_share)
        interval = UNKNOWN if part is None else combine([part])
        return Rate(
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
            numerator=self.n,
            denominator=self.d,
            num_groups=self.num_groups,
        )


def difference(first: RatioSums, second: RatioSums) -> Rate:
    """First share minus second, measured on different groups."""
    return _difference(first, second, covariance=0.0, num_groups=first.num_groups + second.num_groups)


@dataclass(slots=True)
class PairSums:
    """Sums over groups that give two shares and their difference, both measured on the same groups.

    `nn`, `nd`, `dn` and `dd`: totals of products of one number of `first` and one of `second`.
    """

    first: RatioSums = field(default_factory=RatioSums)
    second: RatioSums = field(default_factory=RatioSums)
    num_groups: int = 0
    nn: float = 0.0
    nd: float = 0.0
    dn: float = 0.0
    dd: float = 0.0

    def add(self, first: tuple[float, float], second: tuple[float, float]) -> None:
        """Count numerator and denominator of both in one group."""
        self.num_groups += 1
        self.first.add(*first)
        self.second.add(*second)
        self.nn += first[0] * second[0]
        self.nd += first[0] * second[1]
        self.dn += first[1] * second[0]
        self.dd += first[1] * second[1]

    def merge(self, other: PairSums) -> None:
        """Add the groups of `other`."""
        self.num_groups += other.num_groups
        self.first.merge(other.first)
        self.second.merge(other.second)
        self.nn += other.nn
        self.nd += other.nd
        self.dn += other.dn
        self.dd += other.dd

    def difference(self) -> Rate:
        """First share minus second. The interval takes into account that both were measured on the same groups."""
        a, b = self.first.estimate, self.second.estimate
        covariance = 0.0
        if a is not None and b is not None and min(self.first.num_groups, self.second.num_groups) > 1:
            # sum over groups of (n1 - a d1) (n2 - b d2): the covariance of the two linearized ratios, before scaling
            cross = self.nn - b * self.nd - a * self.dn + a * b * self.dd
            sizes = [sums.num_groups / (sums.num_groups - 1) for sums in (self.first, self.second)]
            covariance = cross / (self.first.d * self.second.d) * (sizes[0] * sizes[1]) ** 0.5
        return _difference(self.first, self.second, covariance=covariance, num_groups=self.num_groups)


def _difference(first: RatioSums, second: RatioSums, *, covariance: float, num_groups: int) -> Rate:
    a, b = first.part(is_share=True), second.part(is_share=True, weight=-1.0)
    interval: Interval = UNKNOWN
    if a is not None and b is not None:
        interval = combine([a, b], [[a.variance, covariance], [covariance, b.variance]])
    return Rate(
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        numerator=interval.estimate or 0.0,
        denominator=0.0 if interval.estimate is None else 1.0,
        num_groups=num_groups,
    )
