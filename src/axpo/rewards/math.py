"""Numbers and LaTeX: exact arithmetic for plain numbers, `math-verify` in a process of its own for the rest.

Numbers are equal when they differ by at most 1e-6 and by at most 2e-6 of the gold answer (two integers: not at all).
A percent sign divides by a hundred: 10% is 0.1 and not 10. Units are ignored where only one side has one; two
different units are two different answers. Words are compared letter by letter.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from axpo.errors import MissingExtraError
from axpo.rewards.answers import extract_answer, gold_answers, last_box
from axpo.types import Problem
from axpo.workers import WorkerPool, WorkError

MAX_ANSWER_CHARS = 500
"""Longer answers are wrong."""
CPU_LIMIT_S = 3.0
"""Processor time that one comparison may take before it counts as wrong."""
MEMORY_LIMIT_BYTES = 4 * 2**30
MAX_ABSOLUTE_ERROR = Fraction(1, 10**6)
MAX_RELATIVE_ERROR = Fraction(2, 10**6)

_JOB = "axpo.rewards.math_worker:is_equal"
_SYMBOLS = {
    "−": "-",
    "–": "-",
    "×": "\\times ",
    "·": "\\cdot ",
    "÷": "\\div ",
    "π": "\\pi ",
    "∞": "\\infty ",
    "°": "^{\\circ}",
    "²": "^{2}",
    "³": "^{3}",
}
_DELIMITERS = re.compile(r"\\[()\[\],;! ]|\\?\$|\\(?:left|right|displaystyle)(?![a-z])")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s?(?:"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?:\s\d{3})+|\d*)(?P<decimals>\.\d*)?(?:[eE](?P<exponent>[+-]?\d{1,3}))?"
    r"|(?:(?P<mixed>\d+)\s)?(?:(?P<top>\d+)\s?/\s?(?P<bottom>\d+)|\\d?frac\{(?P<tex_top>\d+)\}\{(?P<tex_bottom>\d+)\})"
    r")\s?(?P<percent>\\?%)?"
)
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([+-]?\d{1,3})(?!\w)")
_ROOT = re.compile(r"√\s?(\d+|[A-Za-z])")
_PERCENT = re.compile(r"(.*[^\s\\])\s*\\?%")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}")
_NUMBER_WITH_UNIT = re.compile(r"([+-]?[\d.,/\s]*\d)\s*([A-Za-z][A-Za-z\s/]*(?:\^\{?\d\}?)?)\s*")
_WORDS = re.compile(r"[A-Za-z\s'.,-]*[A-Za-z]{3}[A-Za-z\s'.,-]*")
_NUMBER_SERIES = re.compile(r"[\d.]+(?:\s[\d.]+)+")


def math_reward(final_text: str, problem: Problem) -> float:
    """1.0 when the extracted answer equals an accepted answer as mathematics."""
    answer, _ = extract_answer(final_text)
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    return float(any(is_equal_math(gold, answer) for gold in gold_answers(problem)))


def is_equal_math(gold: str, answer: str) -> bool:
    """True when two expressions, plain or LaTeX, are equal. Bounded time on any text, from any thread."""
    gold, answer = _clean(gold), _clean(answer)
    if gold.casefold() == answer.casefold():
        return bool(gold)
    gold_number, answer_number = parse_number(gold), parse_number(answer)
    if gold_number is not None and answer_number is not None:
        return _are_near(gold_number, answer_number)
    if any(_WORDS.fullmatch(text) or _NUMBER_SERIES.fullmatch(text) for text in (gold, answer)):
        return False  # math-verify would multiply the letters ("cat" = "act") and add the numbers ("5 6" = 11)
    gold_parts, answer_parts = _split_unit(gold), _split_unit(answer)
    if gold_parts and answer_parts:  # math-verify drops units: "5 cm" = "5 m"
        return gold_parts[1] == answer_parts[1] and is_equal_math(gold_parts[0], answer_parts[0])
    return _is_equal_latex(_to_latex(gold), _to_latex(answer))


def parse_number(text: str) -> Fraction | None:
    """The exact value of a plain number: decimal, fraction, mixed, scientific, with separators or a percent sign.

    >>> parse_number("1,250.5"), parse_number("-1 1/2"), parse_number("10%"), parse_number("x")
    (Fraction(2501, 2), Fraction(-3, 2), Fraction(1, 10), None)
    """
    match = _NUMBER.fullmatch(text)
    if match is None or not any(character.isdigit() for character in text):
        return None
    top, bottom = match["top"] or match["tex_top"], match["bottom"] or match["tex_bottom"]
    if top is not None:
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom)) + int(match["mixed"] or 0)
    else:
        digits = re.sub(r"[,\s]", "", match["whole"])
        value = Fraction(f"{digits or 0}{(match['decimals'] or '.') + '0'}e{match['exponent'] or 0}")
    return value * (-1 if match["sign"] == "-" else 1) / (100 if match["percent"] else 1)


def _are_near(gold: Fraction, answer: Fraction) -> bool:
    return abs(gold - answer) <= min(MAX_ABSOLUTE_ERROR, MAX_RELATIVE_ERROR * abs(gold))


def _split_unit(text: str) -> tuple[str, str] | None:
    """Number and unit, when a text is a number with a unit."""
    match = _NUMBER_WITH_UNIT.fullmatch(_TEXT_COMMAND.sub(r" \1 ", text))
    return (match[1], "".join(match[2].casefold().split())) if match else None


def _clean(text: str) -> str:
    box = last_box(text)
    text = _DELIMITERS.sub("", (text if box is None else box).replace("{,}", ","))
    command = _TEXT_COMMAND.fullmatch(text.strip())
    text = command[1] if command else text
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    return " ".join(text.split()).strip("*`").rstrip(".").strip()


def _to_latex(text: str) -> str:
    text = text.replace("**", "^")
    text = _SCIENTIFIC.sub(r"\\times 10^{\1}", _ROOT.sub(r"\\sqrt{\1}", text))
    percent = _PERCENT.fullmatch(text)  # math-verify takes 10% for 10 as well
    return f"\\frac{{{percent[1]}}}{{100}}" if percent else text


# -- the process ------------------------------------------------------------------------------------------------------


class MathVerifier:
    """`math-verify` in a worker process. Safe to call from any thread."""

    def __init__(self, *, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._workers = WorkerPool(memory_bytes=MEMORY_LIMIT_BYTES)

    def is_equal(self, gold: str, answer: str) -> bool:
        """True when the expressions are equal; False also when that cannot be told within the limits."""
        limits = (float(MAX_ABSOLUTE_ERROR), float(MAX_RELATIVE_ERROR))
        try:
            return bool(self._workers.run(_JOB, gold, answer, *limits, cpu_s=self._cpu_limit_s))
        except WorkError:
            return False
        except ImportError as error:
            raise MissingExtraError(
                "the math reward needs math-verify, which cannot be imported: pip install 'math-verify>=0.9,<0.10'"
            ) from error

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        self._workers.close()


_verifier = MathVerifier()


@functools.lru_cache(maxsize=8192)
def _is_equal_latex(gold: str, answer: str) -> bool:
    """Cached: the siblings of a question tend to give the same few answers."""
    return _verifier.is_equal(gold, answer)
