"""Scorers of benchmarks: which rule fires on what a model wrote, and what it makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from axpo.benchmarks.scorers import letters, mathvr, mmsearch, short_answers
from axpo.dialogue import Verdict
from axpo.types import Content, Message, Problem

Score = Callable[[Problem, str], Verdict]


def problem(answer: str, **metadata: Any) -> Problem:
    question = Message(role="user", content=(Content(text="What is it?"),))
    return Problem(id="p1", messages=(question,), answer=answer, metadata=metadata)


def outcome(verdict: Verdict) -> tuple[str, bool]:
    """Its rule, and whether it is right. What is undecided is never right."""
    assert verdict.is_decided == (verdict.rule != "undecided")
    assert verdict.is_decided or not verdict.is_correct
    return verdict.rule, verdict.is_correct


# -- V*, HR-Bench -----------------------------------------------------------------------------------------------------

COLORS = ("The car is red", "The car is blue", "The car is green", "The car is black")
SIDES = ("left (of the man)", "right (of the man)")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: C", "C"),
        ("After zooming, the answer is (D).", "D"),
        ("Based on the image, the answer is C", "C"),
        ("<answer>B</answer>", "B"),
        ("<answer>(B) The car is blue</answer>", "B"),
        ("<answer>The answer is (B)</answer>", "B"),
        ("<answer>Answer: B</answer>", "B"),
        ("**B**", "B"),
        ("b", "B"),
        ("\\boxed{\\text{D}}", "D"),
        ("<think>It may be A or B. The answer is A.</think>Answer: C", "C"),
        ("I think (A), (B)? Looking closer.\nAnswer: **D**", "D"),
        ("So the correct option is **B**: it is blue all over.", "B"),
        ("Option A is out; the correct choice is B) blue.", "B"),
        ("The correct answer is:\n\n**B. The car is blue**", "B"),
        ("Option (C) is right.", "C"),
        ("<answer>My first answer: it was A. The correct option is B: blue.</answer>", "B"),
        ("**Answer:**\n\n(C)\n", "C"),
        ("The answer is:\n(C)\nI am sure.", "C"),
    ],
)
@pytest.mark.parametrize("score", [letters.score, letters.score_vstar_official, letters.score_hrbench_official])
def test_a_letter_is_read_from_agent_text(text: str, letter: str, score: Score) -> None:
    for gold in "ABCD":
        assert outcome(score(problem(gold, choices=list(COLORS)), text)) == ("letter", gold == letter)


@pytest.mark.parametrize(
    ("choices", "gold", "text", "expected", "vstar", "hrbench"),
    [
        (COLORS, "B", "<answer>the car is blue.</answer>", ("option_text", True), "no_letter", "option_text"),
        (COLORS, "C", "<answer>the car is blue.</answer>", ("option_text", False), "no_letter", "option_text"),
        (COLORS, "B", "I see that the car is blue, clearly.", ("undecided", False), "no_letter", "option_text"),
        (SIDES, "A", "left (of the man)", ("option_text", True), "no_letter", "option_text"),
        (SIDES, "A", "(A) left (of the man)", ("letter", True), "letter", "letter"),
        (SIDES, "A", "C", ("no_such_option", False), "letter", "undecided"),
        (SIDES, "A", "The answer is (D).", ("no_such_option", False), "letter", "undecided"),
        (SIDES, "A", "left", ("undecided", False), "no_letter", "undecided"),
        (("red", "blue"), "A", "A blue car", ("undecided", False), "no_letter", "option_text"),  # an article
        (("a blue car", "a red car"), "A", "A blue car", ("option_text", True), "no_letter", "option_text"),
        (("green", "blue"), "A", "A. blue", ("undecided", False), "letter", "option_text"),  # contradicts itself
        (COLORS, "B", "The car is red. No, the car is blue.", ("undecided", False), "no_letter", "undecided"),
        (COLORS, "A", "A or B", ("undecided", False), "no_letter", "undecided"),
        (COLORS, "A", "<answer>A, B</answer>", ("undecided", False), "no_letter", "undecided"),
        (COLORS, "A", "(A) (B)", ("undecided", False), "no_letter", "undecided"),
        (COLORS, "A", "I cannot see it.", ("undecided", False), "no_letter", "undecided"),
        (COLORS, "A", "The answer is:", ("no_answer", False), "no_answer", "no_answer"),
        (COLORS, "A", "", ("no_answer", False), "no_answer", "no_answer"),
        (COLORS, "A", "<think>The answer is A", ("no_answer", False), "no_answer", "no_answer"),
        (COLORS, "A", "<answer></answer>A", ("no_answer", False), "no_answer", "no_answer"),
        (("B", "A", "D", "C"), "A", "B", ("letter", False), "letter", "letter"),  # options that are letters
        (("E", "F", "G", "H"), "C", "G", ("option_text", True), "letter", "option_text"),
        (("$2 \\sqrt{13}$", "8"), "A", "\\boxed{2\\sqrt{13}}", ("option_text", True), "no_letter", "option_text"),
        (("“IN_1”", "IN 1"), "A", "“IN_1”", ("option_text", True), "no_letter", "option_text"),
    ],
)
def test_options_are_named_by_letter_within_the_item_or_by_text(
    choices: tuple[str, ...], gold: str, text: str, expected: tuple[str, bool], vstar: str, hrbench: str
) -> None:
    item = problem(gold, choices=list(choices))
    assert outcome(letters.score(item, text)) == expected
    assert letters.score_vstar_official(item, text).rule == vstar
    assert letters.score_hrbench_official(item, text).rule == hrbench


def test_a_verdict_says_what_was_read_and_where() -> None:
    verdict = letters.score(problem("B", choices=list(COLORS)), "Well. The answer is (B). It is blue.")
    assert (verdict.answer, verdict.extraction) == ("(B)", "phrase")


# -- VisualProbe, HR-MMSearch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("Coca-Cola", "<answer>coca cola</answer>", ("exact", True)),
        ("Queen of the South", "<answer>The Queen of South.</answer>", ("exact", True)),
        ("1250", "The answer is 1,250.", ("number", True)),
        ("3.5", "3.50", ("number", True)),
        ("35", "3.5", ("undecided", False)),
        ("5", "-5", ("undecided", False)),
        ("10", "10%", ("undecided", False)),
        ("5 dogs", "5", ("undecided", False)),
        ("red", "blue", ("undecided", False)),
        ("red", "red or blue", ("undecided", False)),
        ("red", "<think>red</think>", ("no_answer", False)),
        ("red", "<answer> </answer> red", ("no_answer", False)),
        ("A", "<answer>a</answer>", ("exact", True)),  # an article alone is an answer
    ],
)
def test_short_answers_are_the_same_after_normalisation_or_undecided(
    gold: str, text: str, expected: tuple[str, bool]
) -> None:
    assert outcome(short_answers.score(problem(gold), text)) == expected


def test_every_alias_is_right() -> None:
    item = problem("United States", aliases=["USA", "US"])
    for score in (short_answers.score, short_answers.score_hrmmsearch_official, mmsearch.score):
        assert [outcome(score(item, f"<answer>{text}</answer>")) for text in ("usa", "US.", "UK")] == [
            ("exact", True),
            ("exact", True),
            ("undecided", False),
        ]


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        ("<answer>red</answer>", "undecided", "red"),  # also when it is the right one: all are judged
        ("<answer>blue</answer> no <answer>\\boxed{red}</answer>", "undecided", "blue"),
        ("<answer>\nblue <answer>red</answer>", "undecided", "blue <answer>red"),
        ("The answer is red.", "no_answer_tag", None),
        ("<think><answer>red</answer></think> blue", "undecided", "red"),
        ("red</answer> <answer>", "no_answer_tag", None),
        ("<answer>red", "no_answer_tag", None),
        ("<answer> </answer>", "no_answer", None),
    ],
)
def test_official_visualprobe_reads_the_first_answer_block_alone(text: str, rule: str, answer: str | None) -> None:
    verdict = short_answers.score_visualprobe_official(problem("red"), text)
    assert (verdict.rule, verdict.answer) == (rule, answer)
    assert not verdict.is_correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>no</think> The 35.", ("exact", True)),  # all that follows the thinking
        ("<answer>3.5</answer>", ("exact", True)),  # punctuation within numbers goes, as published
        ("It is 35.", ("undecided", False)),
        ("\\boxed{35}", ("undecided", False)),
        ("<think>35", ("no_answer", False)),
    ],
)
def test_official_hrmmsearch_compares_in_squads_normal_form(text: str, expected: tuple[str, bool]) -> None:
    assert outcome(short_answers.score_hrmmsearch_official(problem("35"), text)) == expected


# -- MMSearch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golds", "text", "expected", "f1"),
    [
        (["Lisa Su"], "<answer>Lisa Su</answer>", ("exact", True), 1.0),
        (["Lisa Su"], "<answer>Dr. Lisa Su</answer>", ("undecided", False), 0.8),
        (["2024-06-01"], "The answer is June 1, 2024.", ("date", True), 0.0),
        (["2024-06-01"], "on 1st of June 2024", ("date", True), 0.0),
        (["2024-06-01"], "2024/6/1", ("date", True), 0.0),
        (["2024-06-13"], "13/06/2024", ("date", True), 0.0),
        (["2024-06-01"], "06/01/2024", ("undecided", False), 0.0),  # or January the sixth
        (["2024-06-01"], "June 2, 2024", ("undecided", False), 0.0),
        (["2024-02-30"], "February 30, 2024", ("undecided", False), 0.0),  # no such day
        (["invalid question"], "This is an invalid question.", ("invalid_question", True), 2 / 3),
        (["Invalid Question"], "invalid question", ("exact", True), 1.0),
        (["Paris"], "<answer>Invalid question</answer>", ("invalid_question", False), 0.0),
        (["invalid question"], "It is not an invalid question: Paris", ("undecided", False), 1 / 2),
        (["7", "seven"], "<answer>7.0</answer>", ("number", True), 0.0),
        (["Paris"], "", ("no_answer", False), 0.0),
    ],
)
def test_mmsearch_gives_a_verdict_and_the_published_f1(
    golds: list[str], text: str, expected: tuple[str, bool], f1: float
) -> None:
    verdict = mmsearch.score(problem(golds[0], aliases=golds[1:]), text)
    assert outcome(verdict) == expected
    assert verdict.scores == {"f1": pytest.approx(f1)}


def test_official_mmsearch_is_right_when_f1_is_one() -> None:
    item = problem("New York City", aliases=["NYC"])
    texts = ("<answer>City New York</answer>", "nyc", "It is NYC", "\\boxed{NYC}", "")
    verdicts = [mmsearch.score_official(item, text) for text in texts]
    assert [(verdict.rule, verdict.is_correct) for verdict in verdicts] == [
        ("f1", True),
        ("f1", True),
        ("f1", False),
        ("f1", False),
        ("no_answer", False),
    ]
    assert [verdict.scores["f1"] for verdict in verdicts] == [1.0, 1.0, 0.5, 0.0, 0.0]


# -- Math-VR ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "text", "expected"),
    [
        (["5"], "\\boxed{5}", ("all_parts", True)),
        (["\\frac{1}{2}"], "<answer>0.5</answer>", ("all_parts", True)),
        (["5"], "\\boxed{(1) 5}", ("all_parts", True)),
        (["(1) 5"], "The answer is 5.", ("all_parts", True)),
        (["B"], "<answer>(B) the triangle</answer>", ("all_parts", True)),
        (["B"], "<answer>C</answer>", ("undecided", False)),
        (["5"], "\\boxed{4}", ("undecided", False)),
        (["5"], "\\boxed{4}. I made a mistake, it is \\boxed{5}", ("undecided", False)),  # a judge's matter
        (["5"], "\\boxed{5}, that is \\boxed{x = 5}", ("all_parts", True)),
        (["5"], "$\\boxed{4}$ or $\\boxed{5}$", ("hedged", False)),
        (["5"], "<answer>4 or 5</answer>", ("hedged", False)),
        (["x=4 or x=5"], "\\boxed{5 \\text{ or } 4}", ("all_parts", True)),
        (["4"], "<answer>one of the sides or the base</answer>", ("undecided", False)),
        (["1: 3"], "<answer>2: 3</answer>", ("undecided", False)),  # ratios, not labels
        (["1: 3"], "<answer>3</answer>", ("undecided", False)),
        (["5", "x = 3"], "<answer>(1) 5; (2) 3</answer>", ("all_parts", True)),
        (["5", "x = 3"], "<answer>(2) 3; (1) 5</answer>", ("undecided", False)),
        (["5", "3"], "\\boxed{5, 3}", ("all_parts", True)),
        (["5", "3"], "\\boxed{3, 5}", ("undecided", False)),  # the order counts
        (["5", "3"], "\\boxed{5 and 3}", ("all_parts", True)),
        (["(1) 5", "(2) 3"], "Part 1 gives \\boxed{5}.\nPart 2 gives \\boxed{3}.", ("all_parts", True)),
        (["5", "3"], "\\boxed{5}", ("undecided", False)),
        (["5", "3"], "\\boxed{5} \\boxed{3} \\boxed{3}", ("undecided", False)),
        (["5", "3"], "\\boxed{(2) 5} \\boxed{(1) 3}", ("undecided", False)),  # labels of the other part
        (["5", "3"], "We get:\n(1) 5\n**(2)** $3$", ("all_parts", True)),
        (["5", "3"], "1. \\boxed{5} by symmetry\n2. \\boxed{4}\n\nNo:\n2. \\boxed{3}", ("all_parts", True)),
        (["(0, 5)", "3"], "<answer>(0, 5), 3</answer>", ("all_parts", True)),  # commas within brackets separate nothing
        (["5", "3"], "<answer>① 5 ② 3</answer>", ("all_parts", True)),
        (["5"], "<think>\\boxed{5}</think>", ("no_answer", False)),
    ],
)
def test_all_parts_of_math_vr_have_to_be_right(answers: list[str], text: str, expected: tuple[str, bool]) -> None:
    verdict = mathvr.score(problem("; ".join(answers), answers=answers, number_of_answers=len(answers)), text)
    assert outcome(verdict) == expected
    assert verdict.scores == {"process_score": float(expected[1])}


def test_parts_of_math_vr_that_share_one_text_are_taken_apart() -> None:
    item = problem("(1) 5 (2) 3", answers=["(1) 5 (2) 3"], number_of_answers=2)
    assert mathvr.gold_parts(item) == ("5", "3")
    assert mathvr.gold_parts(problem("7")) == ("7",)
    assert mathvr.gold_parts(problem("7", answers="x = 7")) == ("x = 7",)


def test_official_math_vr_leaves_every_solution_to_the_judge() -> None:
    assert outcome(mathvr.score_official(problem("5", answers=["5"]), "\\boxed{5}")) == ("undecided", False)
    assert outcome(mathvr.score_official(problem("5", answers=["5"]), "")) == ("no_answer", False)


# -- whatever a model writes ------------------------------------------------------------------------------------------

ITEM = problem(
    "B", choices=["red", "blue (dark)"], aliases=["2024-06-01", "5"], answers=["5", "x=3"], number_of_answers=2
)
SCORES: tuple[Score, ...] = (
    letters.score,
    letters.score_vstar_official,
    letters.score_hrbench_official,
    short_answers.score,
    short_answers.score_visualprobe_official,
    short_answers.score_hrmmsearch_official,
    mmsearch.score,
    mmsearch.score_official,
    mathvr.score,
    mathvr.score_official,
)
PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "\\boxed{",
        "{",
        "}",
        "(",
        ")",
        "(1)",
        "(2) ",
        "A",
        "b.",
        ";",
        ",",
        " or ",
        "\n",
        "answer is ",
        "5",
        "٣",
        "²",
        "①",
        "1e999",
        "-",
        "/0",
        "%",
        "年",
        "June ",
        "2024",
        "\\frac",
        "\ud800",
    ]
)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=14).map("".join)))
@example("<answer>" + "9" * 5000 + "</answer>")
@example("\\boxed{" + "9" * 499 + "}")
@example("\\boxed{" * 3000)
def test_no_text_raises_and_every_verdict_is_consistent(text: str) -> None:
    for score in SCORES:
        verdict = score(ITEM, text)
        outcome(verdict)
        assert (verdict.answer is None) == (verdict.rule in ("no_answer", "no_answer_tag"))
        assert all(0 <= number <= 1 for number in verdict.scores.values())
        assert verdict == score(ITEM, text)


@pytest.mark.parametrize(
    "piece",
    [
        "a ",
        "(",
        "\\boxed{",
        "\\boxed{5} ",
        "<answer>",
        "<answer>5</answer>",
        "(1) ",
        "1. 5\n",
        "answer is ",
        ". ",
        " ",
        "answer:\n",
        "\n",
        "A, ",
        "5 or ",
        "or",
        "{}",
        "the ",
        "2024-",
        ",",
        "9",
    ],
)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: f"{score.__module__.rpartition('.')[2]}.{score.__name__}")
def test_a_long_text_is_scored_in_linear_time(score: Score, piece: str) -> None:
    text = piece * (300_000 // len(piece))
    start_s = time.process_time()
    score(ITEM, text)
    score(ITEM, f"<answer>{text}</answer>")
    assert time.process_time() - start_s < 10  # what is quadratic takes minutes
