"""The process in which `math-verify` runs: requests as JSON lines on stdin, verdicts as JSON lines on stdout.

Started by `axpo.rewards.math` as a script, so that it never imports the user's main module. It limits itself: the
kernel ends it when one request takes too much processor or wall time, even in the middle of one huge multiplication
and even when the parent process is gone.

Arguments: CPU seconds per request, largest absolute and largest relative error of two equal numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

MEMORY_LIMIT_BYTES = 4 * 2**30
WALL_PER_CPU_SECOND = 10
STARTUP_CPU_S = 60.0


def main() -> None:
    """Serve until stdin ends."""
    cpu_limit_s, max_absolute_error, max_relative_error = (float(argument) for argument in sys.argv[1:])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print must not become a verdict
    with contextlib.suppress(ValueError, OSError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    _limit_time(STARTUP_CPU_S)
    _reply(replies, {"is_ready": _can_import()})
    _limit_time(0.0)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_time(cpu_limit_s)
        try:
            gold, answer = _parse(request["gold"]), _parse(request["answer"])
            is_equal = _verify(gold, answer) and _are_near(gold, answer, max_absolute_error, max_relative_error)
        except Exception:  # antlr, sympy and recursion raise anything on a model's text: it is not a right answer
            is_equal = False
        _limit_time(0.0)
        _reply(replies, {"is_equal": is_equal})


def _limit_time(cpu_s: float) -> None:
    """End this process after so much time unless called again; 0 lifts the limit.

    The signals keep their default action: a Python handler would wait for the current C call to return.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, cpu_s * WALL_PER_CPU_SECOND)


def _can_import() -> bool:
    try:
        importlib.import_module("math_verify")
    except ImportError:
        return False
    return True


def _reply(replies: Any, message: dict[str, bool]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # without the dollar signs "(0, 6)" is read as 6; without a timeout of None it needs SIGALRM for itself
    # its annotation forgets None, which switches its own timer off: that one works in main threads only
    return parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)


def _are_near(gold: list[Any], answer: list[Any], max_absolute_error: float, max_relative_error: float) -> bool:
    """False for two numbers that only rounding to six decimals makes equal, such as 6.6e-34 and 1e-34."""
    if not (getattr(gold[0], "is_number", False) and getattr(answer[0], "is_number", False)):
        return True
    gold_value, answer_value = complex(gold[0].evalf()), complex(answer[0].evalf())
    tolerance = min(max_absolute_error, max_relative_error * abs(gold_value))
    return gold_value == answer_value or abs(gold_value - answer_value) <= tolerance


if __name__ == "__main__":
    main()
