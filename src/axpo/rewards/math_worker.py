"""Comparing two expressions by `math-verify`: work for a process of its own, see `axpo.workers`.

Only that process imports this module: `math-verify` loads sympy.
"""

from __future__ import annotations

from typing import Any

from math_verify import LatexExtractionConfig, parse, verify


def is_equal(gold: str, answer: str, max_absolute_error: float, max_relative_error: float) -> bool:
    """True when the expressions are equal."""
    try:
        gold_parts, answer_parts = _parse(gold), _parse(answer)
        return _verify(gold_parts, answer_parts) and _are_near(
            gold_parts, answer_parts, max_absolute_error, max_relative_error
        )
    except Exception:  # antlr, sympy and recursion raise anything on a model's text: it is not a right answer
        return False


def _parse(text: str) -> list[Any]:
    # without the dollar signs "(0, 6)" is read as 6; without a timeout of None it needs SIGALRM for itself
    # its annotation forgets None, which switches its own timer off: that one works in main threads only
    return parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    return bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)


def _are_near(gold: list[Any], answer: list[Any], max_absolute_error: float, max_relative_error: float) -> bool:
    """False for two numbers that only rounding to six decimals makes equal, such as 6.6e-34 and 1e-34."""
    if not (getattr(gold[0], "is_number", False) and getattr(answer[0], "is_number", False)):
        return True
    gold_value, answer_value = complex(gold[0].evalf()), complex(answer[0].evalf())
    tolerance = min(max_absolute_error, max_relative_error * abs(gold_value))
    return gold_value == answer_value or abs(gold_value - answer_value) <= tolerance
