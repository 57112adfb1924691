r"""MathVision: a letter or the right option's text; for a free-form question equality as mathematics.

Rules of a verdict: `letter`, `option_text` (right), `number`, `tuple`, `expression` (right, by what the gold answer
is), `wrong`, `no_answer`. The authors' own rule is `axpo.benchmarks.scorers.mathvision_official`.

Deviations from the authors: numbers are equal at six decimals instead of two, mixed numbers are sums, the answer is
read in the order of `axpo.rewards.answers`. A letter A to E names an option even where another option's text is that
letter. In a question for a percentage the sign says nothing: its gold answers have none.
"""

from __future__ import annotations

import re

from axpo.benchmarks.scorers.latex_value import Value
from axpo.benchmarks.scorers.mathvision_official import gold_option
from axpo.benchmarks.scorers.tuples import is_equal_tuple, split_tuple
from axpo.benchmarks.scorers.values import read_value
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, last_box
from axpo.rewards.choice import differ_clearly, extract_choice, read_letter
from axpo.rewards.math import MAX_ANSWER_CHARS, is_equal_math, parse_number
from axpo.types import Problem

MAX_LETTER = "E"
MAX_UNIT_WORDS = 2
"""Words after a number that may be its unit; more of them are an explanation."""

_UNIT_IN_BRACES = re.compile(r"(?<![a-z\\])\{[a-z]+\}$")
_LETTER_MARK = re.compile(r"\([A-E]\)|(?<![A-Za-z])[A-E](?:[).:]|\s?[-–—]\s)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_RATIO = re.compile(r"\s*([0-9]+)\s?:\s?([0-9]+)\s*")
_PERCENT_SIGN = re.compile(r"\s*\\?%[\s.$]*$")
_MATH_MODE = re.compile(r"\\[()\[\]]|\\boxed\{(?=[^{}]*$)")
_SQUASHED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}|\\[,;:! ]|\\(?:left|right)(?![a-z])|[\s$~]")


def score(problem: Problem, final_text: str) -> Verdict:
    """The verdict on a final text. `problem.answer` and `metadata["options"]` are as published."""
    options = tuple(str(option) for option in problem.metadata.get("options") or ())
    answer, extraction = extract_choice(final_text, options) if options else extract_answer(final_text)
    if answer is None:
        return Verdict(is_correct=False, rule="no_answer", extraction=extraction)
    letter, rule = None, None
    if len(answer) <= MAX_ANSWER_CHARS and options:
        letter, option_rule = _named_option(problem, answer, options)
        rule = option_rule if letter == problem.answer else None
    elif len(answer) <= MAX_ANSWER_CHARS:
        rule = _match_value(problem, answer)
    is_correct, answer = rule is not None, answer[:MAX_ANSWER_CHARS]
    return Verdict(is_correct=is_correct, rule=rule or "wrong", answer=answer, extraction=extraction, letter=letter)


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
    return _UNIT_IN_BRACES.sub("", gold if box is None else box)


def _named_option(problem: Problem, answer: str, options: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The option that an answer names and by what, `letter` or `option_text`; two None where they contradict."""
    answer = _MATH_MODE.sub("", answer).strip()
    has_texts = "".join(options) != "ABCDE"  # else the options stand in the picture
    letter = read_letter(answer)
    if letter is not None and letter <= MAX_LETTER and (len(_squash(answer).strip("().:")) == 1 or not has_texts):
        return letter, "letter"
    if not has_texts:
        return None, None
    matches = [index for index, option in enumerate(options) if _squash(option) == _squash(answer)]
    if len(matches) == 1:
        return chr(ord("A") + matches[0]), "option_text"
    named = read_letter(answer, options)
    if named is not None:
        is_headed = letter == named
        if is_headed and _has_other_value(answer, options[ord(named) - ord("A")]):
            return None, None
        return named, "letter" if is_headed else "option_text"
    return (problem.answer, "option_text") if _is_gold_alone(problem, answer, options) else (None, None)


def _has_other_value(answer: str, option: str) -> bool:
    """True when the text after an answer's letter and the option's text are different numbers: (E) 270° for 135°."""
    rest = _LETTER_MARK.sub("", answer, count=1)
    if len(_WORD.findall(_COMMAND.sub("", rest))) > MAX_UNIT_WORDS:
        return False
    value, wanted = (_signless_value(text) for text in (rest, option))
    return value is not None and wanted is not None and differ_clearly(value, wanted)


def _signless_value(text: str) -> Value | None:
    """Read a text as a number. Percent signs are dropped, because one side may lack them."""
    return read_value(_RATIO.sub(r"\1/\2", _PERCENT_SIGN.sub("", text.strip("$ "))))


def _is_gold_alone(problem: Problem, answer: str, options: tuple[str, ...]) -> bool:
    """True when an answer equals the right option as mathematics, and no other one."""
    gold = gold_option(problem)
    if not _is_equal(problem, gold, answer):
        return False
    return not any(_is_equal(problem, option, answer) for option in options if option != gold)


def _match_value(problem: Problem, answer: str) -> str | None:
    gold = clean_gold(problem.answer)
    if len(gold) == 1 and gold.isalpha():
        return "letter" if read_letter(_MATH_MODE.sub("", answer)) == gold else None
    if not _is_equal(problem, gold, _UNIT_IN_BRACES.sub("", answer)):
        return None
    if split_tuple(gold) is not None:
        return "tuple"
    return "expression" if parse_number(gold) is None else "number"


def _is_equal(problem: Problem, gold: str, answer: str) -> bool:
    is_tuple_equal = is_equal_tuple(gold, answer, is_equal_math)
    if is_tuple_equal is not None:
        return is_tuple_equal
    if asks_for_percentage(problem):
        gold, answer = _PERCENT_SIGN.sub("", gold), _PERCENT_SIGN.sub("", answer)
    return is_equal_math(_RATIO.sub(r"\1/\2", gold), _RATIO.sub(r"\1/\2", answer))


def _squash(text: str) -> str:
    """Without spacing, dollar signs and text commands; small letters."""
    return _SQUASHED.sub(lambda match: "".join((match[1] or "").split()), text).rstrip(".").casefold()
