"""Bootstrap intervals against the exact distribution of all resamples."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axpo.errors import DataError
from axpo.evaluation.statistics import clustered_bootstrap, crossed_bootstrap, paired_difference


def test_two_questions_by_hand() -> None:
    # Values 0 and 1: the four equally likely resamples have means 0, 1/2, 1/2, 1. Its quantiles are 0 up to 1/4,
    # 1/2 between 1/4 and 3/4, 1 above.
    values = [[0, 1], [1, 1]]
    wide = clustered_bootstrap(values, level=0.95)
    assert (wide.estimate, wide.low, wide.high) == (0.5, 0.0, 1.0)
    narrow = clustered_bootstrap(values, level=0.4)
    assert (narrow.estimate, narrow.low, narrow.high) == (0.5, 0.5, 0.5)


def test_a_ratio_of_totals_against_all_resamples() -> None:
    # Hits of calls: 3 of 4, 0 of 1, 1 of 2. All 27 resamples, exactly.
    values = np.array([[3, 4], [0, 1], [1, 2]], dtype=float)
    ratios = sorted(
        values[list(draw)].sum(axis=0)[0] / values[list(draw)].sum(axis=0)[1] for draw in product(range(3), repeat=3)
    )
    interval = clustered_bootstrap(values, level=0.8, num_resamples=40_000)
    assert interval.estimate == pytest.approx(4 / 7)
    # The 10 % and 90 % quantiles of 27 equally likely values are the 3rd smallest and the 3rd largest.
    assert (interval.low, interval.high) == (pytest.approx(ratios[2]), pytest.approx(ratios[-3]))


def test_questions_of_one_picture_are_drawn_together() -> None:
    # Ten questions, five each about two pictures, one picture all right and one all wrong: there are only two
    # independent observations, and the interval is that of two questions.
    values = [[1, 1]] * 5 + [[0, 1]] * 5
    clustered = clustered_bootstrap(values, clusters=["a"] * 5 + ["b"] * 5)
    alone = clustered_bootstrap(values)
    assert (clustered.low, clustered.high) == (0.0, 1.0)
    assert alone.low is not None and alone.low >= 0.2 and alone.high is not None and alone.high <= 0.8


def test_a_paired_difference_cancels_what_the_questions_share() -> None:
    baseline = np.array([[0.0, 1], [0.25, 1], [0.5, 1], [0.75, 1]])
    better = baseline + np.array([0.25, 0])
    difference = paired_difference(better, baseline)
    assert (difference.estimate, difference.low, difference.high) == (0.25, 0.25, 0.25)


def test_one_run_crossed_with_its_questions_is_the_plain_bootstrap() -> None:
    values = [[1, 1], [0, 1], [1, 2], [0, 3]]
    assert crossed_bootstrap([values], seed=3) == clustered_bootstrap(values, seed=3)


def test_runs_widen_the_interval_when_only_they_differ() -> None:
    # Two runs, one all right and one all wrong, on many questions: resamples of the runs have means 0, 1/2, 1.
    right, wrong = [[1, 1]] * 50, [[0, 1]] * 50
    interval = crossed_bootstrap([right, wrong])
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_a_crossed_difference_has_runs_of_its_own_and_questions_in_common() -> None:
    # Both methods fail on the same half of the questions and differ by nothing: zero whatever is drawn.
    run = [[1, 1]] * 10 + [[0, 1]] * 10
    same = crossed_bootstrap([run, run], baseline_by_seed=[run])
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_run_without_calls_does_not_hide_the_hit_rate_of_the_others() -> None:
    interval = crossed_bootstrap([[[1, 2], [1, 2]], [[0, 0], [0, 0]]])
    assert interval.estimate == 0.5


def test_undefined_is_none_not_zero() -> None:
    interval = clustered_bootstrap([[0, 0], [0, 0]])
    assert (interval.estimate, interval.low, interval.high) == (None, None, None)


@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    seed=st.integers(0, 100),
)
def test_the_interval_holds_its_estimate_of_a_mean_within_the_range_of_the_data(shares: list[float], seed: int) -> None:
    interval = clustered_bootstrap([[share, 1] for share in shares], seed=seed, num_resamples=200)
    assert interval.estimate == pytest.approx(np.mean(shares))
    assert interval.low is not None and interval.high is not None
    assert min(shares) - 1e-9 <= interval.low <= interval.high <= max(shares) + 1e-9


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="at least one question"):
        clustered_bootstrap(np.zeros((0, 2)))
    with pytest.raises(DataError, match="same questions"):
        paired_difference([[1, 1]], [[1, 1], [0, 1]])
    with pytest.raises(DataError, match="1 cluster labels for 2 questions"):
        clustered_bootstrap([[1, 1], [0, 1]], clusters=["a"])
    with pytest.raises(DataError, match="questions differ"):
        crossed_bootstrap([[[1, 1]]], baseline_by_seed=[[[1, 1], [1, 1]]])
