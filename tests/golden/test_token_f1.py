"""Token F1 of MMSearch: values worked out by hand, 2 * common / (words of both)."""

from __future__ import annotations

from fractions import Fraction

import pytest

from axpo.benchmarks.scorers.mmsearch import best_f1, token_f1


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("Paris", "Paris", Fraction(1)),
        ("Paris", "It is Paris", Fraction(2, 4)),  # precision 1/3, recall 1
        ("New York City", "the city of New York", Fraction(6, 7)),  # the article is no word: precision 3/4, recall 1
        ("blue red", "blue blue red", Fraction(4, 5)),  # a word counts as often as both have it
        ("blue blue", "blue", Fraction(2, 3)),
        ("2024-06-01", "June 1, 2024", Fraction(0)),  # 20240601 against june, 1, 2024
        ("2024-06-01", "2024 06 01", Fraction(0)),
        ("3.5", "35", Fraction(1)),  # punctuation goes first
        ("U.S.A.", "USA", Fraction(1)),
        ("Ångström", "ångström", Fraction(1)),
        ("“Dune”", "Dune", Fraction(0)),  # only ASCII punctuation goes
        ("an apple", "apple", Fraction(1)),
        ("anapple", "an apple", Fraction(0)),
        ("the", "a", Fraction(1)),  # no words on either side
        ("Paris", "", Fraction(0)),
        ("Paris", "the", Fraction(0)),
        ("invalid question", "The question is invalid.", Fraction(4, 5)),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_words(gold: str, answer: str, expected: Fraction) -> None:
    assert token_f1(gold, answer) == pytest.approx(float(expected), rel=1e-12)


def test_the_best_of_several_right_answers_counts() -> None:
    assert best_f1("Lisa Su", ("Su", "Lisa Tzwu-Fang Su")) == pytest.approx(4 / 5)  # 2/3 and 4/5
