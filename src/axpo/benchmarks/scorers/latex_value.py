r"""The number that a piece of LaTeX stands for, read as MathVision's authors read it.

Their check evaluates what the package `latex2sympy2` 1.9 makes of an answer. This is the subset of that grammar which
gives a number, in bounded time and without evaluating code. Its peculiarities are kept, because they decide verdicts:

- a text is read from its start as far as it goes: `6.similarly, 7` is 6; what then follows must be a full stop, a
  closing bracket or another mark that ends an expression, so that `6cm` and `6"` have no value;
- `2\frac{1}{3}` is a product, `3:4` a quotient, `1/2\pi` is 1/(2 pi), `2^3^2` is 64;
- a percent sign counts directly behind a number only: `10\%` is 0.1, `10 \%` has no value;
- `\frac12`, `\sqrt3`, `2^-1`, a bare `e`, `|x|` and units have no value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

Value = Fraction | float

MAX_DEPTH = 40
MAX_TOKENS = 1_000
MAX_BITS = 8_192
"""Of numerator and denominator; the largest of the published answers has 1,600."""
MAX_DIGITS = 2_000

_TOKEN = re.compile(
    r"(?P<skip>(?:[\s$~']|\\(?:quad|qquad|displaystyle)(?![a-z])|\\,)+)"
    r"|(?P<number>(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:\\%)?)"
    r"|(?P<command>\\(?:[A-Za-z]+|[{}\\]))"
    r"|(?P<word>tr|e(?=\s*\^))"
    r"|(?P<mark>[-+*/:^!()\[\]{}.&_])",
    re.ASCII,
)
_ENDS = frozenset(
    {")", "]", "}", ".", "&", "_", "tr", "\\}", "\\\\", "\\choose", "\\rfloor", "\\right"}
    | {"\\to", "\\rightarrow", "\\Rightarrow", "\\rightleftharpoons"}
)
_TIMES = frozenset(("*", "\\times", "\\cdot"))
_OVER = frozenset(("/", ":", "\\div", "\\over"))
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "\\sin": math.sin,
    "\\cos": math.cos,
    "\\tan": math.tan,
    "\\arcsin": math.asin,
    "\\arccos": math.acos,
    "\\arctan": math.atan,
    "\\log": math.log10,
    "\\exp": math.exp,
}
_INVERSES: dict[Callable[[float], float], Callable[[float], float]] = {
    math.sin: math.asin,
    math.cos: math.acos,
    math.tan: math.atan,
}
_FRACTIONS = frozenset(("\\frac", "\\dfrac", "\\tfrac"))
_STARTS = frozenset(_BRACKETS) | frozenset(_FUNCTIONS) | _FRACTIONS | {"\\sqrt", "\\binom", "\\pi", "e", "number"}


class _NoValueError(Exception):
    """The text has no value in this grammar, or one beyond the limits."""


def latex_value(text: str, *, is_whole: bool = False) -> Value | None:
    r"""The value of the expression that a text starts with, or that it is (`is_whole`), or None.

    Exact (a `Fraction`) as long as no root, function or pi takes part.

    >>> latex_value(r"\frac{25}{7}"), latex_value("1,250.5"), latex_value("3:4"), latex_value("12 cm")
    (Fraction(25, 7), Fraction(2501, 2), Fraction(3, 4), None)
    """
    try:
        reader = _Reader(text)
        value = reader.read_sum()
        reader.expect_end(is_whole=is_whole)
    except (_NoValueError, ArithmeticError, ValueError):
        return None
    return value if isinstance(value, Fraction) or math.isfinite(value) else None


class _Reader:
    """Recursive descent, one token of look-ahead; only as much of the text is read as is understood."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._num_tokens = 0
        self.kind = ""
        """Of the coming token: the token itself, `number`, or empty at the end and before what is no token."""
        self._lexeme = ""
        self._advance()

    def read_sum(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValueError
        total = self._read_product()
        while self.kind in ("+", "-"):
            is_minus = self._take() == "-"
            term = self._read_product()
            total = _checked(total - term if is_minus else total + term)
        self._depth -= 1
        return total

    def expect_end(self, *, is_whole: bool) -> None:
        """Raise unless the text ends here or, unless the whole text counts, goes on with a mark that ends it."""
        is_at_end = not self.kind and self._position == len(self._text)
        if not is_at_end and (is_whole or self.kind not in _ENDS):
            raise _NoValueError

    def _read_product(self) -> Value:
        product = self._read_run()
        while self.kind in _TIMES or self.kind in _OVER:
            is_division = self._take() in _OVER
            factor = self._read_run()
            product = _checked(product / factor if is_division else product * factor)
        return product

    def _read_run(self) -> Value:
        """Factors side by side, after any signs: they bind tighter than a quotient."""
        sign = 1
        while self.kind in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        product = self._read_factor()
        while self.kind in _STARTS:
            product = _checked(product * self._read_factor())
        return sign * product

    def _read_factor(self) -> Value:
        value = self._read_atom()
        while self.kind in ("!", "^"):
            value = _factorial(value) if self._take() == "!" else _power(value, self._read_exponent())
        return value

    def _read_exponent(self) -> Value:
        return self._read_atom() if self.kind in _STARTS else self._fail()

    def _read_atom(self) -> Value:
        kind, lexeme = self.kind, self._take()
        if kind == "number":
            return _number(lexeme)
        if kind in _BRACKETS:
            value = self.read_sum()
            if self.kind == "\\choose" and kind == "{":
                self._take()
                value = _binomial(value, self.read_sum())
            self._close(_BRACKETS[kind])
            return value
        if kind in _FRACTIONS:
            return _checked(self._read_group() / self._read_group())
        if kind in _FUNCTIONS:
            return self._read_function(_FUNCTIONS[kind])
        constants = {"\\pi": math.pi, "e": math.e}
        if kind in constants:
            return constants[kind]
        if kind == "\\sqrt":
            return self._read_root()
        return _binomial(self._read_group(), self._read_group()) if kind == "\\binom" else self._fail()

    def _read_function(self, function: Callable[[float], float]) -> Value:
        if self.kind != "^":
            return function(self._read_argument())
        self._take()
        exponent = self._read_exponent()
        if exponent == -1:
            return _INVERSES[function](self._read_argument()) if function in _INVERSES else self._fail()
        return _power(Fraction(function(self._read_argument())), exponent)

    def _read_argument(self) -> float:
        """In brackets, or everything up to the next plus or minus."""
        if self.kind not in _BRACKETS:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise _NoValueError
            value = self._read_product()
            self._depth -= 1
            return float(value)
        closing = _BRACKETS[self._take()]
        value = self.read_sum()
        self._close(closing)
        return float(value)

    def _read_root(self) -> Value:
        degree: Value = Fraction(2)
        if self.kind == "[":
            self._take()
            degree = self.read_sum()
            self._close("]")
        return _power(float(self._read_group()), 1 / degree)

    def _read_group(self) -> Value:
        if self.kind != "{":
            raise _NoValueError
        self._take()
        value = self.read_sum()
        self._close("}")
        return value

    def _close(self, bracket: str) -> None:
        if self.kind != bracket:
            raise _NoValueError
        self._take()

    def _take(self) -> str:
        lexeme = self._lexeme
        self._advance()
        return lexeme

    def _advance(self) -> None:
        self._num_tokens += 1
        if self._num_tokens > MAX_TOKENS:
            raise _NoValueError
        match = _TOKEN.match(self._text, self._position)
        if match is not None and match.lastgroup == "skip":
            self._position = match.end()
            match = _TOKEN.match(self._text, self._position)
        while match is not None and match[0] in ("\\left", "\\right") and self._text[match.end() : match.end() + 1]:
            self._position = match.end()
            match = _TOKEN.match(self._text, self._position)
        if match is None:
            self.kind = self._lexeme = ""
            return
        self._position = match.end()
        self._lexeme = match[0]
        self.kind = "number" if match.lastgroup == "number" else match[0]

    def _fail(self) -> Value:
        raise _NoValueError


def _number(lexeme: str) -> Value:
    if len(lexeme) > MAX_DIGITS:
        raise _NoValueError
    digits = lexeme.replace(",", "")
    return Fraction(digits[:-2]) / 100 if digits.endswith("\\%") else Fraction(digits)


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NoValueError
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent.numerator) > MAX_BITS:
            raise _NoValueError
        return base ** int(exponent)
    if base < 0:  # a complex number
        raise _NoValueError
    return float(base) ** float(exponent)


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 500:
        raise _NoValueError
    return Fraction(math.factorial(int(value)))


def _binomial(above: Value, below: Value) -> Value:
    whole = isinstance(above, Fraction) and isinstance(below, Fraction) and above.denominator == below.denominator == 1
    if not whole or not 0 <= below <= above <= 500:
        raise _NoValueError
    return Fraction(math.comb(int(above), int(below)))
