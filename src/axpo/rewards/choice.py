"""Multiple choice: the letter of an option against the gold letter."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from fractions import Fraction

from axpo.rewards.answers import AnswerRule, extract_answer, gold_answers, text_after_box
from axpo.rewards.math import parse_number
from axpo.rewards.text import normalize_text
from axpo.types import Problem

_WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm|bf)\b\s?|[{}$*_`\"'“”]")
_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\].:,]{0,2}")
_HEADED = re.compile(
    r"(?:[(\[](?P<bracketed>[A-Za-z])[)\]][.:]?\s?"  # (B) blue
    r"|(?P<marked>[A-Za-z])[).:]\s"  # B. blue
    r"|(?P<dashed>[A-H])\s[-–—]\s"  # B - blue
    r"|(?P<joined>[A-H])[).:](?=[^\s.]{2}|\d)"  # B.blue
    r")(?P<rest>\S.*)",
    re.DOTALL,
)
_OPTION_FIRST = re.compile(r"[(\[]?([A-H])(?:[)\].:,;/]|\s[-–—]\s|$)")
_MENTION = re.compile(
    r"[(\[]([A-Za-z])[)\]]"  # (B)
    r"|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s([A-Za-z])(?!\w)"  # option b
    r"|\b(?:is|be|choose|pick|select)\s([A-Z])(?=$|[.,;!])"  # it is B.
)
_LETTER_LINE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s)?[(\[]?[A-Za-z][)\]]?\.?")
_FURTHER_OPTION = re.compile(
    r"(?:\b(?:or|and|not)\s|[,/&;]\s?|\s[-–—]\s)(?:[(\[]?[A-Z](?!\w)|[(\[]?[a-z](?=$|[)\].,;:]))"  # or C
    r"|[(\[][A-Za-z][)\]]|(?<!\w)[A-Z][).:](?=\s|$)"  # (C), C.
)


_NUMBER_WITH_UNIT = re.compile(r"(\S*\d)\s?(°|\^\\circ|[A-Za-z]{1,12}(?:\^?[23²³])?)\.?")
_MAX_NUMBER_CHARS = 100
_MAX_RELATIVE_DIFFERENCE = Fraction(1, 100)


def choice_reward(final_text: str, problem: Problem) -> float:
    """1.0 when the extracted answer names an accepted option, by letter or by its text in `metadata["choices"]`."""
    choices = tuple(str(choice) for choice in problem.metadata.get("choices", ()))
    answer, _ = extract_choice(final_text, choices)
    letter = None if answer is None else read_letter(answer, choices)
    return float(letter is not None and any(read_letter(gold, choices) == letter for gold in gold_answers(problem)))


def extract_choice(final_text: str, choices: Sequence[str] = ()) -> tuple[str | None, AnswerRule]:
    r"""The final answer to a multiple-choice question and the rule that found it, see `extract_answer`.

    A box in mid-reasoning gives way to a later statement that names one option: "the answer is (C)", or a letter alone
    on the last line.

    >>> extract_choice("The area is \boxed{12}. Therefore, the answer is (C).")
    ('(C)', 'phrase')
    """
    answer, rule = extract_answer(final_text)
    if answer is None or rule != "boxed":
        return answer, rule
    closing, closing_rule = extract_answer(text_after_box(final_text))
    if closing is None or read_letter(closing, choices) is None:
        return answer, rule
    is_statement = closing_rule == "phrase" or _LETTER_LINE.fullmatch(_unwrapped(closing)) is not None
    return (closing, closing_rule) if is_statement else (answer, rule)


def read_letter(answer: str, choices: Sequence[str] = ()) -> str | None:
    """The one option that an answer names, as a capital letter, or None: none, several, or a contradiction.

    Understood are a letter alone ("b", "(B)", "B.", `\\text{B}`), an option's exact text, a letter before its text
    ("B. blue", "B - blue"; not "B. 12" where B is 13), and exactly one letter that is bracketed, called an option, or
    said to be it ("it is B."). A bare "a" in a sentence is an article.

    >>> read_letter("(B)"), read_letter("a blue car"), read_letter("A or B"), read_letter("blue", ["red", "blue"])
    ('B', None, None, 'B')
    """
    text = _unwrapped(answer)
    if text.startswith(("not ", "Not ")):
        return None
    alone = _ALONE.fullmatch(text)
    if alone:
        return _within(alone[1], choices)
    exact = _letter_of_text(text, choices, str.casefold)
    headed = _HEADED.fullmatch(text)
    if exact is None and headed:  # before the normalised text, which takes the "A." of "A. green" for an article
        letter = next(filter(None, headed.group("bracketed", "marked", "dashed", "joined")))
        return _read_headed(letter, headed["rest"], choices)
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
    first = _OPTION_FIRST.match(rest)
    is_hedged = _FURTHER_OPTION.search(rest) or (first is not None and first[1] != letter.upper())
    if named_by_rest is None and is_hedged:
        return None
    named = _within(letter, choices)
    if named is None or named_by_rest not in (None, named):
        return None
    return None if choices and is_other_number(rest, choices[ord(named) - ord("A")]) else named


def is_other_number(text: str, option: str) -> bool:
    """True when a text and an option's text are numbers of one unit, or of none, that differ by more than 1%.

    A percent sign may be missing on one side.

    >>> is_other_number("270°", "135°"), is_other_number("3.14 cm", "3.1416"), is_other_number("45%", "45")
    (True, False, False)
    """
    found = _split_unit(text), _split_unit(option)
    if found[0] is None or found[1] is None or (found[0][1] and found[1][1] and found[0][1] != found[1][1]):
        return False
    return differ_clearly(found[0][0], found[1][0])


def differ_clearly(first: Fraction | float, second: Fraction | float) -> bool:
    """True when two values differ by more than rounding."""
    try:
        return abs(first - second) > _MAX_RELATIVE_DIFFERENCE * max(abs(first), abs(second))
    except OverflowError:  # a fraction too large for a float
        return True


def _split_unit(text: str) -> tuple[Fraction, str] | None:
    """Read a text as a number, without its percent sign, and a unit; None when it is something else."""
    text = _unwrapped(text)
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    number = parse_number((match[1] if match else text.rstrip(".")).rstrip("%\\ "))
    return None if number is None else (number, (match[2] if match else "").casefold())


def _unwrapped(text: str) -> str:
    return " ".join(_WRAPPERS.sub("", text).split())


def _letter_of_text(text: str, choices: Sequence[str], normalize: Callable[[str], str]) -> str | None:
    wanted = normalize(text)
    matches = [index for index, choice in enumerate(choices) if normalize(choice) == wanted]
    return string.ascii_uppercase[matches[0]] if len(matches) == 1 and matches[0] < 26 else None


def _within(letter: str, choices: Sequence[str]) -> str | None:
    index = string.ascii_uppercase.index(letter.upper())
    return letter.upper() if not choices or index < len(choices) else None
