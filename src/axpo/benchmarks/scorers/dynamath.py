r"""DynaMath: numbers within 0.001, option letters, short texts.

`metadata["answer_type"]` says which: `float`, `multiple choice` or `text`. Rules of a verdict: `float`, `letter`,
`option_text`, `time`, `date`, `calendar`, `tuple`, `line`, `code`, `text` (right), `wrong`, `no_answer`. Final texts in
the authors' format, a JSON object with the key "short answer", are understood (extraction `json`).

Deviations of `score` from the authors' rule (`score_official`): fractions, roots, units, separators and `\pi` are read;
a letter is read as in `axpo.rewards.choice` instead of anywhere in the first three characters; a text must be equal
instead of contained, months and times in any usual spelling. Parts of points and lists are numbers within 0.001 too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

from axpo.benchmarks.scorers.dates import calendar_name, parse_date, parse_time
from axpo.benchmarks.scorers.latex_value import Value
from axpo.benchmarks.scorers.mathvision import asks_for_percentage
from axpo.benchmarks.scorers.tuples import is_equal_tuple, split_tuple
from axpo.benchmarks.scorers.values import NOISE, TEXT_COMMAND, read_value
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, last_box
from axpo.rewards.choice import extract_choice, read_letter
from axpo.rewards.math import MAX_ANSWER_CHARS
from axpo.rewards.text import normalize_text
from axpo.types import Problem

TOLERANCE = Fraction(1, 1000)
"""Largest difference of two equal numbers, as the authors have it."""
MAX_OPTION_LETTER = "F"

_JSON_ANSWER = re.compile(r"""\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",}\]]+))""")
_KEY = '"short answer"'
_OPTION = re.compile(r"\(([A-H])\)\s*")
_LINE = re.compile(r"([xyz])\s?=\s?([^=]+)")
_NODE = re.compile(r"^(?:the\s)?(?:node|vertex|edge)\s", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Z]{1,2}")


def score(problem: Problem, final_text: str) -> Verdict:
    """The verdict on a final text."""
    is_choice = problem.metadata.get("answer_type") == "multiple choice"
    answer, extraction = _extract(final_text, extract_choice if is_choice else extract_answer)
    if answer is None:
        return Verdict(is_correct=False, rule="no_answer", extraction=extraction)
    letter, rule = None, None
    if len(answer) <= MAX_ANSWER_CHARS and is_choice:
        letter, choice_rule = _named_option(problem, answer)
        rule = choice_rule if letter == problem.answer.strip() else None
    elif len(answer) <= MAX_ANSWER_CHARS:
        rule = _match(problem, answer)
    is_correct, answer = rule is not None, answer[:MAX_ANSWER_CHARS]
    return Verdict(is_correct=is_correct, rule=rule or "wrong", answer=answer, extraction=extraction, letter=letter)


def _extract(text: str, extract: Callable[[str], tuple[str | None, str]]) -> tuple[str | None, str]:
    answer, rule = extract(text)
    if answer is None:
        return None, rule
    source = answer if rule == "answer_tag" else text.rpartition("</think>")[2]
    short = _short_answer(source)
    if short is None:
        return answer, rule
    box = last_box(short)
    return (short if box is None else box).strip() or None, "json"


def _short_answer(text: str) -> str | None:
    """The value of the last "short answer" key, whether or not the rest is JSON; None without one."""
    start = text.rfind(_KEY)
    match = _JSON_ANSWER.match(text, start + len(_KEY)) if start >= 0 else None
    if match is None:
        return None
    if match[1] is None:
        return match[2]
    try:
        return str(json.loads(f'"{match[1]}"', strict=False))
    except ValueError:  # LaTeX with single backslashes
        return match[1]


def _match(problem: Problem, answer: str) -> str | None:
    kind = problem.metadata.get("answer_type")
    if kind == "float":
        is_percentage = asks_for_percentage(problem)
        gold, value = read_value(problem.answer), read_value(answer, drops_percent=is_percentage)
        return "float" if gold is not None and value is not None and _is_near(gold, value) else None
    return _match_text(problem.answer.strip(), answer)


# -- letters ----------------------------------------------------------------------------------------------------------


def _named_option(problem: Problem, answer: str) -> tuple[str | None, str | None]:
    """The option that an answer names, by its letter or by its text, and which of both."""
    options = read_options("\n".join(message.text for message in problem.messages))
    by_letter, by_text = read_letter(answer), read_letter(answer, options) if options else None
    if by_letter is None or by_letter > max(MAX_OPTION_LETTER, problem.answer.strip()):
        return by_text, "option_text"
    is_contradiction = options and by_text is None and by_letter <= "ABCDEFGH"[len(options) - 1]
    return (None, None) if is_contradiction else (by_letter, "letter")


