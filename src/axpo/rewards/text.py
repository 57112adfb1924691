"""Equality of short texts after normalisation."""

from __future__ import annotations

import re
import unicodedata

from axpo.normalization import normalize
from axpo.rewards.answers import extract_answer, gold_answers
from axpo.types import Problem

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_LEADING_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)")


def text_reward(final_text: str, problem: Problem) -> float:
    """1.0 when the extracted answer equals an accepted answer after `normalize_text`."""
    answer, _ = extract_answer(final_text)
    if answer is None:
        return 0.0
    normalized = normalize_text(answer)
    return float(any(normalized == normalize_text(gold) for gold in gold_answers(problem)))


def normalize_text(text: str) -> str:
    """NFKC, case folded, without a leading article, punctuation and surplus spaces.

    Punctuation within a number stays, a minus sign too: "3.5" is not "35", "-5" is not "5". A text of nothing but
    punctuation is kept.

    >>> normalize_text(" The “Blue”  Car. ")
    'blue car'
    >>> normalize_text("−3.50 m")
    '-3.50 m'
    """
    folded = normalize("NFKC", text.translate(_DASHES)).casefold()
    kept = "".join(_keep(folded, index) for index in range(len(folded)))
    words = " ".join(kept.split())
    return _LEADING_ARTICLE.sub("", words) or folded.strip()


def _keep(text: str, index: int) -> str:
    character = text[index]
    if not unicodedata.category(character).startswith("P"):
        return character
    before = text[index - 1] if index else " "
    after = text[index + 1] if index + 1 < len(text) else " "
    is_in_number = before.isdigit() and after.isdigit()
    is_sign = character == "-" and after.isdigit() and not before.isalnum()
    is_percent = character == "%" and before.isdigit()
    starts_decimal = character == "." and after.isdigit() and not before.isalnum()
    return character if is_in_number or is_sign or is_percent or starts_decimal else " "
