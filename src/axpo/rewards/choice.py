"""Multiple choice: the letter of an option against the gold letter."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from axpo.rewards.answers import extract_answer, gold_answers
from axpo.rewards.text import normalize_text
from axpo.types import Problem

_WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm|bf)\b\s?|[{}$*_`\"'“”]")
_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\].:,]{0,2}")
_HEADED = re.compile(r"(?:[(\[]([A-Za-z])[)\][.:]?|([A-Za-z])[).:])\s(\S.*)", re.DOTALL)
_MENTION = re.compile(
    r"[(\[]([A-Za-z])[)\]]"  # (B)
    r"|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s([A-Za-z])(?!\w)"  # option b
    r"|\b(?:is|be|choose|pick|select)\s([A-Z])(?=$|[.,;!])"  # it is B.
)
_FURTHER_OPTION = re.compile(
    r"(?:\b(?:or|and|not)\s|[,/&;]\s?)(?:[(\[]?[A-Z](?!\w)|[(\[]?[a-z](?=$|[)\].,;:]))"  # or C
    r"|[(\[][A-Za-z][)\]]|(?<!\w)[A-Z][).:](?=\s|$)"  # (C), C.
)


def choice_reward(final_text: str, problem: Problem) -> float:
    """1.0 when the extracted answer names an accepted option, by letter or by its text in `metadata["choices"]`."""
    choices = tuple(str(choice) for choice in problem.metadata.get("choices", ()))
    answer, _ = extract_answer(final_text)
    letter = None if answer is None else read_letter(answer, choices)
    return float(letter is not None and any(read_letter(gold, choices) == letter for gold in gold_answers(problem)))


def read_letter(answer: str, choices: Sequence[str] = ()) -> str | None:
    """The one option that an answer names, as a capital letter, or None: none, several, or a contradiction.

    Understood are a letter alone ("b", "(B)", "B.", `\\text{B}`), an option's exact text, a letter before its text
    ("B. blue"), and exactly one letter that is bracketed, called an option, or said to be it ("it is B."). A bare "a"
    in a sentence is an article.

    >>> read_letter("(B)"), read_letter("a blue car"), read_letter("A or B"), read_letter("blue", ["red", "blue"])
    ('B', None, None, 'B')
    """
    text = " ".join(_WRAPPERS.sub("", answer).split())
    alone = _ALONE.fullmatch(text)
    if alone:
        return _within(alone[1], choices)
    exact = _letter_of_text(text, choices, str.casefold)
    headed = _HEADED.fullmatch(text)
    if exact is None and headed:  # before the normalised text, which takes the "A." of "A. green" for an article
        return _read_headed(headed[1] or headed[2], headed[3], choices)
    by_text = exact or _letter_of_text(text, choices, normalize_text)
    if by_text is not None:
        return by_text
    mentions = list(_MENTION.finditer(text))
    letters = {str(mention[mention.lastindex or 0]).upper() for mention in mentions}
    if len(letters) != 1 or _FURTHER_OPTION.search(text, mentions[-1].end()):
        return None
    return _within(letters.pop(), choices)


def _read_headed(letter: str, rest: str, choices: Sequence[str]) -> str | None:
    named_by_rest = _letter_of_text(rest, choices, normalize_text)
    if named_by_rest is None and _FURTHER_OPTION.search(rest):
        return None
    return _within(letter, choices) if named_by_rest in (None, letter.upper()) else None


def _letter_of_text(text: str, choices: Sequence[str], normalize: Callable[[str], str]) -> str | None:
    wanted = normalize(text)
    matches = [index for index, choice in enumerate(choices) if normalize(choice) == wanted]
    return string.ascii_uppercase[matches[0]] if len(matches) == 1 and matches[0] < 26 else None


def _within(letter: str, choices: Sequence[str]) -> str | None:
    index = string.ascii_uppercase.index(letter.upper())
    return letter.upper() if not choices or index < len(choices) else None
