"""What the scorers share: where an answer stands, when two short texts are the same, the verdicts all of them give."""

from __future__ import annotations

import re
from collections.abc import Mapping

from axpo.dialogue import Verdict
from axpo.rewards.answers import visible_text
from axpo.rewards.math import parse_number
from axpo.rewards.text import normalize_text

MAX_ANSWER_CHARS = 2000
"""No rule reads a longer answer: it stays undecided."""
MAX_NUMBER_CHARS = 100

_ARTICLES = frozenset(("a", "an", "the"))
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)


def answer_block(text: str) -> str | None:
    """The last complete `<answer>...</answer>` of the visible text as it stands; None without one.

    >>> answer_block("<answer>a</answer> <answer>\\\\boxed{b}</answer>")
    '\\\\boxed{b}'
    """
    visible = visible_text(text)
    start, block = None, None
    for tag in _ANSWER_TAG.finditer(visible):
        if not tag[0].startswith("</"):
            start = tag.end()
        elif start is not None:
            block, start = visible[start : tag.start()].strip(), None
    return block


def exact_form(text: str) -> str:
    """`normalize_text` without any article: texts with the same form are the same answer.

    >>> exact_form("The Queen of the South!"), exact_form("A")
    ('queen of south', 'a')
    """
    normalized = normalize_text(text)
    return " ".join(word for word in normalized.split() if word not in _ARTICLES) or normalized


def same_answer_rule(gold: str, answer: str) -> str | None:
    """By which rule two short texts are the same: `exact`, `number` (of equal value), or None.

    >>> same_answer_rule("blue car", "A blue car."), same_answer_rule("1250", "1,250.0"), same_answer_rule("5", "-5")
    ('exact', 'number', None)
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    if exact_form(gold) == exact_form(answer):
        return "exact"
    if max(len(gold), len(answer)) > MAX_NUMBER_CHARS:
        return None
    value = parse_number(gold.strip().rstrip("."))
    return "number" if value is not None and value == parse_number(answer.strip().rstrip(".")) else None


def no_answer(extraction: str, *, scores: Mapping[str, float] | None = None) -> Verdict:
    """Wrong: there is no answer to judge."""
    return Verdict(is_correct=False, rule="no_answer", extraction=extraction, scores=dict(scores or {}))


def undecided(answer: str | None, extraction: str, *, scores: Mapping[str, float] | None = None) -> Verdict:
    """Something was answered that only a judge can tell."""
    return Verdict(
        is_correct=False,
        rule="undecided",
        answer=answer,
        extraction=extraction,
        is_decided=False,
        scores=dict(scores or {}),
    )


def block_or_all(text: str) -> tuple[str | None, str]:
    """The last answer block, else the whole visible text; what evaluations without an extraction of their own read."""
    block = answer_block(text)
    if block is not None:
        return block or None, "answer_tag"
    return visible_text(text) or None, "whole_text"
