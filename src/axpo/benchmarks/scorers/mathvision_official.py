r"""MathVision as its authors score it: reading an answer out of a response, equality at two decimals, result tables.

The rules of the published evaluation (mathllm/MATH-V, MIT), peculiarities included, so that its verdicts on published
outputs come out the same. Use `axpo.benchmarks.scorers.mathvision.score` to judge a model: the official rule takes
3.144 for 3.14, `(a)` within a sentence for a letter, and `2\frac{1}{3}` for two thirds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from axpo.benchmarks.scorers.latex_value import latex_value
from axpo.dialogue import Verdict
from axpo.types import Problem

MAX_ANSWER_CHARS = 500
"""Of a longer answer only the beginning goes into the verdict."""
MAX_RESPONSE_CHARS = 2_000_000
"""Of a longer response only the end is read."""

_PHRASES = tuple(
    article + rest
    for rest in ("e final answer is", "e answer is", "e correct answer is", "e answer should be")
    for article in ("th", "Th")
)
_BOX = "oxed{"
_LETTERS = "abcde"
_SPACING = (" ", "\\,")
_UNITS = ("{m}^3", "m^3", "{units}", "units", "{km}", "km")
_DEGREES = ("^{\\circ}", "^\\circ")
_SIZES = ("\\left", "\\right")
_REWRITES: tuple[tuple[str, str], ...] = (  # in this order: some make what a later one finds
    *((mark, "") for mark in _SPACING),
    ("∞", "\\infty"),
    ("+\\infty", "\\infty"),
    ("\\\\", "\\"),
    ("\n", ""),
    ("\\text", ""),
    ("\\mbox", ""),
    ("bmatrix", "pmatrix"),
    *((mark, "") for mark in (*_SIZES, *_DEGREES, *_UNITS)),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    *((mark, "") for mark in (*_SIZES, *_DEGREES, "\\$", "$", "\\%")),
    ("{.", "{0."),
)
_BARE_ROOT = re.compile(r"\\sqrt(?!\\sqrt)([^{])", re.DOTALL)
_BARE_FRACTION = re.compile(r"\\frac([^{])(?:(\{)|(.))", re.DOTALL)
_CUT_FRACTION = re.compile(r"\\frac[^{]?(?:\Z|(?=\\frac))", re.DOTALL)
_SLASH = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")


def score_official(problem: Problem, final_text: str) -> Verdict:
    """The authors' verdict on a response. `problem.answer` and `metadata["options"]` are as published."""
    answer, extraction = extract_official(final_text)
    return judge_official(problem, answer, extraction)


def judge_official(problem: Problem, answer: str, extraction: str = "given") -> Verdict:
    """The authors' verdict on an answer that has been extracted already (`model_answer` of a published output)."""
    rule = _matching_rule(problem.answer, answer)
    if rule is None and (text := gold_option(problem)):
        rule = None if _matching_rule(text, answer) is None else "option_text"
    missing = "wrong" if answer else "no_answer"
    letter = answer.upper() if problem.metadata.get("options") and answer in tuple(_LETTERS) else None
    is_correct, answer = rule is not None, answer[:MAX_ANSWER_CHARS]
    return Verdict(
        is_correct=is_correct, rule=rule or missing, answer=answer or None, extraction=extraction, letter=letter
    )


def gold_option(problem: Problem) -> str:
    """The published text of the right option; empty for a free-form question.

    >>> from axpo.types import Message
    >>> options = ["red", "green", "blue", "black", "white"]
    >>> question = Problem(id="1", messages=(Message(role="user"),), answer="B", metadata={"options": options})
    >>> gold_option(question)
    'green'
    """
    options = problem.metadata.get("options") or ()
    index = ord(problem.answer) - ord("A") if len(problem.answer) == 1 else -1
    return str(options[index]) if 0 <= index < len(options) else ""


def extract_official(response: str) -> tuple[str, str]:
    r"""The answer as the authors read it, lower-cased and normalised, and the rule that found it.

    >>> extract_official("Thus \\boxed{\\frac{1}{2}}."), extract_official("The correct answer is (B) 12.")
    (('\\frac{1}{2}', 'boxed'), ('b12', 'phrase'))
    """
    text, rule = response[-MAX_RESPONSE_CHARS:].strip(), "whole"
    letter = _letter_at_an_end(text)
    if letter is not None:
        text, rule = letter, "letter"
    ending = text.rpartition("is ")[2].rstrip(".")
    if _is_float(ending):
        text, rule = ending, "number"
    if _BOX in text:
        rule = "boxed"
        if text.count(_BOX) > 1:
            text = f"\\b{_BOX}{text.rpartition(_BOX)[2]}"
    else:
        text, was_cut = _after_phrases(text)
        rule = "phrase" if was_cut else rule
    return _unwrap_letters(_normalize(text)).rstrip(".").lstrip(":").strip(), rule


