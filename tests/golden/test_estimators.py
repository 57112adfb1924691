"""Pass@k against enumeration of all draws."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from axpo.errors import DataError
from axpo.evaluation.estimators import average, pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_without_replacement_that_contain_a_right_sample(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        outcomes = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            draws = list(combinations(outcomes, k))
            expected = Fraction(sum(any(draw) for draw in draws), len(draws))
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(float(expected), abs=1e-15)


def test_pass_at_k_by_hand() -> None:
    # n = 4, c = 2, k = 2: of the C(4,2) = 6 pairs only the one pair of wrong samples fails.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    # k = 1 is the share of right samples.
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


def test_pass_at_k_stays_exact_where_a_running_product_would_not() -> None:
    # 1 - C(n-1, k) / C(n, k) = k / n.
    assert pass_at_k(10_000, 1, 2_500) == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0), (0, 0, 1)])
def test_numbers_that_do_not_fit_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(DataError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_average_of_nothing_is_unknown() -> None:
    assert average([]) is None
    assert average([0.25, 0.75, 0.5]) == 0.5
