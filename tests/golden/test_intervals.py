"""The interval engine: variances by hand, published intervals where it agrees with them, and coverage by simulation."""

from __future__ import annotations

import math
from fractions import Fraction as F
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axpo.errors import DataError
from axpo.measures.estimates import Questions, average, describe_runs
from axpo.measures.intervals import Z_95, Interval, effective_count, share_bounds, student_t
from axpo.measures.sums import PairSums, RatioSums

SQUARED = Z_95**2


def alone(count: int) -> Questions:
    return Questions([f"q{number}" for number in range(count)])


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None and interval.high is not None
    return interval.low, interval.high


# -- one share --------------------------------------------------------------------------------------------------------


def test_the_effective_count_by_hand() -> None:
    # 1/2 of 10 clusters, variance 1/80: d = (1/80) / ((1/4) / 10) = 1/2, known = 4 * 10 / 4 = 10.
    assert effective_count(0.5, 1 / 80, 10) == pytest.approx(10 * (10 + 1) / (10 / 2 + 1))
    assert effective_count(0.0, 0.0, 8) == effective_count(1.0, 0.0, 8) == 8  # nothing tells how clusters differ
    # many clusters: the variance alone decides, p (1 - p) / variance
    assert effective_count(0.5, 1e-6, 1e6) == pytest.approx(0.25 / 1e-6, rel=1e-5)


def test_a_share_in_the_middle_has_wilson_s_interval() -> None:
    half = Z_95 / (1 + SQUARED / 40) * math.sqrt(1 / 160 + SQUARED / (4 * 40**2))
    assert share_bounds(0.5, 40) == pytest.approx((0.5 - half, 0.5 + half))
    low, high = share_bounds(0.0, 8)
    assert (low, high) == (0.0, pytest.approx(SQUARED / (8 + SQUARED)))  # Wilson at 0 of 8, never 0 to 0
    assert share_bounds(1.0, 8) == (pytest.approx(1 - high), 1.0)


@pytest.mark.parametrize("right", [1, 2, 3])
def test_near_an_edge_the_bound_lies_between_wilson_s_and_clopper_pearson_s(right: int) -> None:
    # Exact bound of `right` of 50: the chance of at least so many is 2.5%.
    def chance(share: float) -> float:
        return 1 - sum(math.comb(50, k) * share**k * (1 - share) ** (50 - k) for k in range(right))

    low = share_bounds(right / 50, 50)[0]
    share = right / 50
    wilson = (share + SQUARED / 100 - Z_95 * math.sqrt(share * (1 - share) / 50 + SQUARED / 10_000)) / (
        1 + SQUARED / 50
    )
    assert low < wilson and chance(low) > 0.025 and chance(wilson) > chance(low)
    assert share_bounds(1 - share, 50)[1] == pytest.approx(1 - low)


@given(st.floats(0, 1), st.floats(2, 1e4))
def test_the_bounds_of_a_share_hold_it_and_stay_in_0_to_1(share: float, count: float) -> None:
    low, high = share_bounds(share, count)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1 and low < high


def test_student_s_t_against_tables() -> None:
    for degrees, quantile in ((1, 12.706), (2, 4.303), (4, 2.776), (7, 2.365), (30, 2.042), (120, 1.980)):
        assert student_t(degrees) == pytest.approx(quantile, abs=5e-4)
    assert student_t(1e9) == pytest.approx(Z_95, abs=1e-5)


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_questions_of_one_image_count_as_one_observation() -> None:
    # Two images, five questions each, one image all right and one all wrong: two observations.
    values = [(1.0, 1.0)] * 5 + [(0.0, 1.0)] * 5
    together = Questions(["a"] * 5 + ["b"] * 5).ratio(values).interval
    assert together == Questions(["a", "b"]).ratio([(1.0, 1.0), (0.0, 1.0)]).interval
    apart = bounds(alone(10).ratio(values).interval)
    assert bounds(together)[0] < apart[0] and apart[1] < bounds(together)[1]


