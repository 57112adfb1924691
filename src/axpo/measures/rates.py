"""Definitions of all rates, shared by training metrics, evaluation, diagnose and reports.

A rate is a total over a total. Its unit is a question (a group of rollouts), which adds a numerator and a denominator.
Rates count finished rollouts: one that was lost to an infrastructure failure says nothing about the policy, so it is in
no denominator. Pass@k is the exception (`axpo.evaluation.tallies`): a lost rollout counts as wrong there, so that the
number of samples is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from axpo.types import Rollout, SegmentKind

Addends = tuple[float, float]
"""Numerator and denominator that one question adds."""


@dataclass(slots=True, kw_only=True)
class GroupCounts:
    """Counters of the finished rollouts of one question. `*_known` count the rollouts of which a number is known."""

    n: int = 0
    """Finished rollouts."""
    scored: int = 0
    """Finished rollouts with a reward."""
    right: int = 0
    reward: float = 0.0
    min_reward: float = math.inf
    max_reward: float = -math.inf
    tool: int = 0
    """Rollouts that opened a tool call, whether or not it parsed or ran."""
    tool_scored: int = 0
    tool_right: int = 0
    tool_reward: float = 0.0
    answered: int = 0
    """Calls that got a result or a failure, malformed calls included."""
    failed: int = 0
    """Answered calls that failed, malformed calls included."""
    calls_never_ran: int = 0
    in_thinking: int = 0
    thinking_known: int = 0
    truncated: int = 0
    truncation_known: int = 0
    length: int = 0
    lengths_known: int = 0
    turns: int = 0
    turns_known: int = 0
    continuations: int = 0
    """Scored continuations of the question's failed prefixes."""
    continuations_right: int = 0
    continuations_reward: float = 0.0
    has_two_calls: bool = False
    """True when two tool-using siblings differ in their first calls."""

    @property
    def is_triggered(self) -> bool:
        """True when tool-using siblings exist and none of those that were scored is right."""
        return self.tool_scored > 0 and self.tool_right == 0

    @property
    def has_no_signal(self) -> bool:
        """True when all scored rollouts have the same reward: advantage zero."""
        return self.scored > 0 and self.min_reward == self.max_reward

    def add_reward(self, reward: float, *, is_right: bool, uses_tool: bool) -> None:
        """Count the reward of a rollout."""
        self.scored += 1
        self.right += is_right
        self.reward += reward
        self.min_reward = min(self.min_reward, reward)
        self.max_reward = max(self.max_reward, reward)
        if uses_tool:
            self.tool_scored += 1
            self.tool_right += is_right
            self.tool_reward += reward

    def add_continuation(self, reward: float, *, is_right: bool) -> None:
        """Count a scored continuation."""
        self.continuations += 1
        self.continuations_right += is_right
        self.continuations_reward += reward


def count_rollouts(rollouts: Sequence[Rollout], continuations: Sequence[Rollout] = ()) -> GroupCounts:
    """Count the finished siblings of one question and the continuations of their prefixes."""
    counts = GroupCounts()
    for rollout in rollouts:
        counts.n += 1
        counts.tool += rollout.uses_tool
        counts.add_reward(rollout.reward, is_right=rollout.is_correct, uses_tool=rollout.uses_tool)
        counts.answered += len(rollout.tool_results)
        counts.failed += sum(result.failure is not None for result in rollout.tool_results)
        counts.in_thinking += rollout.num_calls_in_thinking > 0
        counts.truncated += rollout.stop_reason.is_truncated
        counts.length += sum(len(s) for s in rollout.segments if s.kind is not SegmentKind.PROMPT)
    counts.thinking_known = counts.truncation_known = counts.lengths_known = counts.n
    for rollout in continuations:
        counts.add_continuation(rollout.reward, is_right=rollout.is_correct)
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRule:
    """A rate: what a question adds to its numerator and denominator."""

    title: str
    addends: Callable[[GroupCounts], Addends]
    is_share: bool = True
    """True when the rate is in 0..1."""
    paper: str = ""
    """D1 to D10, where it is one of the paper's quantities."""
    logged_as: str = ""
    """The key under which training logs the same number, see `docs/metrics.md`."""


def rate_of(name: str, groups: Iterable[GroupCounts]) -> float | None:
    """The rate over groups; None where there is nothing to count.

    >>> rate_of("tool_use_rate", [GroupCounts(n=3, tool=1), GroupCounts(n=1)])
    0.25
    """
    addends = [RATES[name].addends(group) for group in groups]
    denominator = sum(d for _, d in addends)
    return sum(n for n, _ in addends) / denominator if denominator else None


def _no_tool_scored(group: GroupCounts) -> int:
    return group.scored - group.tool_scored


def _no_tool_right(group: GroupCounts) -> int:
    return group.right - group.tool_right


