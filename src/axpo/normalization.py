"""Unicode normalization in linear time, for text that a model or a server wrote."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal

MAX_MARKS = 30
"""Combining marks in a row that are kept, as in Unicode's stream-safe text format (UAX #15). Normalization sorts them
in quadratic time, and no language writes that many."""
_MARK_RANGE = (0x300, 0x20000)
"""Range of code points that contains all combining marks."""


def normalize(form: Literal["NFC", "NFKC"], text: str) -> str:
    """`unicodedata.normalize`, but a run of combining marks is cut after `MAX_MARKS`.

    >>> normalize("NFC", "e\\u0301"), len(normalize("NFC", "e" + 1000 * "\\u0301"))
    ('é', 30)
    """
    if text.isascii():
        return text
    return unicodedata.normalize(form, _many_marks().sub(lambda found: found[0][:MAX_MARKS], text))


@functools.cache
def _many_marks() -> re.Pattern[str]:
    """A run of more than `MAX_MARKS` combining marks."""
    candidates = (char for char in map(chr, range(*_MARK_RANGE)) if unicodedata.category(char)[0] == "M")
    # by the decomposed form: a few characters that do not count as marks consist of nothing else
    marks = "".join(char for char in candidates if unicodedata.combining(unicodedata.normalize("NFD", char)[0]))
    return re.compile(f"[{marks}][{marks}]{{{MAX_MARKS},}}")  # `re` looks for a first set quickly, not for a repeat
