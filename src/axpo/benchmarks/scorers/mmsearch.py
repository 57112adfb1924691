"""MMSearch (end to end): equality after normalisation, and the authors' token F1 beside every verdict."""

from __future__ import annotations

import datetime
import re
from collections import Counter

from axpo.benchmarks.scorers.reading import (
    block_or_all,
    exact_form,
    no_answer,
    same_answer_rule,
    undecided,
)
from axpo.benchmarks.scorers.short_answers import squad_form
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, gold_answers
from axpo.types import Problem

_INVALID = frozenset(
    f"{subject}{statement}"
    for subject, statement in [
        *(("", statement) for statement in ("invalid", "invalid question")),
        *((subject, "invalid question") for subject in ("this is ", "it is ")),
        *((subject, "question is invalid") for subject in ("", "this ")),
    ]
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_YEAR}\s?[-/.]\s?(?P<month>[0-9]{{1,2}})\s?[-/.]\s?(?P<day>[0-9]{{1,2}})",  # 2024-06-01
        rf"{_YEAR}年(?P<month>[0-9]{{1,2}})月(?P<day>[0-9]{{1,2}})日",
        rf"{_MONTH_NAME}\s?{_DAY}\s?,?\s?{_YEAR}",  # June 1st, 2024
        rf"{_DAY}\s?(?:of\s)?{_MONTH_NAME}\s?,?\s?{_YEAR}",  # 1 June 2024
        rf"{_YEAR}\s?,?\s?{_MONTH_NAME}\s?{_DAY}",  # 2024 June 1
    )
)
_SLASHED = re.compile(rf"(?P<first>[0-9]{{1,2}})[-/.](?P<second>[0-9]{{1,2}})[-/.]{_YEAR}")
_MAX_DATE_CHARS = 40


def score(problem: Problem, final_text: str) -> Verdict:
    """The same as one of the right answers after normalisation; `scores["f1"]` is the authors' measure.

    Rules: `exact`, `number`, `date` (the same day, written in another way), `invalid_question` (the answer rejects the
    question: right when a right answer does too), `no_answer`; else `undecided`.
    """
    answer, extraction = extract_answer(final_text)
    golds = gold_answers(problem)
    scores = {"f1": best_f1(answer or "", golds)}
    if answer is None:
        return no_answer(extraction, scores=scores)
    rule, is_correct = _rule(golds, answer)
    if rule is None:
        return undecided(answer, extraction, scores=scores)
    return Verdict(is_correct=is_correct, rule=rule, answer=answer, extraction=extraction, scores=scores)


def score_official(problem: Problem, final_text: str) -> Verdict:
    """The authors' measure alone: `scores["f1"]` of the last answer block, else of all that follows the thinking.

    Its mean is what they report. Right, as Pass@k needs it, is an F1 of 1: the words of a right answer and no others.
    Rules: `f1`, `no_answer`.
    """
    answer, extraction = block_or_all(final_text)
    f1 = best_f1(answer or "", gold_answers(problem))
    if answer is None:
        return no_answer(extraction, scores={"f1": f1})
    return Verdict(is_correct=f1 == 1.0, rule="f1", answer=answer, extraction=extraction, scores={"f1": f1})


def best_f1(answer: str, golds: tuple[str, ...]) -> float:
    """The largest `token_f1` over the right answers."""
    return max(token_f1(gold, answer) for gold in golds)


def token_f1(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the answer's words in SQuAD's normal form, repeats counted.

    2 * common / (words of gold + words of answer); 1.0 when both have no words. A published measure: "June 1, 2024"
    and "2024-06-01" share nothing.

    >>> token_f1("New York City", "the city of New York")
    0.8571428571428571
    """
    gold_words, answer_words = Counter(squad_form(gold).split()), Counter(squad_form(answer).split())
    num_words = gold_words.total() + answer_words.total()
    return 2 * (gold_words & answer_words).total() / num_words if num_words else 1.0


def read_date(text: str) -> str | None:
    """`yyyy-mm-dd` of a text that is one whole date; None when it is none, or when day and month may be swapped.

    >>> read_date("on June 1st, 2024."), read_date("13/06/2024"), read_date("06/01/2024"), read_date("June 2024")
    ('2024-06-01', '2024-06-13', None, None)
    """
    if len(text) > _MAX_DATE_CHARS:
        return None
    plain = " ".join(text.casefold().split()).removeprefix("on ").rstrip(".")
    for pattern in _DATES:
        match = pattern.fullmatch(plain)
        if match:
            parts = match.groupdict()
            month = _MONTHS.index(parts["name"][:3]) + 1 if "name" in parts else int(parts["month"])
            return _iso(int(parts["year"]), month, int(parts["day"]))
    slashed = _SLASHED.fullmatch(plain)
    if slashed is None:
        return None
    year, first, second = int(slashed["year"]), int(slashed["first"]), int(slashed["second"])
    readings = {_iso(year, first, second), _iso(year, second, first)} - {None}
    return readings.pop() if len(readings) == 1 else None


def _rule(golds: tuple[str, ...], answer: str) -> tuple[str | None, bool]:
    """The rule that fires and whether the answer is right by it."""
    for gold in golds:
        rule = same_answer_rule(gold, answer)
        if rule is not None:
            return rule, True
    date = read_date(answer)
    if date is not None and date in map(read_date, golds):
        return "date", True
    if _rejects_question(answer):
        return "invalid_question", any(map(_rejects_question, golds))
    return None, False


def _rejects_question(text: str) -> bool:
    return len(text) <= _MAX_DATE_CHARS and exact_form(text) in _INVALID


def _iso(year: int, month: int, day: int) -> str | None:
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        return None
