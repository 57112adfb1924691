"""The named choices of the algorithm."""

from __future__ import annotations

from typing import Any, Literal, get_args

from axpo.errors import ConfigError

AdvantageStd = Literal["sample", "population", "none"]
Rank = Literal["confidence", "random"]
BranchAt = Literal["first", "last"]
ConfidenceCalls = Literal["first", "all"]
ScoredCalls = Literal["first", "last", "all"]
Aggregation = Literal["token_mean", "sequence_mean", "equation5"]
Subgroup = Literal["tool", "no_tool"]
RestoreDenominator = Literal["resampled", "triggered"]


def check_choice(option: str, value: str, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s.

    Raises:
        ConfigError: It is not.

    >>> check_choice("rank", "confidence", Rank)
    """
    if value not in get_args(choices):
        raise ConfigError(f"{option}: expected one of {', '.join(get_args(choices))}; got {value!r}")