def read_options(question: str) -> tuple[str, ...]:
    """The texts of the options that stand in a question as "(A) yes (B) no", from A on; empty when there are none.

    >>> read_options("Is it even? choice: (A) even (B) odd ")
    ('even', 'odd')
    """
    marks = list(_OPTION.finditer(question))
    starts = [index for index, mark in enumerate(marks) if mark[1] == "A"]
    marks = marks[starts[-1] :] if starts else []
    texts: list[str] = []
    for index, mark in enumerate(marks):
        if mark[1] != chr(ord("A") + index):
            break
        stop = marks[index + 1].start() if index + 1 < len(marks) else len(question)
        texts.append(question[mark.end() : stop].partition("\n")[0].strip(" ,;"))
    return tuple(texts)


# -- texts ------------------------------------------------------------------------------------------------------------


def _match_text(gold: str, answer: str) -> str | None:
    answer = TEXT_COMMAND.sub(r"\1", answer.strip().strip("$").strip())
    for rule, parse in (("time", parse_time), ("date", parse_date), ("calendar", calendar_name)):
        wanted = parse(gold)
        if wanted is not None:
            return rule if parse(answer.rstrip(".")) == wanted else None
    if split_tuple(gold) is not None:
        return "tuple" if is_equal_tuple(gold, answer, _is_equal_value) else None
    line = _LINE.fullmatch(gold)
    if line is not None:
        return "line" if _is_line(line, answer) else None
    if gold.isdigit():
        return "code" if "".join(answer.rstrip(".").split()) == gold else None
    if _LETTERS.fullmatch(gold):
        return "text" if re.sub(r"[\s,()\-–→]|\\to", "", _NODE.sub("", answer.rstrip("."))) == gold else None
    return "text" if normalize_text(answer) == normalize_text(gold) else None


def _is_near(gold: Value, value: Value) -> bool:
    if isinstance(gold, Fraction) and isinstance(value, Fraction):
        return abs(gold - value) <= TOLERANCE
    return abs(float(gold) - float(value)) <= float(TOLERANCE) + 1e-12


def _is_equal_value(gold: str, answer: str) -> bool:
    wanted, value = read_value(gold), read_value(answer)
    return wanted is not None and value is not None and _is_near(wanted, value)


def _is_line(gold: re.Match[str], answer: str) -> bool:
    match = _LINE.fullmatch(NOISE.sub("", answer).strip().rstrip(".").lower())
    return match is not None and match[1] == gold[1] and _is_equal_value(gold[2], match[2])


# -- the authors' rule ------------------------------------------------------------------------------------------------


def score_official(problem: Problem, final_text: str) -> Verdict:
    """The authors' verdict on a reply: JSON with the key "short answer", else its last line without its last character.

    A number is the first word, with π at most as a factor behind it, within 0.001; a letter stands alone or in the
    first three characters; a text contains the right one.
    """
    answer, extraction = extract_official(final_text)
    kind = str(problem.metadata.get("answer_type"))
    judge = {"float": _judge_float, "multiple choice": _judge_letter}.get(kind, _judge_text)
    is_correct = judge(problem.answer, answer)
    rule = kind if is_correct else "wrong"
    letter = read_letter(answer) if judge is _judge_letter else None
    answer = answer[:MAX_ANSWER_CHARS]
    return Verdict(is_correct=is_correct, rule=rule, answer=answer, extraction=extraction, letter=letter)


def extract_official(reply: str) -> tuple[str, str]:
    """The short answer as the authors read it and the rule that found it."""
    cut = reply[reply.find("{") : reply.rfind("}") + 1].replace("\\", "")
    for text in (reply, cut):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return str(cast("dict[str, Any]", value).get("short answer")), "json"
    return reply.rpartition("\n")[2][:-1], "last_line"


def _judge_float(gold: str, answer: str) -> bool:
    word, factor = answer.partition(" ")[0], 1.0
    if "π" in word:
        word, factor = word.partition("π")[0], math.pi
    try:
        return abs(float(word) * factor - float(gold)) <= float(TOLERANCE)
    except ValueError:
        return False


def _judge_letter(gold: str, answer: str) -> bool:
    return answer == gold if len(answer) == 1 else gold in answer[:3]


def _judge_text(gold: str, answer: str) -> bool:
    return gold in answer
