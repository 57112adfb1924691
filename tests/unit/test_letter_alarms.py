"""Alarms for one letter that dominates the right options of a multiple-choice benchmark, or the model's answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from axpo.evaluation.letters import binomial_tail, count_letters
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.summary import summarize
from axpo.evaluation.tallies import tally_questions
from axpo.types import Problem
from benchmark_records import answered, info, question


def asked(golds: str, *, num_options: Sequence[int] | int = 4, per_cluster: int = 1) -> list[Problem]:
    sizes = [num_options] * len(golds) if isinstance(num_options, int) else num_options
    problems: list[Problem] = []
    for index, (gold, size) in enumerate(zip(golds, sizes, strict=True)):
        problem = question(f"q{index:03}", cluster=f"c{index // per_cluster}")
        choices = [f"option {number}" for number in range(size)]
        problems.append(replace(problem, answer=gold, metadata={**problem.metadata, "choices": choices}))
    return problems


def replied(problems: Sequence[Problem], letters: Sequence[str | None]) -> list[JudgedRollout]:
    rollouts: list[JudgedRollout] = []
    for problem, letter in zip(problems, letters, strict=True):
        judged = answered(problem.id, 0, right=letter == problem.answer)
        rollouts.append(replace(judged, verdict=replace(judged.verdict, letter=letter)))
    return rollouts


def alarms(problems: Sequence[Problem], letters: Sequence[str | None]) -> dict[str, str]:
    summary = summarize(info(), problems, replied(problems, letters), num_samples=1)
    found = {alarm.name: alarm.text for alarm in summary.alarms}
    return {name: text for name, text in found.items() if "letter" in name}


def test_one_predicted_letter_is_named_with_its_share_and_how_often_it_is_right() -> None:
    found = alarms(asked("ABCD" * 5), "B" * 20)
    assert set(found) == {"one_answer_letter"}
    assert "answers B in 100.0 % of 20" in found["one_answer_letter"] and "25.0 %" in found["one_answer_letter"]


def test_one_gold_letter_is_named_with_its_share_and_what_is_expected() -> None:
    found = alarms(asked("C" * 20), ["A", "B", "C", "D"] * 5)
    assert set(found) == {"one_gold_letter"}
    assert "C is the right option in 100.0 % of 20" in found["one_gold_letter"] and "25.0 %" in found["one_gold_letter"]


@pytest.mark.parametrize(
    ("golds", "letters", "expected"),
    [
        ("ABCD" * 5, "ABCD" * 5, set[str]()),  # all right
        ("ABCD" * 5, "ABAD" * 5, set[str]()),  # half A: 0.014 by chance
        ("ABCD" * 25, "AAAD" * 25, {"one_answer_letter"}),  # three quarters of 100
        ("ABCD" * 25, "A" * 30 + "BCD" * 23 + "B", set[str]()),  # five points too many are no 15 points
        ("ABCDA", "AAAAA", set[str]()),  # five questions say nothing
        ("ABCDAB", "AAAAAB", set[str]()),  # 0.011 by chance: A is taken to be right in (2 + 1) / (6 + 4) of them
        ("ABCDAB", "AAAAAA", {"one_answer_letter"}),  # 0.0007
        ("ABCDABCD", "AAAAAAAA", {"one_answer_letter"}),
        ("AAAAABCD" * 4, "AAAAABCD" * 4, {"one_gold_letter"}),  # right where the data are skewed
    ],
)
def test_a_letter_dominates_by_both_tests_or_not_at_all(golds: str, letters: str, expected: set[str]) -> None:
    assert set(alarms(asked(golds), letters)) == expected


def test_questions_with_two_options_are_expected_to_have_more_of_the_first_letters() -> None:
    problems = asked("AB" * 20 + "ABCD" * 5, num_options=[2] * 40 + [4] * 20)
    table = count_letters(tally_questions(problems, [], num_samples=1))
    assert table is not None and (table.num_questions, table.num_answered) == (60, 0)
    assert [(count.letter, count.num_gold, count.num_gold_expected) for count in table.letters] == [
        ("A", 25.0, 25.0),
        ("B", 25.0, 25.0),
        ("C", 5.0, 5.0),
        ("D", 5.0, 5.0),
    ]
    assert alarms(problems, [None] * 60) == {}


def test_rotations_of_one_question_count_as_one() -> None:
    assert alarms(asked("ABCD" * 5, per_cluster=4), "A" * 20) == {}  # five questions
    found = alarms(asked("ABCD" * 8, per_cluster=4), "A" * 32)
    assert "100.0 % of 8" in found["one_answer_letter"]


def test_free_questions_and_answers_without_a_letter_do_not_count() -> None:
    free = [question(f"free{index}") for index in range(20)]
    assert count_letters(tally_questions(free, [], num_samples=1)) is None
    problems = asked("ABCD" * 5)
    table = count_letters(tally_questions(problems, replied(problems, ["A", *[None] * 19]), num_samples=1))
    assert table is not None and table.num_answered == 1 and table.letters[0].num_answered == 1.0


def test_a_gold_that_is_an_option_s_text_counts_as_its_letter() -> None:
    problems = [replace(problem, answer="option 2") for problem in asked("A" * 8)]
    assert "C is the right option" in alarms(problems, [None] * 8)["one_gold_letter"]


def test_a_model_that_guesses_raises_no_alarm() -> None:
    draw = random.Random(0)
    problems = asked("ABCD" * 10)
    found = [alarms(problems, draw.choices("ABCD", k=40)) for _ in range(40)]
    assert found == [{}] * 40


@pytest.mark.parametrize(
    ("count", "trials", "chance"), [(3, 8, Fraction(1, 4)), (8, 8, Fraction(1, 3)), (1, 5, Fraction(2, 7))]
)
def test_the_binomial_tail_is_exact(count: int, trials: int, chance: Fraction) -> None:
    exact = sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(count, trials + 1))
    assert binomial_tail(count, trials, float(chance)) == pytest.approx(float(exact), rel=1e-12)
    assert binomial_tail(count + 0.9, trials, float(chance)) == binomial_tail(count, trials, float(chance))