def test_running_sums_and_questions_agree() -> None:
    addends = [(2.0, 2.0), (0.0, 3.0), (1.0, 2.0), (0.0, 0.0)]
    sums = RatioSums()
    for numerator, denominator in addends:
        sums.add(numerator, denominator)
    rate = sums.rate(is_share=True)
    # R = 3/7, residuals n - R d: 8/7, -9/7, 1/7; 3/2 * (64 + 81 + 1) / 49 / 49
    assert sums.variance == pytest.approx(float(F(3, 2) * F(146, 49 * 49)))
    interval = alone(4).ratio(addends).interval
    assert (interval.estimate, *bounds(interval)) == pytest.approx((rate.estimate, rate.low, rate.high))
    assert (rate.numerator, rate.denominator, rate.num_groups) == (3, 7, 3)


def test_a_mean_that_is_no_share_has_student_s_interval() -> None:
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 / 3 = 7/3, two degrees of freedom
    interval = alone(3).ratio([(1, 1), (2, 1), (6, 1)], is_share=False).interval
    half = 4.302653 * math.sqrt(7 / 3)
    assert bounds(interval) == pytest.approx((3 - half, 3 + half), rel=1e-5)


def test_nothing_to_count_is_unknown_and_one_cluster_has_no_interval() -> None:
    nothing = alone(2).ratio([(0, 0), (0, 0)]).interval
    assert (nothing.estimate, nothing.low, nothing.high) == (None, None, None)
    single = Questions(["a", "a"]).ratio([(1, 1), (0, 1)]).interval
    assert (single.estimate, single.low, single.high) == (0.5, None, None)


# -- differences and averages -----------------------------------------------------------------------------------------


def test_what_makes_a_question_hard_for_both_cancels_in_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    questions = alone(200)
    better, worse = ([(min(1.0, h + gain), 1.0) for h in hard * 0.8] for gain in (0.1, 0.0))
    paired = bounds((questions.ratio(better, method="a") - questions.ratio(worse, method="b")).interval)
    unpaired = bounds((questions.ratio(better, method="a") - alone(200).ratio(worse, method="b")).interval)
    assert 0 < paired[0] < 0.1 < paired[1]
    assert paired[1] - paired[0] < (unpaired[1] - unpaired[0]) / 2


def test_equal_verdicts_on_few_questions_do_not_prove_equal_methods() -> None:
    # As wide as Wilson's interval of "no question of n on which they differ", about z^2 / n.
    for count in (100, 1000):
        questions = alone(count)
        values = [(float(number % 2), 1.0) for number in range(count)]
        interval = (questions.ratio(values, method="a") - questions.ratio(values, method="b")).interval
        assert interval.estimate == 0
        assert bounds(interval)[1] == pytest.approx(SQUARED / count, rel=0.25)


def test_distances_of_independent_parts_add_up_in_squares() -> None:
    first, second = (
        alone(50).ratio([(n % 2, 1) for n in range(50)]),
        alone(40).ratio([(n % 4 == 0, 1) for n in range(40)]),
    )
    (low_a, high_a), (low_b, high_b) = bounds(first.interval), bounds(second.interval)
    difference, mean = (first - second).interval, average([first, second]).interval
    assert bounds(difference)[0] == pytest.approx(0.25 - math.hypot(0.5 - low_a, high_b - 0.25))
    assert bounds(difference)[1] == pytest.approx(0.25 + math.hypot(high_a - 0.5, 0.25 - low_b))
    assert mean.estimate == pytest.approx(0.375)
    assert bounds(mean)[1] == pytest.approx(0.375 + math.hypot(high_a - 0.5, high_b - 0.25) / 2)


