"""What an importer makes of one rollout, whoever sampled it: light enough for a million of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from axpo.types import FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCall:
    """A tool call that was opened outside of thinking."""

    tool: str | None
    """None when the call could not be read, or names a tool that is known not to exist."""
    is_answered: bool
    """A result or an error followed; False: the call never ran."""
    failure: FailureKind | None = None
    """Why the result is none; only of answered calls."""
    arguments: str = ""
    """As written; to tell calls apart, not to run them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRollout:
    """One rollout as far as a dump tells. None is always "the dump does not say"."""

    question: Hashable
    """Equal for the rollouts of one question."""
    step: int | None = None
    reward: float | None = None
    uses_tool: bool = False
    """It opened a tool call outside of its thinking, whether or not the call parsed or ran."""
    calls: tuple[SeenCall, ...] = ()
    num_calls_in_thinking: int | None = None
    """Opening call tags inside thinking: text, not calls."""
    is_truncated: bool | None = None
    """A limit, not the policy, ended it."""
    length: int | None = None
    """Of the response: tokens, or characters, see `Format.length_unit`."""
    num_turns: int | None = None
    confidence: float | None = None
    """Mean probability of the tokens of its first tool call, in 0..1."""
    is_continuation: bool = False
    """Resampled from the thinking prefix of another rollout; it counts for recovery only."""
    is_source: bool = False
    """Its prefix was chosen for resampling."""
    is_resumable: bool = True
    """Of a tool-using rollout: a limit leaves something to resample with."""
