"""Reads a short answer as a number, in any usual spelling."""

from __future__ import annotations

import re

from axpo.benchmarks.scorers.latex_value import Value, latex_value
from axpo.rewards.math import MAX_ANSWER_CHARS, parse_number

NOISE = re.compile(r"\\?\$|\\[()\[\],;! ]|\\(?:left|right|displaystyle)(?![a-z])|[*`~]|[£€]")
_APPROXIMATELY = re.compile(r"^(?:approximately|approx\.?|about|around|roughly|[≈~]|\\approx)\s*", re.IGNORECASE)
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[0-9}iπ!)])\s*(?:\^?\{?\\circ\}?|°|(?<![A-Za-z])[A-Za-z][A-Za-z\s./]*(?:\^\{?[23]\}?|[²³])?)$")
_MIXED = re.compile(r"(?<![0-9.}])([0-9]+)\s*(\\[dt]?frac\{[0-9]+\}\{[0-9]+\})")
_BARE_FRACTION = re.compile(r"\\[dt]?frac([0-9])([0-9])")
_PLAIN_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])|π", re.IGNORECASE)
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s?\(([^()]*)\)|√\s?\(([^()]*)\)|√\s?([0-9]+)|\\sqrt\s?([0-9])")


def read_value(text: str, *, drops_percent: bool = False) -> Value | None:
    r"""Read an answer as a number: decimal, fraction, root, multiple of pi. A name before it or a unit after it is cut.

    >>> read_value("x = 3.5 cm"), read_value("1,250"), read_value("2 \\frac{1}{2}"), read_value("12 or 13")
    (Fraction(7, 2), Fraction(1250, 1), Fraction(5, 2), None)
    >>> round(float(read_value("2pi/3") or 0), 4)
    2.0944
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = TEXT_COMMAND.sub(r" \1", NOISE.sub("", text).replace("−", "-").replace("{,}", ","))
    text = re.split(r"=|≈|\\approx", text)[-1].strip()
    text = _APPROXIMATELY.sub("", text).rstrip(". ")
    if ":" in text or text.count("/") > 1:  # a time, a ratio, a date
        return None
    if drops_percent:
        text = text.removesuffix("%").rstrip("\\ ")
    for candidate in (text, _UNIT.sub("", text)):
        number = parse_number(candidate)
        value = latex_value(_spell_out(candidate), is_whole=True) if number is None else number
        if value is not None:
            return value
    return None


def _spell_out(text: str) -> str:
    text = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", _PLAIN_PI.sub(r"\\pi ", text))
    text = _PLAIN_ROOT.sub(lambda match: f"\\sqrt{{{next(part for part in match.groups() if part)}}}", text)
    return _MIXED.sub(r"(\1+\2)", text).replace("**", "^").replace("×", "*").replace("·", "*")
