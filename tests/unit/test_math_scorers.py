"""Scorers of MathVision and DynaMath on answers that have misled others."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from axpo.benchmarks.scorers import dynamath, mathvision, mathvision_official
from axpo.benchmarks.scorers.latex_value import latex_value
from axpo.benchmarks.scorers.tuples import is_equal_tuple, split_tuple
from axpo.errors import DataError
from axpo.evaluation.variants import any_case, average_case, by_group, worst_case
from axpo.types import Content, Message, Problem

BARE = ["A", "B", "C", "D", "E"]


def mathvision_problem(answer: str, options: list[str] | None = None, question: str = "How much?") -> Problem:
    message = Message(role="user", content=(Content(text=question),))
    metadata = {"options": options or [], "level": 1, "subject": "algebra"}
    return Problem(id="1", messages=(message,), answer=answer, metadata=metadata)


def dynamath_problem(answer: str, kind: str, question: str = "What is it?") -> Problem:
    message = Message(role="user", content=(Content(text=question),))
    return Problem(id="1", messages=(message,), answer=answer, metadata={"answer_type": kind})


# -- MathVision: default rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "rule"),
    [
        ("7/3", "\\frac{7}{3}", "number"),
        ("\\frac{25}{7}", "25/7", "number"),
        ("0.5", "\\frac12", "number"),
        ("2", "\\sqrt[3]{8}", "number"),
        ("11 ", "11", "number"),
        ("$\\boxed{\\frac{16}{7}}$", "\\frac{16}{7}", "number"),
        ("\frac{36}{13}", "36/13", "number"),
        ("69{degrees}", "69^\\circ", "number"),
        ("8\\sqrt{3}{squareinches}", "8\\sqrt{3} \\text{ square inches}", "expression"),
        ("\\frac{360}7", "\\frac{360}{7}", "expression"),
        ("$\\frac{90}{23}^{\\circ}$", "\\frac{90}{23}", "expression"),
        ("4+\\sqrt{2}", "\\sqrt2+4", "expression"),
        ("1:2", "1 : 2", "expression"),
        ("45^2", "2025", "expression"),
        ("2500", "2{,}500", "number"),
        ("\\frac{13}{2}", "6\\frac{1}{2}", "number"),
        ("5", "x=5", "number"),
        ("(3,-4)", "(3, -4)", "tuple"),
        ("(3,-4)", "P = \\left(\\frac{6}{2}, -4\\right)", "tuple"),
        ("C", "\\text{C}", "letter"),
    ],
)
def test_a_free_form_answer_in_another_spelling_is_right(gold: str, answer: str, rule: str) -> None:
    verdict = mathvision.score(mathvision_problem(gold), f"Hence $\\boxed{{{answer}}}$.")
    assert (verdict.is_correct, verdict.rule, verdict.extraction) == (True, rule, "boxed")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(9,6)", "(0, 6)"),
        ("(3,-4)", "(-3, -4)"),
        ("(3,-4)", "-4"),
        ("(3,-4)", "[3,-4]"),
        ("10", "10\\%"),
        ("3.14", "3.144"),
        ("12", "11, 12"),
        ("C", "A or C"),
        ("1:2", "2:1"),
    ],
)
def test_a_free_form_answer_of_another_value_is_wrong(gold: str, answer: str) -> None:
    verdict = mathvision.score(mathvision_problem(gold), f"\\boxed{{{answer}}}")
    assert (verdict.is_correct, verdict.rule) == (False, "wrong")


def test_a_percent_sign_says_nothing_where_a_percentage_is_asked_for() -> None:
    asked = mathvision_problem("20", question="What percent of her class chose candy E?")
    assert mathvision.score(asked, "\\boxed{20\\%}").is_correct
    assert not mathvision.score(asked, "\\boxed{0.2}").is_correct


def test_the_last_of_several_boxes_counts() -> None:
    problem = mathvision_problem("12")
    assert mathvision.score(problem, "\\boxed{11}, no, wait: \\boxed{12}").is_correct
    assert not mathvision.score(problem, "\\boxed{12}, no, wait: \\boxed{11}").is_correct


@pytest.mark.parametrize(
    ("options", "answer", "rule"),
    [
        (BARE, "B", "letter"),
        (BARE, "\\text{B}", "letter"),
        (BARE, "\\textbf{(B)}", "letter"),
        (["$20 \\mathrm{~cm}$", "$21 \\mathrm{~cm}$", "$22 \\mathrm{~cm}$", "a", "b"], "21 \\text{ cm}", "option_text"),
        (["red", "blue", "green", "Yellow", "all"], "Blue", "option_text"),
        (["red", "blue", "green", "Yellow", "all"], "(B) blue", "letter"),
        (["P", "R", "I", "S", "M"], "R", "option_text"),
        (["$1:4$", "$2: 3$", "$2: 1$", "3:2", "1:1"], "\\frac{2}{3}", "option_text"),
        (["$4 \\times 6$", "$3 \\times 8$", "$2 \\times 12$", "1", "2"], "3 \\times 8", "option_text"),
        (["$1,2,3$", "$2,1,3$", "$2,3,1$", "$3,1,2$", "$3,2,1$"], "2,1,3", "option_text"),
        (["A", "C", "B", "D", "E"], "B", "letter"),
    ],
)
def test_an_option_is_named_by_its_letter_or_its_text(options: list[str], answer: str, rule: str) -> None:
    verdict = mathvision.score(mathvision_problem("B", options), f"<answer>{answer}</answer>")
    assert (verdict.is_correct, verdict.rule) == (True, rule)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (BARE, "Blue"),
        (BARE, "2"),
        (["red", "blue", "green", "Yellow", "all"], "green"),
        (["red", "blue", "green", "Yellow", "all"], "(B) green"),
        (["A", "C", "B", "D", "E"], "C"),
        (["$20$", "$2.5$", "$2.500$", "1", "2"], "5/2"),
    ],
)
def test_another_option_or_two_at_once_are_wrong(options: list[str], answer: str) -> None:
    assert not mathvision.score(mathvision_problem("B", options), f"\\boxed{{{answer}}}").is_correct


def test_no_answer_is_wrong_and_says_so() -> None:
    for final_text in ("", "<think>\\boxed{4}", "\\boxed{}"):
        verdict = mathvision.score(mathvision_problem("4"), final_text)
        assert (verdict.is_correct, verdict.rule, verdict.answer) == (False, "no_answer", None)


def test_scores_do_not_depend_on_the_thread() -> None:
    problem = mathvision_problem("4+\\sqrt{2}")
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda n: mathvision.score(problem, f"\\boxed{{\\sqrt{{2}}+{n}}}"), range(8)))
    assert [verdict.is_correct for verdict in verdicts] == [n == 4 for n in range(8)]


# -- MathVision: the authors' rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer", "rule"),
    [
        ("It must be (D).", "d", "letter"),
        ("B\nbecause of the figure", "b", "letter"),
        ("The total is 12.", "12", "number"),
        ("The final answer is 12. I am sure", "12", "phrase"),
        ("So the answer should be (A) 5 cm\nbye", "a5cm", "phrase"),
        ("\\boxed{1} then \\boxed{\\sqrt3 + \\frac12}", "\\sqrt{3}+\\frac{1}{2}", "boxed"),
        ("\\boxed{\\text{B}}", "b", "boxed"),
        ("\\boxed{60^\\circ}", "60", "boxed"),
        ("\\boxed{x = .5}", "\\frac{1}{2}", "boxed"),
        ("\\boxed{3/4}", "\\frac{3}{4}", "boxed"),
        ("whatever", "whatever", "whole"),
    ],
)
def test_the_authors_extraction(response: str, answer: str, rule: str) -> None:
    assert mathvision_official.extract_official(response) == (answer, rule)


@pytest.mark.parametrize(
    ("gold", "answer", "rule"),
    [
        ("3.14", "3.144", "number"),
        ("2/3", "2\\frac{1}{3}", "number"),
        ("6", "6.similarly, 7", "number"),
        ("(\\frac{1}{2},3)", "(0.5,3)", "tuple"),
        ("C", "c", "letter"),
        ("4", "5", "wrong"),
        ("12", "12cm", "wrong"),
        ("4", " ", "wrong"),
        ("4", "", "no_answer"),
        ("(0, 6)", "(9, 6)", "wrong"),
    ],
)
def test_the_authors_equality(gold: str, answer: str, rule: str) -> None:
    verdict = mathvision_official.judge_official(mathvision_problem(gold), answer)
    assert (verdict.rule, verdict.is_correct) == (rule, rule not in ("wrong", "no_answer"))


def test_the_authors_table_has_every_cut() -> None:
    problems = {"1": mathvision_problem("A", BARE), "2": mathvision_problem("3")}
    table = mathvision_official.official_tables(problems, {"1": True, "2": False})
    keys = ["-all", "-level1", "-level1_algebra", "algebra", "algebra_level1"]
    assert table == dict.fromkeys(keys, "1/2=50.0%")
    assert list(table) == keys


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2/3", Fraction(1, 6)),
        ("2^3^2", 64),
        ("-2^2", -4),
        ("3!2", 12),
        ("10\\%", Fraction(1, 10)),
        ("\\binom{5}{2}", 10),
        ("6/2\\cdot3", 9),
        ("[500,600]", 500600),
        ("\\frac{3^{1008}-1}{3^{1009}}", Fraction(3**1008 - 1, 3**1009)),
        ("10 \\%", None),
        ("\\frac12", None),
        ("\\sqrt2", None),
        ("|3|", None),
        ("5,6", None),
        ("1/0", None),
        ("\\sqrt{-1}", None),
        ("9^{9^9}", None),
        ("(" * 60 + "1", None),
        ("", None),
    ],
)
def test_latex_has_the_value_that_the_authors_give_it(text: str, value: Fraction | int | None) -> None:
    assert latex_value(text) == value


def test_one_over_two_pi_binds_as_the_authors_have_it() -> None:
    assert float(latex_value("1/2\\pi") or 0) == pytest.approx(0.15915494)
    assert float(latex_value("\\sin^{-1}(0.5)") or 0) == pytest.approx(0.52359878)


# -- tuples -----------------------------------------------------------------------------------------------------------


def test_lists_are_equal_part_by_part() -> None:
    def is_same(gold: str, answer: str) -> bool:
        return gold == answer

    assert is_equal_tuple("(1, 2)", "1,2", is_same) is True
    assert is_equal_tuple("[1, 2, 3]", "(1, 2, 3)", is_same) is True
    assert is_equal_tuple("(1, 2)", "[1, 2]", is_same) is False
    assert is_equal_tuple("(1, 2)", "(1, 2, 3)", is_same) is False
    assert is_equal_tuple("12", "(1, 2)", is_same) is None
    assert split_tuple("((1, 2), 3)") == ("()", ("(1, 2)", "3"))
    assert split_tuple("1,000,000") is None
    assert split_tuple("(1, 2) or (3, 4)") is None


# -- DynaMath ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("2.0944", "2.094"),
        ("2.0944", "\\frac{2\\pi}{3}"),
        ("2.0944", "2pi/3"),
        ("3.1416", "π"),
        ("1.5708", "\\pi/2"),
        ("1.5708", "0.5\\pi \\text{ rad}"),
        ("3", "x = 3"),
        ("3", "x \\approx 3.0004"),
        ("0.75", "3/4"),
        ("2.5", "2\\frac{1}{2}"),
        ("1250", "$1,250"),
        ("12.5", "12.5 cm^2"),
        ("45", "45°"),
        ("45", "45 degrees"),
        ("-16.899999999999995", "−16.9"),
        ("1.732", "\\sqrt3"),
        ("1.732", "sqrt(3)"),
        ("1", "0.999"),
    ],
)
def test_a_number_within_a_thousandth_is_right(gold: str, answer: str) -> None:
    verdict = dynamath.score(dynamath_problem(gold, "float"), f"\\boxed{{{answer}}}")
    assert (verdict.is_correct, verdict.rule) == (True, "float")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1", "0.9989"),
        ("2.0944", "2.1"),
        ("3", "3 or 4"),
        ("0", "00:22"),
        ("0", "12/13/2012"),
        ("3", "-3"),
        ("3", "three"),
        ("45", "45%"),
        ("1", "nan"),
        ("3.1416", "pie"),
    ],
)
def test_a_number_further_off_or_no_number_is_wrong(gold: str, answer: str) -> None:
    assert not dynamath.score(dynamath_problem(gold, "float"), f"\\boxed{{{answer}}}").is_correct


def test_a_percentage_may_have_its_sign_where_it_is_asked_for() -> None:
    asked = dynamath_problem("45", "float", "What percentage is blue?")
    assert dynamath.score(asked, "The answer is 45%.").is_correct


QUESTION = "Which month? choices: (A) May (B) Both (C) 12 (D) Dec (E) none (F) Feb"


@pytest.mark.parametrize(
    ("gold", "answer", "is_correct"),
    [
        ("F", "F", True),
        ("F", "(F)", True),
        ("F", "Feb", True),
        ("D", "Dog", False),
        ("B", "Because", False),
        ("B", "both", True),
        ("C", "12", True),
        ("C", "D", False),
        ("A", "A or B", False),
        ("A", "", False),
    ],
)
def test_a_letter_or_the_text_behind_it(gold: str, answer: str, is_correct: bool) -> None:
    problem = dynamath_problem(gold, "multiple choice", QUESTION)
    assert dynamath.score(problem, json.dumps({"solution": "", "short answer": answer})).is_correct is is_correct


def test_options_that_are_formulas_with_brackets_are_no_letters() -> None:
    problem = dynamath_problem("B", "multiple choice", "Which one? (A) f(x)=g(x)-5 (B) f(x)=-g(x - 5) (C) g(x)")
    assert dynamath.score(problem, "\\boxed{f(x)=-g(x - 5)}").rule == "option_text"
    assert not dynamath.score(problem, "\\boxed{f(x)=g(x)-5}").is_correct


@pytest.mark.parametrize(
    ("gold", "answer", "rule"),
    [
        ("Sep", "September", "calendar"),
        ("Sep", "sept.", "calendar"),
        ("Monday", "Mon", "calendar"),
        ("17:06", "5:06 PM", "time"),
        ("17:06", "17:06", "time"),
        ("8:0", "8:00", "time"),
        ("04/12/2003", "4/12/2003", "date"),
        ("(-2.777, -1.136)", "(-2.7768, -1.1363)", "tuple"),
        ("(2, 4)", "$(2,4)$", "tuple"),
        ("[3, 2, 3, 3, 6]", "3, 2, 3, 3, 6", "tuple"),
        ("69, 51, 59", "69, 51, 59", "tuple"),
        ("x = -1", "x=-1.000", "line"),
        ("619", "619", "code"),
        ("AC", "A-C", "text"),
        ("A", "node A", "text"),
        ("White", "white.", "text"),
        ("Product D", "product D", "text"),
    ],
)
def test_a_text_in_another_spelling_is_right(gold: str, answer: str, rule: str) -> None:
    verdict = dynamath.score(dynamath_problem(gold, "text"), f"<answer>{answer}</answer>")
    assert (verdict.is_correct, verdict.rule) == (True, rule)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Dec", "Dog"),
        ("Dec", "D"),
        ("17:06", "5:06"),
        ("17:06", "17:60"),
        ("(-2.777, -1.136)", "(2.777, -1.136)"),
        ("(0, 6)", "(9, 6)"),
        ("x = 4", "y = 4"),
        ("x = 4", "4"),
        ("AC", "CA"),
        ("AC", "A"),
        ("619", "6190"),
        ("Product D", "D"),
        ("White", "white or black"),
        ("Q3", "3"),
    ],
)
def test_a_part_of_the_text_or_another_one_is_wrong(gold: str, answer: str) -> None:
    assert not dynamath.score(dynamath_problem(gold, "text"), f"\\boxed{{{answer}}}").is_correct


def test_the_short_answer_of_a_reply_counts_even_when_the_json_is_broken() -> None:
    problem = dynamath_problem("1.5708", "float")
    for reply in ('{"solution": "\\frac", "short answer": "\\frac{\\pi}{2}"', '{"short answer": 1.571}'):
        verdict = dynamath.score(problem, "<think>hm</think>" + reply)
        assert (verdict.is_correct, verdict.extraction) == (True, "json")


@pytest.mark.parametrize(
    ("kind", "gold", "reply", "is_correct"),
    [
        ("float", "2.094", '{"short answer": "2.0949 rad"}', True),
        ("float", "6.2832", '{"short answer": "2π"}', True),
        ("float", "2", '{"short answer": 2}', True),
        ("float", "3.1416", '{"short answer": "π"}', False),
        ("float", "0.5", '{"short answer": "1/2"}', False),
        ("float", "2", "no JSON\n2.", True),
        ("multiple choice", "B", '{"short answer": "(B) no"}', True),
        ("multiple choice", "B", '{"short answer": "b"}', False),
        ("multiple choice", "D", '{"short answer": "Dog"}', True),
        ("text", "Sep", 'Sure: {"solution": "\\frac", "short answer": "In September"}', True),
        ("text", "Sep", '{"short answer": "sep"}', False),
        ("text", "Sep", "[1]", False),
    ],
)
def test_the_authors_dynamath_rule(kind: str, gold: str, reply: str, is_correct: bool) -> None:
    assert dynamath.score_official(dynamath_problem(gold, kind), reply).is_correct is is_correct


# -- time -------------------------------------------------------------------------------------------------------------

UNITS = ("{", "}", "\\boxed{", "1", "\\frac", "\\sqrt", "the answer is ", "=", '"short answer": "', '{"a":', "</think>")
SCORERS = (mathvision.score, mathvision_official.score_official, dynamath.score, dynamath.score_official)


@pytest.mark.parametrize("unit", UNITS)
def test_a_hostile_megabyte_is_scored_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    problem = mathvision_problem("(3,-4)")
    for score in SCORERS:
        start = time.process_time()
        verdict = score(problem, text)
        assert time.process_time() - start < 5.0  # quadratic would be hours
        assert not verdict.is_correct
        assert len(verdict.answer or "") <= 500


# -- variants ---------------------------------------------------------------------------------------------------------


def test_rows_of_different_lengths_have_no_average() -> None:
    for function in (average_case, worst_case, any_case):
        with pytest.raises(DataError, match="lengths"):
            function([[True], [True, False]])
        with pytest.raises(DataError, match="0 rows"):
            function([])
    with pytest.raises(DataError, match="one group a row"):
        by_group([[True]], [])