def official_tables(problems: Mapping[str, Problem], verdicts: Mapping[str, bool]) -> dict[str, str]:
    """The authors' result table: `correct/total=percent%` by subject, by level and by both, both ways round.

    Args:
        problems: Questions by id, with `subject` and `level` in their metadata.
        verdicts: Of the questions to count, by id.
    """
    right, total = Counter[str](), Counter[str]()
    for problem_id, is_correct in verdicts.items():
        metadata = problems[problem_id].metadata
        subject, level = metadata["subject"], metadata["level"]
        keys = ("-all", f"-level{level}", f"{subject}", f"{subject}_level{level}", f"-level{level}_{subject}")
        total.update(keys)
        right.update(keys if is_correct else ())
    return {key: f"{right[key]}/{total[key]}={round(right[key] / total[key] * 100, 2)}%" for key in sorted(total)}


# -- where the answer stands ------------------------------------------------------------------------------------------


def _letter_at_an_end(text: str) -> str | None:
    for letter in "ABCDE":
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(starts):
            return letter
    return None


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _after_phrases(text: str) -> tuple[str, bool]:
    """What follows "the answer is" and its like, up to the end of its sentence or line."""
    was_cut = False
    for phrase in _PHRASES:
        _, found, rest = text.rpartition(phrase)
        text = rest.strip()
        if found:
            text, was_cut = text.partition("\n")[0].partition(". ")[0], True
    return text, was_cut


# -- normal form ------------------------------------------------------------------------------------------------------


def _normalize(text: str) -> str:
    text = _open_box(text.lower().replace("{}", ""))
    closing, opening = text.find("}"), text.find("{")
    if closing >= 0 and not 0 <= opening < closing:
        text = text[:closing]
    text = text.rpartition("=")[2].rpartition("\\approx")[2]
    for old, new in _REWRITES:
        text = text.replace(old, new)
    if text.startswith("."):
        text = "0" + text
    if "sqrt" in text:
        text = _brace_fractions(_BARE_ROOT.sub(r"\\sqrt{\1}", text))
    return _spell_fraction(text)


def _open_box(text: str) -> str:
    """From the first opened box to the last closing brace."""
    start, stop = text.find(_BOX), text.rfind("}")
    return text[start + len(_BOX) : stop] if stop >= start + len(_BOX) and start >= 0 else text


def _brace_fractions(text: str) -> str:
    r"""`\frac12` becomes `\frac{1}{2}`; nothing changes where the text ends within a fraction."""
    if _CUT_FRACTION.search(text):
        return text
    return _BARE_FRACTION.sub(
        lambda match: f"\\frac{{{match[1]}}}" + (match[2] or f"{{{match[3]}}}"),
        text,
    )


def _spell_fraction(text: str) -> str:
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = _SLASH.fullmatch(text)
    return f"\\frac{{{slash[1]}}}{{{slash[2]}}}" if slash else text


def _unwrap_letters(text: str) -> str:
    for brackets in ("()", "{}"):
        for letter in _LETTERS:
            text = text.replace(brackets[0] + letter + brackets[1], letter)
    return text


# -- equality ---------------------------------------------------------------------------------------------------------


def _matching_rule(gold: str, answer: str) -> str | None:
    """How an answer equals a gold text, or None."""
    gold, answer = gold.lower(), answer.lower()
    if not gold.strip(" ") or not answer.strip(" "):
        return None
    if gold.strip() == answer.strip():
        return "letter" if gold.strip() in _LETTERS else "text"
    gold_tuple, answer_tuple = _round_tuple(gold), _round_tuple(answer)
    if gold_tuple == answer_tuple:
        return "tuple"
    gold_value, answer_value = _round_value(gold_tuple), _round_value(answer_tuple)
    return "number" if gold_value is not None and gold_value == answer_value else None


def _round_value(text: str) -> float | int | None:
    value = latex_value(text)
    if value is None:
        return None
    if value == int(value):
        return int(value)
    try:
        return round(float(value), 2)
    except OverflowError:
        return None


def _round_tuple(text: str) -> str:
    """Two or more elements in brackets, each as its rounded value; a text that is no such thing stays as it is."""
    elements = text[1:-1].split(",")
    if text[0] + text[-1] not in ("()", "[]") or len(elements) < 2:
        return text
    rounded: list[str] = []
    for element in elements:
        value = element if "infty" in element or element in ("a", "-a") else _round_value(element)
        if value is None:
            return text
        rounded.append(str(value))
    return text[0] + ",".join(rounded) + text[-1]
