"""Rewards: extraction of the answer, the three built-in comparisons, hostile text, a user's own function."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axpo.errors import ConfigError
from axpo.rewards import REWARDS, checked, math
from axpo.rewards.answers import extract_answer
from axpo.rewards.choice import read_letter
from axpo.rewards.math import MathVerifier, is_equal_math, parse_number
from axpo.rewards.text import normalize_text
from axpo.types import Content, Message, Problem


def problem(answer: str, kind: str = "text", **metadata: Any) -> Problem:
    question = Message(role="user", content=(Content(text="?"),))
    return Problem(id="p1", messages=(question,), answer=answer, answer_kind=kind, metadata=metadata)


# -- where the answer stands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        ("<answer>7</answer>", "7", "answer_tag"),
        ("<answer> \\boxed{ 7 } </answer>", "7", "answer_tag"),
        ("<answer>1</answer> no: <ANSWER>2</ANSWER>", "2", "answer_tag"),
        ("<answer>1</answer> and <answer>2", "1", "answer_tag"),  # the last one is not complete
        ("<answer>1</answer> \\boxed{2}", "1", "answer_tag"),
        ("<answer>1</answer></answer>", "1", "answer_tag"),
        ("<answer></answer> the answer is 3", None, "answer_tag"),
        ("\\boxed{1} no \\boxed{2}", "2", "boxed"),
        ("\\boxed{\\frac{1}{2}} and \\boxed{3", "\\frac{1}{2}", "boxed"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "boxed"),
        ("\\boxed{\\boxed{3}}", "3", "boxed"),
        ("\\\\boxed{3}", "3", "boxed"),
        ("The answer is (D).", "(D)", "phrase"),
        ("**Answer:** 3.5 cm. Because I measured.", "3.5 cm", "phrase"),
        ("So the final answer is: **blue**", "blue", "phrase"),
        ("The answer is 3.\nNo: the answer is 4.", "4", "phrase"),
        ("The answer is 3.\n1\n2\n3", "3", "last_line"),  # too far up
        ("first\n\n second \n\n", "second", "last_line"),
        ("<think>the answer is 3</think>\n4", "4", "last_line"),
        ("thinking </think> a </think> 5", "5", "last_line"),
        ("<think>\\boxed{3}", None, "none"),
        ("", None, "none"),
        (" \n ", None, "none"),
    ],
)
def test_the_final_answer_is_found_by_the_first_rule_that_fires(text: str, answer: str | None, rule: str) -> None:
    assert extract_answer(text) == (answer, rule)


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "reward"),
    [
        ("The Blue Car", "<answer>blue  car.</answer>", 1.0),
        ("blue car", "a “Blue” car!", 1.0),
        ("Straße", "STRASSE", 1.0),
        ("2", "２", 1.0),  # full-width digit
        ("3.5", "3.5", 1.0),
        ("35", "3.5", 0.0),
        ("5", "-5", 0.0),
        ("-5", "−5", 1.0),
        ("-5", "–5", 1.0),  # a dash for a minus sign
        ("-5", "5", 0.0),
        ("5", "−5", 0.0),
        ("-.5", "-.5", 1.0),
        ("it is -5", "it is 5", 0.0),
        ("5", "5%", 0.0),
        ("12:30", "12.30", 0.0),
        ("A", "a", 1.0),  # an article alone is an answer
        ("a cat", "cat", 1.0),
        ("cat", "cats", 0.0),
        ("K", "the mark is K", 0.0),
        ("?", "!", 0.0),
        ("?", "?", 1.0),
        ("", "", 0.0),
    ],
)
def test_text_is_equal_after_normalisation(gold: str, text: str, reward: float) -> None:
    assert REWARDS["text"](text, problem(gold)) == reward


@pytest.mark.parametrize("kind", ["text", "math"])
def test_every_alias_counts(kind: str) -> None:
    judged = problem("1/2", kind, aliases=["one half", "0.5"])
    assert [REWARDS[kind](text, judged) for text in ("1/2", "one half", "0.5", "2")] == [1.0, 1.0, 1.0, 0.0]


# -- choice -----------------------------------------------------------------------------------------------------------

COLORS = ("red", "a blue car", "green")


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("B", (), "B"),
        ("b", (), "B"),
        ("(B)", (), "B"),
        ("[b].", (), "B"),
        ("B.", (), "B"),
        ("**B**", (), "B"),
        ("$\\text{B}$", (), "B"),
        ("a", (), "A"),
        ("a blue car", (), None),  # an article
        ("A blue car", (), None),
        ("(B) A blue car", (), "B"),
        ("B. a dog and a cat", (), "B"),
        ("option B", (), "B"),
        ("Option (c) is right", (), "C"),
        ("It is B.", (), "B"),
        ("I take (D)", (), "D"),
        ("it is vitamin C", (), None),
        ("A or B", (), None),
        ("A) or B)", (), None),
        ("A, B", (), None),
        ("A. B. C. D.", (), None),
        ("option b or c", (), None),
        ("Option A and option D are both right", (), None),
        ("(A) (B)", (), None),
        ("none of them", (), None),
        ("A blue car.", COLORS, "B"),
        ("blue car", COLORS, "B"),  # leading articles do not count
        ("B. a blue car", COLORS, "B"),
        ("B: blue", COLORS, "B"),
        ("A. green", COLORS, None),  # letter and text contradict each other
        ("B. subtilis", ("B. subtilis", "E. coli"), "A"),  # an option that looks like a letter and its text
        ("D", COLORS, None),  # there is no such option
        ("red", ("red", "red"), None),
    ],
)
def test_an_option_is_named_by_letter_or_text(answer: str, choices: tuple[str, ...], letter: str | None) -> None:
    assert read_letter(answer, choices) == letter


def test_the_choice_reward_compares_options() -> None:
    judged = problem("B", "choice", choices=list(COLORS))
    texts = ("<answer>(B)</answer>", "The answer is a blue car.", "<answer>red</answer>", "<answer>A</answer>", "")
    assert [REWARDS["choice"](text, judged) for text in texts] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_every_accepted_option_of_a_choice_is_right() -> None:
    judged = problem("A", "choice", choices=["red", "blue", "green"], aliases=["C"])
    texts = ("<answer>A</answer>", "<answer>C</answer>", "<answer>B</answer>", "<answer>A or C</answer>")
    assert [REWARDS["choice"](text, judged) for text in texts] == [1.0, 1.0, 0.0, 0.0]


# -- math -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250.5", Fraction(2501, 2)),
        ("12 000", Fraction(12000)),
        ("-1 1/2", Fraction(-3, 2)),
        ("\\dfrac{3}{4}", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("3.", Fraction(3)),
        ("6.6e-34", Fraction(66, 10**35)),
        ("10\\%", Fraction(1, 10)),
        ("5/0", None),
        ("1e9999", None),
        ("1,25", None),
        ("5 6", None),
        ("", None),
        ("-", None),
        (".", None),
    ],
)
def test_plain_numbers_are_exact(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("gold", "answer", "is_equal"),
    [
        # plain numbers
        ("1000000", "1000001", False),
        ("5", "5.0", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("12.566371", "12.5663706", True),
        ("6.6e-34", "1e-34", False),
        ("10", "10%", False),
        ("0.1", "10\\%", True),
        ("5", "\\$5", True),
        ("0.5", "**\\boxed{1/2}**.", True),
        # signs
        ("-5", "5", False),
        ("5", "-5", False),
        ("-5", "−5", True),
        ("-5", "–5", True),  # a dash for a minus sign
        ("5", "−5", False),
        ("-1/2", "-0.5", True),
        ("-1/3", "-0.333333", True),
        ("1/2", "-1/2", False),
        ("-5 cm", "5 cm", False),
        ("-5 cm", "-5\\text{ cm}", True),
        ("-2\\pi", "2\\pi", False),
        ("-2\\pi", "−2π", True),
        # LaTeX
        ("4\\pi", "12.566371", True),
        ("4\\pi", "12.57", False),
        ("4π", "\\(4\\pi\\)", True),
        ("3√2", "3\\sqrt{2}", True),
        ("x²−1", "(x-1)(x+1)", True),
        ("2**10", "1024", True),
        ("50\\%", "\\frac12", True),
        ("2\\pi\\%", "2\\pi", False),
        ("6.6\\times 10^{-34}", "1\\times 10^{-34}", False),
        ("6.6\\times 10^{-34}", "6.6e-34", True),
        ("90°", "90^\\circ", True),
        ("5", "x = 5", True),
        ("5", "x=5, x=6", False),
        # tuples and sets
        ("(0, 6)", "(9, 6)", False),
        ("(3,-4)", "\\left(3, -4\\right)", True),
        ("(1,2)", "(2,1)", False),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("[0,1)", "[0,1]", False),
        # the last box only
        ("12", "\\boxed{11} \\boxed{12}", True),
        ("11", "\\boxed{11} \\boxed{12}", False),
        # units
        ("5", "5\\text{ cm}", True),
        ("5 cm", "5\\text{ m}", False),
        ("5 km^2", "5\\text{ km}^2", True),
        ("5 cm", "6 cm", False),
        # what math-verify would multiply or add
        ("act", "cat", False),
        ("Yes", "\\text{yes}", True),
        ("11", "5 6", False),
        ("3:30", "3:30", True),
        ("2x+3y", "3y+2x", True),
        ("x", "", False),
        ("", "", False),
    ],
)
def test_mathematics_is_compared_as_mathematics(gold: str, answer: str, is_equal: bool) -> None:
    assert is_equal_math(gold, answer) is is_equal


def test_math_works_from_many_threads_at_once() -> None:
    verdicts: dict[int, list[float]] = {}

    def judge(number: int) -> None:
        texts = (f"\\boxed{{\\pi \\cdot {number}}}", f"\\boxed{{\\pi + {number}}}")
        verdicts[number] = [REWARDS["math"](text, problem(f"{number}\\pi", "math")) for text in texts]

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: [1.0, 0.0] for number in range(3, 9)}


BOMBS = ["9**9**9**9", "9^{9^{9^{9}}}", "\\sum_{i=1}^{10^{12}} i^i", "(" * 400, "\\frac{" * 80, "((9!)!)!", "1" * 501]


def test_bombs_are_wrong_within_the_limit_and_leave_the_verifier_working() -> None:
    verifier = MathVerifier(cpu_limit_s=0.5)
    try:
        assert verifier.is_equal("2\\pi", "\\pi+\\pi")
        started = time.process_time()
        assert [bomb for bomb in BOMBS if verifier.is_equal("5", bomb)] == []
        assert verifier.is_equal("2\\pi", "\\pi+\\pi")
        assert time.process_time() - started < 2.0  # the work was done and cut off in the other process
    finally:
        verifier.close()


def test_a_bomb_costs_a_rollout_its_reward_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = MathVerifier(cpu_limit_s=0.5)
    monkeypatch.setattr(math, "_verifier", verifier)
    try:
        assert REWARDS["math"]("<answer>8^{8^{8^{8}}}</answer>", problem("5", "math")) == 0.0
        assert REWARDS["math"]("<answer>\\sqrt{25}</answer>", problem("5", "math")) == 1.0
    finally:
        verifier.close()


def test_a_verifier_killed_while_idle_is_started_again() -> None:
    verifier = MathVerifier()
    try:
        assert verifier.is_equal("2\\pi", "\\pi+\\pi")
        (worker,) = cast("Any", verifier)._workers._idle
        worker._process.kill()
        worker._process.wait()
        assert verifier.is_equal("3\\pi", "\\pi+2\\pi")
    finally:
        verifier.close()


# -- hostile text -----------------------------------------------------------------------------------------------------

PIECES = [
    "\u0323\u0301",
    "<answer>", "</answer>", "\\boxed{", "}", "{", "</think>", "<think>", "answer is ", "\n", "(A)", " or ", "B.",
    "9**9", "\\frac", "$", "%", "\ud800", "\x00", "İ", "１", "−", "option ", "a ", "1e5", "/", "0", " ", "é", "\\text{",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join))
def test_no_text_raises_in_text_and_choice(text: str) -> None:
    extract_answer(text)
    parse_number(text)
    assert REWARDS["text"](text, problem("B")) in (0.0, 1.0)
    assert REWARDS["choice"](text, problem("B", "choice", choices=["x", "y"])) in (0.0, 1.0)


@pytest.mark.parametrize("piece", [*PIECES, "answer is answer", "((", "1,", "1 ", "A, ", "\\boxed{{", "option a "])
def test_long_repetitions_are_judged_in_linear_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    for kind in REWARDS:
        assert REWARDS[kind](text, problem("Z", kind)) == 0.0
    assert time.process_time() - started < 5.0


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_that_has_no_second_article(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) in (once, *(once.removeprefix(f"{article} ") for article in ("a", "an", "the")))


# -- a user's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", [1, 1.0, True, np.float32(1), np.bool_(True), np.array(1), torch.tensor(1.0), torch.tensor(True)]
)
def test_a_users_reward_may_return_any_kind_of_one(result: Any) -> None:
    reward = checked(lambda final_text, problem: result, "mine:reward")("text", problem("x"))
    assert reward == 1.0 and type(reward) is float


@pytest.mark.parametrize("result", [0.5, -1, float("nan"), float("inf"), None, "1", [1], np.ones(2), torch.zeros(1)])
def test_a_users_reward_that_is_not_binary_is_named_with_its_problem(result: Any) -> None:
    with pytest.raises(ConfigError, match=r"reward mine:reward: must return 0 or 1 .* on problem p1\. .* threshold"):
        checked(lambda final_text, problem: result, "mine:reward")("text", problem("x"))


def test_a_users_reward_that_raises_is_named_with_its_problem() -> None:
    def reward(final_text: str, problem: Problem) -> float:
        return float(final_text)

    assert checked(reward, "mine:reward")("1", problem("x")) == 1.0
    with pytest.raises(ConfigError, match=r"reward mine:reward: raised ValueError on problem p1: could not convert"):
        checked(reward, "mine:reward")("one", problem("x"))


def test_a_users_reward_with_other_parameters_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"reward mine:trl: must be callable as f\(final_text, problem\), but"):
        checked(lambda completions, **kwargs: [1.0], "mine:trl")
    with pytest.raises(ConfigError, match=r"reward mine:number: must be callable"):
        checked(cast("Any", 3), "mine:number")
