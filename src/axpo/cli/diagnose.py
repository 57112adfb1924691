"""`axpo diagnose`: arguments, output, exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.errors import ConfigError

if TYPE_CHECKING:
    from axpo.diagnostics.diagnosis import Diagnosis, Numbers, PartDiagnosis

EXIT_CONDITION = 3
"""A `--fail-if` condition holds."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CONDITION = re.compile(r"\s*([a-z_]{1,40})(?:\.(low|high))?\s*(>=|<=|>|<)\s*([-+0-9.eE]{1,24})\s*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `axpo diagnose`."""
    from axpo.diagnostics.importers import FORMATS

    parser.add_argument("paths", type=Path, nargs="*", metavar="FILE_OR_DIR")
    parser.add_argument("--format", metavar="NAME", help=f"one of {', '.join(FORMATS)}; default: from the first rows")
    parser.add_argument(
        "--map",
        dest="mapping",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="a field has another name in the dump: --map reward=score; a dot goes into an object",
    )
    parser.add_argument(
        "--correct-at", type=float, default=1.0, metavar="FLOAT", help="a reward from here on is right; default 1"
    )
    parser.add_argument(
        "--budget-frac", type=float, default=0.25, metavar="R", help="resampling budget of the forecast; default 0.25"
    )
    parser.add_argument(
        "--num-continuations", type=int, default=4, metavar="K", help="continuations per prefix; default 4"
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with code 3 when it holds for any dump: 'all_wrong_tool>0.5', 'all_wrong_tool.low>0.5'",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON; - for standard output")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report")


def run_diagnose(
    paths: Sequence[Path],
    *,
    format: str | None = None,
    mapping: Sequence[str] = (),
    correct_at: float = 1.0,
    budget_frac: float = 0.25,
    num_continuations: int = 4,
    fail_if: Sequence[str] = (),
    json_path: Path | None = None,
    html_path: Path | None = None,
    write_html: Callable[[Diagnosis, Path], None] | None = None,
) -> int:
    """Diagnose, print, write; returns 0, or 3 when a condition of `fail_if` holds.

    `json_path`: `-` writes to standard output, where the tables then do not go. Raises `ConfigError` and `DataError`.
    """
    from axpo.codec import to_json
    from axpo.diagnostics.diagnosis import diagnose

    conditions = [parse_condition(text) for text in fail_if]
    fields = parse_mapping(mapping)
    if html_path is not None and write_html is None:
        raise ConfigError("--html: this build writes no report of a diagnosis. Use --json.")
    with _counting(is_quiet=json_path is not None and str(json_path) == "-") as progress:
        diagnosis = diagnose(
            paths,
            format=format,
            mapping=fields,
            correct_at=correct_at,
            budget_frac=budget_frac,
            num_continuations=num_continuations,
            progress=progress,
        )
    text = json.dumps(to_json(diagnosis), indent=1, allow_nan=False)
    if json_path is not None and str(json_path) == "-":
        print(text)
    else:
        _print(diagnosis)
        if json_path is not None:
            _write(json_path, text)
    if html_path is not None and write_html is not None:
        write_html(diagnosis, html_path)
    return _judge(diagnosis, conditions)


# -- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`NAME OP NUMBER`, where NAME may end in `.low` or `.high`: a bound of its interval."""

    name: str
    bound: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{f'.{self.bound}' if self.bound != 'estimate' else ''}{self.comparison}{self.limit:g}"


def parse_condition(text: str) -> Condition:
    """Raises `ConfigError` on anything that is no condition.

    >>> str(parse_condition("all_wrong_tool.low > 0.5"))
    'all_wrong_tool.low>0.5'
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--fail-if {text!r}: expected NAME>NUMBER, such as 'all_wrong_tool>0.5' (or >=, <, <=).")
    name, bound, comparison, number = match.groups()
    if name not in _known_names():
        raise ConfigError(f"--fail-if {text!r}: no number is called {name}. Known: {', '.join(_known_names())}.")
    try:
        limit = float(number)
    except ValueError as error:
        raise ConfigError(f"--fail-if {text!r}: {number!r} is no number.") from error
    return Condition(name=name, bound=bound or "estimate", comparison=comparison, limit=limit)


def parse_mapping(words: Sequence[str]) -> dict[str, str]:
    """`FIELD=NAME` words as a mapping. Raises `ConfigError` on a word that is none, or a field named twice."""
    mapping: dict[str, str] = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not equals or not ours or not theirs:
            raise ConfigError(f"--map {word}: expected FIELD=NAME, such as reward=score.")
        if ours in mapping:
            raise ConfigError(f"--map {word}: {ours} is {mapping[ours]} already. Name each field once.")
        mapping[ours] = theirs
    return mapping


def _known_names() -> tuple[str, ...]:
    from axpo.measures.rates import RATES

    return (*RATES, "gap")


# -- output -----------------------------------------------------------------------------------------------------------


def _judge(diagnosis: Diagnosis, conditions: Sequence[Condition]) -> int:
    """One line for each condition that holds, or that no dump allows to check: silence would pass for health."""
    lines = [line for condition in conditions for line in _judge_one(diagnosis.parts, condition)]
    for line in lines:
        print(line, file=sys.stderr)
    return EXIT_CONDITION if lines else 0


def _judge_one(parts: Sequence[PartDiagnosis], condition: Condition) -> list[str]:
    values = [(part.name, _value(part.total, condition)) for part in parts]
    known = [(name, value) for name, value in values if value is not None]
    if not known:
        return [f"--fail-if {condition}: cannot be checked, no dump has a value to compare."]
    holds = _OPERATORS[condition.comparison]
    return [
        f"--fail-if {condition}: it is {value:.4g} in {name}." for name, value in known if holds(value, condition.limit)
    ]


def _value(numbers: Numbers, condition: Condition) -> float | None:
    rate = numbers.gap if condition.name == "gap" else numbers.rates[condition.name]
    return getattr(rate, condition.bound)


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console

    from axpo.diagnostics.gap_text import render

    console = Console(highlight=False)
    if not console.is_terminal:  # a log, a pipe: tables must not be squeezed into 80 columns
        console = Console(highlight=False, width=160)
    for part in render(diagnosis):
        console.print(part)


def _counting(*, is_quiet: bool) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    from axpo.cli.console import counting

    return contextlib.nullcontext(lambda count: None) if is_quiet else counting("rollouts")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}.") from error
