r"""MathVision: a letter or the right option's text; for a free-form question equality as mathematics.

Rules of a verdict: `letter`, `option_text` (right), `number`, `tuple`, `expression` (right, by what the gold answer is),
`wrong`, `no_answer`. The authors' own rule is `axpo.benchmarks.scorers.mathvision_official`.

Deviations from the authors: numbers are equal at six decimals instead of two, mixed numbers are sums, the answer is read
in the order of `axpo.rewards.answers`. In a question for a percentage the sign says nothing: its gold answers have none.
"""

from __future__ import annotations

import re

from axpo.benchmarks.scorers.mathvision_official import gold_option
from axpo.benchmarks.scorers.tuples import is_equal_tuple
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, last_box
from axpo.rewards.choice import read_letter
from axpo.rewards.math import MAX_ANSWER_CHARS, is_equal_math, parse_number
from axpo.types import Problem

_GOLD_UNIT = re.compile(r"\{[a-z]+\}$")
_RATIO = re.compile(r"\s*([0-9]+)\s?:\s?([0-9]+)\s*")
_PERCENT_SIGN = re.compile(r"\\?%\s*$")
_LETTER = re.compile(r"[(\[]?[A-Za-z][)\].:]?")


def score(problem: Problem, final_text: str) -> Verdict:
    """The verdict on a final text. `problem.answer` and `metadata["options"]` are as published."""
    answer, extraction = extract_answer(final_text)
    if answer is None:
        return Verdict(is_correct=False, rule="no_answer", extraction=extraction)
    rule = None
    if len(answer) <= MAX_ANSWER_CHARS:
        rule = _match_option(problem, answer) if problem.metadata.get("options") else _match_value(problem, answer)
    return Verdict(is_correct=rule is not None, rule=rule or "wrong", answer=answer, extraction=extraction)


def asks_for_percentage(problem: Problem) -> bool:
    """True when the question's text has the word "percent"."""
    return any("percent" in message.text.lower() for message in problem.messages)


def clean_gold(gold: str) -> str:
    r"""A published gold answer without its dirt: dollar signs, a box, a unit in braces, the form feed of an eaten `\f`.

    >>> clean_gold("$\\boxed{\\frac{16}{7}}$"), clean_gold("\frac{36}{13}"), clean_gold("69{degrees}")
    ('\\frac{16}{7}', '\\frac{36}{13}', '69')
    """
    gold = gold.replace("\f", "\\f").strip().strip("$").strip()
    box = last_box(gold)
    gold = gold if box is None else box
    has_command = gold.endswith("}") and re.search(r"\\[a-z]+\{[a-z]+\}$", gold) is not None
    return gold if has_command else _GOLD_UNIT.sub("", gold)


def _match_option(problem: Problem, answer: str) -> str | None:
    options = tuple(str(option) for option in problem.metadata["options"])
    has_texts = "".join(options) != "ABCDE"  # else the options stand in the picture
    letter = read_letter(answer, options if has_texts else ("",) * len(options))
    is_letter = _LETTER.fullmatch(_plain(answer)) is not None
    if letter is not None:
        rule = "letter" if is_letter or not has_texts else _named_by(answer, options)
        return rule if letter == problem.answer.strip().upper() else None
    if is_letter or not has_texts:
        return None
    return "option_text" if _is_gold_alone(answer, options, gold_option(problem)) else None


def _named_by(answer: str, options: tuple[str, ...]) -> str:
    """Whether an option was named by its letter or only by its text."""
    return "option_text" if read_letter(answer) is None else "letter"


def _is_gold_alone(answer: str, options: tuple[str, ...], gold: str) -> bool:
    """True when an answer equals the right option as mathematics, and no other one."""
    if not is_equal_math(gold, answer):
        return False
    return not any(is_equal_math(option, answer) for option in options if option != gold)


def _match_value(problem: Problem, answer: str) -> str | None:
    gold = clean_gold(problem.answer)
    if len(gold) == 1 and gold.isalpha():
        return "letter" if read_letter(answer) == gold else None
    is_tuple_equal = is_equal_tuple(gold, answer, is_equal_math)
    if is_tuple_equal is not None:
        return "tuple" if is_tuple_equal else None
    if asks_for_percentage(problem):
        gold, answer = _PERCENT_SIGN.sub("", gold), _PERCENT_SIGN.sub("", answer.strip().rstrip(".$"))
    gold, answer = _RATIO.sub(r"\1/\2", gold), _RATIO.sub(r"\1/\2", answer)
    if not is_equal_math(gold, answer):
        return None
    return "expression" if parse_number(gold) is None else "number"


def _plain(answer: str) -> str:
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf)\b|[{}$*\s]", "", answer)