RATES: Mapping[str, RateRule] = {
    "tool_use_rate": RateRule(
        title="rollouts that call a tool",
        paper="D1, D7, D8",
        addends=lambda g: (g.tool, g.n),
        logged_as="rollout/tool_use_rate",
    ),
    "tool_use_any": RateRule(
        title="questions with a tool-using rollout", paper="D8, D9", addends=lambda g: (g.tool > 0, g.n > 0)
    ),
    "all_wrong_tool": RateRule(
        title="all wrong among tool-using siblings",
        paper="D2",
        addends=lambda g: (g.is_triggered, g.tool_scored > 0),
        logged_as="rollout/all_wrong_tool",
    ),
    "all_wrong_no_tool": RateRule(
        title="all wrong among siblings without a tool",
        paper="D2",
        addends=lambda g: (_no_tool_scored(g) > 0 and _no_tool_right(g) == 0, _no_tool_scored(g) > 0),
        logged_as="rollout/all_wrong_no_tool",
    ),
    "all_wrong_tool_post": RateRule(
        title="all wrong tool-using after resampling",
        paper="D6",
        addends=lambda g: (g.is_triggered and not g.continuations_right, g.tool_scored > 0),
        logged_as="rollout/all_wrong_tool_post",
    ),
    "restore_rate": RateRule(
        title="resampled questions that were recovered",
        paper="D5",
        addends=lambda g: (
            g.is_triggered and g.continuations_right > 0,
            g.is_triggered and g.continuations > 0,
        ),
        logged_as="resample/restore_rate",
    ),
    "restore_rate_all": RateRule(
        title="triggered questions that were recovered",
        paper="D5",
        addends=lambda g: (g.is_triggered and g.continuations_right > 0, g.is_triggered),
        logged_as="resample/restore_rate_all",
    ),
    "accuracy": RateRule(title="right rollouts", addends=lambda g: (g.right, g.scored)),
    "accuracy_tool": RateRule(title="right with a tool", addends=lambda g: (g.tool_right, g.tool_scored)),
    "accuracy_no_tool": RateRule(
        title="right without a tool", addends=lambda g: (_no_tool_right(g), _no_tool_scored(g))
    ),
    "accuracy_attempted": RateRule(
        title="right on questions where a tool was tried",
        paper="D9",
        addends=lambda g: (g.right, g.scored) if g.tool else (0, 0),
    ),
    "reward_mean": RateRule(
        title="reward", addends=lambda g: (g.reward, g.scored), is_share=False, logged_as="reward/mean"
    ),
    "reward_tool": RateRule(
        title="reward with a tool",
        addends=lambda g: (g.tool_reward, g.tool_scored),
        is_share=False,
        logged_as="reward/tool",
    ),
    "reward_no_tool": RateRule(
        title="reward without a tool",
        addends=lambda g: (g.reward - g.tool_reward, _no_tool_scored(g)),
        is_share=False,
        logged_as="reward/no_tool",
    ),
    "reward_resampled": RateRule(
        title="reward of continuations",
        addends=lambda g: (g.continuations_reward, g.continuations),
        is_share=False,
        logged_as="reward/resampled",
    ),
    "zero_signal": RateRule(
        title="groups without signal (one reward for all)",
        addends=lambda g: (g.has_no_signal, g.scored > 0),
        logged_as="groups/zero_signal",
    ),
    "all_right": RateRule(
        title="groups without a wrong rollout",
        addends=lambda g: (g.right == g.scored and g.scored > 0, g.scored > 0),
        logged_as="groups/all_right",
    ),
    "all_wrong": RateRule(
        title="groups without a right rollout",
        addends=lambda g: (g.right == 0 and g.scored > 0, g.scored > 0),
        logged_as="groups/all_wrong",
    ),
    "same_first_call": RateRule(
        title="triggered questions whose first calls are all the same",
        addends=lambda g: (not g.has_two_calls, 1) if g.is_triggered and g.tool > 1 else (0, 0),
    ),
    "calls_per_rollout": RateRule(
        title="answered calls per rollout",
        addends=lambda g: (g.answered, g.n),
        is_share=False,
        logged_as="tools/calls_per_rollout",
    ),
    "failure_rate": RateRule(
        title="answered calls that failed",
        addends=lambda g: (g.failed, g.answered),
        logged_as="tools/failure_rate",
    ),
    "never_ran": RateRule(
        title="calls that never ran", addends=lambda g: (g.calls_never_ran, g.answered + g.calls_never_ran)
    ),
    "calls_in_thinking": RateRule(
        title="rollouts with a call inside thinking",
        addends=lambda g: (g.in_thinking, g.thinking_known),
        logged_as="rollout/calls_in_thinking",
    ),
    "truncated": RateRule(title="rollouts that a limit ended", addends=lambda g: (g.truncated, g.truncation_known)),
    "response_length": RateRule(
        title="response length",
        addends=lambda g: (g.length, g.lengths_known),
        is_share=False,
        logged_as="length/response_mean",
    ),
    "turns": RateRule(title="turns", addends=lambda g: (g.turns, g.turns_known), is_share=False),
}
"""Every rate by name. Unless its title says otherwise it counts finished rollouts, not continuations."""
