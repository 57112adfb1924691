"""Answers of several parts: points, vectors, intervals and lists."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_CHARS = 500
"""A longer text is no tuple."""

_SPACING = re.compile(r"\\?\$|\\(?:left|right|displaystyle)(?![a-z])|\\[,;! ]")
_ANGLES = re.compile(r"\\langle|\\rangle|[⟨⟩]")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PAIRS = ("()", "[]", "{}")


def split_tuple(text: str) -> tuple[str, tuple[str, ...]] | None:
    r"""The brackets around a list of two or more parts and the parts, or None; a list need not have brackets.

    A name in front ("P = (1, 2)", "P(1, 2)") is dropped.

    >>> split_tuple("$P = \\left(0, \\frac{1}{2}\\right)$"), split_tuple("1,250"), split_tuple("3, 2, 5")
    (('()', ('0', '\\frac{1}{2}')), None, ('', ('3', '2', '5')))
    """
    if len(text) > MAX_CHARS:
        return None
    text = _ANGLES.sub(lambda match: "(" if match[0] in ("\\langle", "⟨") else ")", _SPACING.sub("", text))
    text = text.replace("\\{", "{").replace("\\}", "}").rpartition("=")[2].strip().rstrip(".")
    if re.match(r"[A-Z]'?\s?\(", text):
        text = text[text.index("(") :]
    brackets = text[:1] + text[-1:]
    is_bracketed = len(text) > 2 and (brackets in _PAIRS or brackets in ("(]", "[)")) and _is_one_pair(text)
    content = text[1:-1] if is_bracketed else text
    parts = _split_at_commas(content)
    if len(parts) < 2 or not all(parts) or (not is_bracketed and _THOUSANDS.fullmatch(content)):
        return None
    return (brackets if is_bracketed else ""), parts


def is_equal_tuple(gold: str, answer: str, is_equal: Callable[[str, str], bool]) -> bool | None:
    """Whether two lists are equal part by part, in order; None when the gold answer is no list.

    Brackets of two kinds make two answers of a pair, which may be a point or an interval; elsewhere, and where one side
    has none, they do not count.
    """
    gold_list, answer_list = split_tuple(gold), split_tuple(answer)
    if gold_list is None:
        return None
    if answer_list is None or len(gold_list[1]) != len(answer_list[1]):
        return False
    if len(gold_list[1]) == 2 and gold_list[0] and answer_list[0] and gold_list[0] != answer_list[0]:
        return False
    return all(is_equal(*parts) for parts in zip(gold_list[1], answer_list[1], strict=True))


def _is_one_pair(text: str) -> bool:
    """True when the first bracket is closed by the last character and not before."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


def _split_at_commas(text: str) -> tuple[str, ...]:
    """The parts between commas outside of brackets."""
    parts, depth, start = list[str](), 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return (*parts, text[start:].strip())
