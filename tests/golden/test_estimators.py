"""Pass@k against enumeration of all draws."""

from __future__ import annotations

import math
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


def test_pass_at_4_of_four_samples_is_any_of_them_right() -> None:
    assert [pass_at_k(4, num_correct, 4) for num_correct in range(5)] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert [pass_at_k(4, num_correct, 1) for num_correct in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_pass_at_4_of_eight_samples_by_hand() -> None:
    # C(8,4) = 70 draws; C(8-c,4) of them hold wrong samples only: 70, 35, 15, 5, 1, 0, ...
    expected = [1 - Fraction(misses, 70) for misses in (70, 35, 15, 5, 1, 0, 0, 0, 0)]
    assert [pass_at_k(8, num_correct, 4) for num_correct in range(9)] == pytest.approx([float(x) for x in expected])
    assert [round(float(x), 4) for x in expected[:6]] == [0.0, 0.5, 0.7857, 0.9286, 0.9857, 1.0]


@pytest.mark.parametrize(("n", "c", "k"), [(16, 3, 4), (64, 1, 8), (256, 200, 16), (200, 7, 100)])
def test_pass_at_k_equals_the_product_form_of_its_paper(n: int, c: int, k: int) -> None:
    product = math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(1 - product, abs=1e-12)


@pytest.mark.parametrize(
    ("published", "scores"),
    [
        (60.5, [55.3, 78.2, 60.4, 87.7, 40.1, 79.5, 74.9, 24.4, 44.0]),  # 8B, SFT + GRPO
        (62.3, [56.1, 79.0, 60.6, 87.8, 45.8, 83.3, 77.0, 25.9, 45.0]),  # 8B, SFT + AXPO
        (62.9, [56.5, 83.3, 64.1, 89.1, 40.3, 85.2, 78.9, 22.8, 46.1]),  # 32B
    ],
)
def test_the_headline_of_the_paper_is_the_plain_mean_of_nine_benchmarks(published: float, scores: list[float]) -> None:
    assert average(scores) == pytest.approx(published, abs=0.05 + 1e-9)


@pytest.mark.parametrize(("num_questions", "is_reachable"), [(106, True), (268, True), (141, False), (515, False)])
def test_the_paper_s_pass_at_4_of_visual_probe_fits_the_hard_subset(num_questions: int, is_reachable: bool) -> None:
    # 67.9 % of N questions, each 0 or 1 with four samples: is there a whole number of solved ones?
    values = [average([pass_at_k(4, 1, 4)] * m + [pass_at_k(4, 0, 4)] * (num_questions - m)) for m in range(60, 400)]
    assert any(f"{100 * value:.1f}" == "67.9" for value in values if value is not None) is is_reachable


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
