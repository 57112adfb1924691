"""What holds of scorers and estimators for every input."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.benchmarks.scorers import dynamath, mathvision, mathvision_official
from axpo.benchmarks.scorers.latex_value import latex_value
from axpo.benchmarks.scorers.tuples import split_tuple
from axpo.benchmarks.scorers.values import read_value
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.variants import any_case, average_case, worst_case
from axpo.types import Content, Message, Problem

PIECES = st.sampled_from(
    (
        *("\\boxed{", "}", "{", "(", ")", "[", "]", "\\frac", "\\sqrt", "\\pi", "^", "!", "=", "/", ":", ",", ".", "%"),
        *("<answer>", "</answer>", "</think>", "<think>", "the answer is ", "The final answer is ", "is ", "\n", "$"),
        *('"short answer":', '"', "{}", "1", "-2.5", "PM", "Sep", " ", "π", "\\text{", "\\%", "x", "\f", "\x00", "é"),
        *("²", "B", "\\", "\\begin{", "&", "~", "'", "tr", "e^"),
    )
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join))
MESSAGE = Message(role="user", content=(Content(text="What percent? choice: (A) yes (B) 1/2 (C) f(x) (D) Sep"),))
GOLDS = st.sampled_from(["B", "7", "\\frac{1}{2}", "(3,-4)", "Sep", "17:06", "x = 0", "AC", "$2 \\mathrm{~cm}$", ""])
OPTIONS = st.sampled_from([[], ["A", "B", "C", "D", "E"], ["1", "$\\frac{1}{2}$", "R", "2:3", ""]])
KINDS = st.sampled_from(["float", "multiple choice", "text", None])


@given(text=TEXTS, gold=GOLDS, options=OPTIONS, kind=KINDS)
@settings(max_examples=300)
def test_scorers_never_raise_and_always_say_why(text: str, gold: str, options: list[str], kind: str | None) -> None:
    metadata = {"options": options, "answer_type": kind}
    problem = Problem(id="1", messages=(MESSAGE,), answer=gold, metadata=metadata)
    for score in (mathvision.score, mathvision_official.score_official, dynamath.score, dynamath.score_official):
        verdict = score(problem, text)
        assert verdict.is_correct is (verdict.rule not in ("wrong", "no_answer"))
        assert verdict.answer is not None or not verdict.is_correct


@given(text=TEXTS)
def test_readers_give_nothing_or_what_the_text_contains(text: str) -> None:
    for value in (latex_value(text), latex_value(text, is_whole=True), read_value(text)):
        assert value is None or math.isfinite(value)
    found = split_tuple(text)
    if found is not None:
        brackets, parts = found
        assert len(parts) >= 2 and all(parts)
        assert brackets == "" or (brackets[0] in "([{" and brackets[1] in ")]}")
    options = dynamath.read_options(text)
    assert all(option in text for option in options)
    assert all(f"({letter})" in text for letter in "ABCDEFGH"[: len(options)])


@given(
    values=st.lists(st.integers(-999, 999), min_size=2, max_size=8), brackets=st.sampled_from(["()", "[]", "[)", ""])
)
def test_readers_give_back_what_was_written(values: list[int], brackets: str) -> None:
    texts = tuple(map(str, values))
    opening, closing = (brackets[0], brackets[1]) if brackets else ("", "")
    assert split_tuple(f"P = {opening}{', '.join(texts)}{closing}.") == (brackets, texts)
    assert [latex_value(text, is_whole=True) for text in texts] == values
    assert [read_value(f"x = {text} cm") for text in texts] == values
    listed = " ".join(f"({letter}) {text}" for letter, text in zip("ABCDEFGH", texts, strict=False))
    assert dynamath.read_options(f"Which? choice: {listed}") == texts


@given(top=st.integers(-999, 999), bottom=st.integers(1, 999))
def test_a_quotient_has_one_value_in_every_spelling(top: int, bottom: int) -> None:
    spellings = (f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"({top})\\div{bottom}", f"{top}:{bottom}")
    assert {latex_value(spelling) for spelling in spellings} == {Fraction(top, bottom)}


@given(gold=st.integers(-(10**6), 10**6), millionths=st.integers(-3000, 3000))
def test_a_number_is_right_exactly_up_to_a_thousandth(gold: int, millionths: int) -> None:
    problem = Problem(id="1", messages=(MESSAGE,), answer=str(gold), metadata={"answer_type": "float"})
    answer = Decimal(gold) + Decimal(millionths).scaleb(-6)
    assert dynamath.score(problem, f"\\boxed{{{answer:f}}}").is_correct is (abs(millionths) <= 1000)


@given(response=TEXTS)
def test_the_authors_verdict_comes_from_the_answer_that_was_read(response: str) -> None:
    problem = Problem(id="1", messages=(MESSAGE,), answer="7", metadata={"options": []})
    answer, extraction = mathvision_official.extract_official(response)
    given_answer = mathvision_official.judge_official(problem, answer, extraction)
    assert mathvision_official.score_official(problem, response) == given_answer


@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=9), data=st.data())
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_sample(
    outcomes: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    draws = list(combinations(outcomes, k))
    expected = Fraction(sum(map(any, draws)), len(draws))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(float(expected), abs=1e-15)


@given(outcomes=st.lists(st.booleans(), min_size=2, max_size=12))
def test_pass_at_k_grows_with_k_from_the_mean_to_any(outcomes: list[bool]) -> None:
    values = [pass_at_k(len(outcomes), sum(outcomes), k) for k in range(1, len(outcomes) + 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(sum(outcomes) / len(outcomes))
    assert values[-1] == float(any(outcomes))


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_worst_case_is_below_average_case_and_that_below_any_case(rows: list[list[bool]]) -> None:
    assert worst_case(rows) <= average_case(rows) + 1e-12
    assert average_case(rows) <= any_case(rows) + 1e-12
    flipped = [[not verdict for verdict in row] for row in rows]
    assert worst_case(rows) == pytest.approx(1 - any_case(flipped))