def test_a_difference_of_running_sums_counts_what_they_share() -> None:
    equal, opposite, apart = PairSums(), PairSums(), PairSums()
    for wrong in [1, 0] * 200:
        equal.add((wrong, 1), (wrong, 1))
        opposite.add((wrong, 1), (1 - wrong, 1))
        apart.add((wrong, 1), (0, 0))
        apart.add((0, 0), (wrong, 1))
    width = {name: sums.difference().high or 0.0 for name, sums in (("=", equal), ("!", opposite), ("|", apart))}
    assert width["="] < 0.02 < width["|"] < width["!"]
    alone_high = equal.first.rate(is_share=True).high
    assert alone_high is not None
    assert width["|"] == pytest.approx((alone_high - 0.5) * math.sqrt(2))
    assert width["!"] == pytest.approx((alone_high - 0.5) * 2, rel=0.01)


# -- training runs ----------------------------------------------------------------------------------------------------


def test_runs_that_differ_widen_the_interval_by_student_s_t() -> None:
    # Three runs on many equal questions: means 0.4, 0.5, 0.6 in every question, so all variance is between runs.
    runs = [[(share, 1.0)] * 400 for share in (0.4, 0.5, 0.6)]
    one = bounds(alone(400).ratio(runs[1]).interval)
    interval = alone(400).ratio(runs).interval
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.5)
    assert bounds(interval)[1] == pytest.approx(0.5 + math.hypot(half, one[1] - 0.5), rel=1e-3)


def test_equal_runs_do_not_change_the_interval() -> None:
    run = [(float(number % 2), 1.0) for number in range(50)]
    assert bounds(alone(50).ratio([run, run, run]).interval) == pytest.approx(bounds(alone(50).ratio(run).interval))


def test_a_run_without_calls_does_not_hide_the_hit_rate_of_the_others() -> None:
    assert alone(2).ratio([[(1, 2), (1, 2)], [(0, 0), (0, 0)]]).interval.estimate == 0.5


def test_a_sentence_says_whether_training_seeds_are_included() -> None:
    assert "do not include the variance between training seeds" in describe_runs({"GRPO": 1, "AXPO": 1})
    assert describe_runs({"GRPO": 1, "AXPO": 3}).startswith("GRPO: one run")
    assert describe_runs({"GRPO": 2, "AXPO": 3}) == "Intervals include the variance between training runs."


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="at least one question"):
        Questions([])
    for wrong in ([(1, 1)], [[[1, 1]]], np.zeros((0, 2, 2)), [1, 2]):
        with pytest.raises(DataError, match="numerator and denominator of 2 questions"):
            alone(2).ratio(wrong)
    with pytest.raises(DataError, match="at least one number"):
        average([])


# -- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "mean"), list(product((8, 50), (0.5, 0.99))))
def test_at_least_93_percent_of_intervals_contain_the_truth(count: int, mean: float) -> None:
    # Pass@1 and Pass@4 of 4 samples, questions of Beta-distributed difficulty; 400 trials have an error of 1.1 points.
    rng = np.random.default_rng(count)
    chances = rng.beta(2 * mean, 2 * (1 - mean), size=(400, count))
    right = rng.binomial(4, chances)
    failing = math.prod((2 * (1 - mean) + k) / (2 + k) for k in range(4))
    questions = alone(count)
    for values, truth in ((right / 4, mean), ((right > 0) * 1.0, 1 - failing)):
        intervals = [bounds(questions.ratio([(value, 1.0) for value in row]).interval) for row in values]
        assert sum(low <= truth <= high for low, high in intervals) / 400 > 0.93 - 0.022


def test_equal_methods_with_three_runs_rarely_differ_although_seeds_do() -> None:
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(300):
        chances = rng.beta(1, 1, size=60)
        sides = [rng.binomial(4, np.clip(chances + rng.normal(0, 0.04, size=(3, 1)), 0, 1)) / 4 for _ in range(2)]
        questions = alone(60)
        a, b = (questions.ratio(np.stack([s, np.ones_like(s)], axis=-1), method=str(n)) for n, s in enumerate(sides))
        low, high = bounds((a - b).interval)
        false += low > 0 or high < 0
    assert false / 300 <= 0.06
