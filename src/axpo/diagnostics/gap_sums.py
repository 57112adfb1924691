"""Rollouts one at a time -> sums per group, per step, per dump. Memory does not grow with the length of a dump.

A group is what one file holds of one question at one step. It is a row of counters that is closed (added to its step)
when the file ends, or when `MAX_OPEN_GROUPS` are open and it is among the half that was touched longest ago.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from axpo.diagnostics.importers.problems import plain
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout
from axpo.diagnostics.intervals import PairSums, RatioSums
from axpo.diagnostics.recovery import SuccessSums
from axpo.types import FailureKind

MAX_OPEN_GROUPS = 200_000
MAX_STEPS = 5_000
"""Steps with numbers of their own; what comes later counts in the totals only."""
MAX_TOOLS = 64
"""Names of tools that are kept apart: a policy may invent any number."""
OTHER_TOOLS = "(other tools)"
MAX_BIN = 256
"""Group sizes, turns and tool-using siblings above count as this many in histograms."""
BINS_PER_OCTAVE = 4

Addends = tuple[float, float]


class Group:
    """Counters of the rollouts of one question at one step."""

    __slots__ = (
        "answered",
        "calls_never_ran",
        "candidates",
        "continuations",
        "continuations_reward",
        "continuations_right",
        "failed",
        "first_call",
        "has_two_calls",
        "in_thinking",
        "last_row",
        "length",
        "lengths_known",
        "max_reward",
        "min_reward",
        "n",
        "reward",
        "right",
        "scored",
        "step",
        "thinking_known",
        "tool",
        "tool_reward",
        "tool_right",
        "tool_scored",
        "tools",
        "truncated",
        "truncation_known",
        "turns",
        "turns_known",
    )

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.n = self.scored = self.right = self.tool = self.tool_scored = self.tool_right = 0
        self.answered = self.failed = self.calls_never_ran = self.candidates = 0
        self.continuations = self.continuations_right = 0
        self.in_thinking = self.thinking_known = self.truncated = self.truncation_known = 0
        self.length = self.lengths_known = self.turns = self.turns_known = self.last_row = 0
        self.reward = self.tool_reward = self.continuations_reward = 0.0
        self.min_reward, self.max_reward = math.inf, -math.inf
        self.first_call: int | None = None
        self.has_two_calls = False  # two tool-using siblings, whose first calls differ
        self.tools: dict[str, list[int]] | None = None  # calls, failures, rollouts, scored, right

    @property
    def is_triggered(self) -> bool:
        """Tool-using siblings exist and none of those that were scored is right."""
        return self.tool_scored > 0 and self.tool_right == 0

    @property
    def has_no_signal(self) -> bool:
        """One reward for all: advantage zero."""
        return self.scored > 0 and self.min_reward == self.max_reward


# -- what is counted --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRule:
    """A rate: what a group adds to its numerator and denominator."""

    title: str
    addends: Callable[[Group], Addends]
    is_share: bool = True
    paper: str = ""
    """D1 to D10, where it is one of the paper's quantities."""
    logged_as: str = ""
    """The key under which training logs the same number, see `docs/metrics.md`."""


def _no_tool_scored(group: Group) -> int:
    return group.scored - group.tool_scored


def _no_tool_right(group: Group) -> int:
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
        title="rollouts with a call inside thinking", addends=lambda g: (g.in_thinking, g.thinking_known)
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
"""Every rate by name. Unless its title says otherwise it counts rollouts, not continuations."""


@dataclass(slots=True)
class ToolSums:
    """What became of the calls of one tool."""

    calls: int = 0
    """Answered ones."""
    rollouts: int = 0
    """That called it at least once."""
    failures: Counter[FailureKind] = field(default_factory=Counter[FailureKind])
    failure_rate: RatioSums = field(default_factory=RatioSums)
    accuracy: RatioSums = field(default_factory=RatioSums)
    """Of the rollouts that called it."""

    def merge(self, other: ToolSums) -> None:
        """The calls of `other` too."""
        self.calls += other.calls
        self.rollouts += other.rollouts
        self.failures.update(other.failures)
        self.failure_rate.merge(other.failure_rate)
        self.accuracy.merge(other.accuracy)


# -- one step ---------------------------------------------------------------------------------------------------------


class StepSums:
    """Everything about one step of one dump."""

    def __init__(self) -> None:
        self.rates = {name: RatioSums() for name in RATES}
        self.gap = PairSums.empty()
        self.successes = SuccessSums()
        self.need: Counter[tuple[int, int]] = Counter()
        self.counts: Counter[str] = Counter()
        self.failures: Counter[FailureKind] = Counter()
        self.tools: dict[str, ToolSums] = {}
        self.group_sizes: Counter[int] = Counter()
        self.tool_counts: Counter[int] = Counter()
        self.length_bins: Counter[int] = Counter()
        self.turn_counts: Counter[int] = Counter()
        self.max_length = 0

    def merge(self, other: StepSums) -> None:
        """Add another step."""
        for name, sums in self.rates.items():
            sums.merge(other.rates[name])
        self.gap.merge(other.gap)
        self.successes.merge(other.successes)
        self.need.update(other.need)
        self.counts.update(other.counts)
        self.failures.update(other.failures)
        self.group_sizes.update(other.group_sizes)
        self.tool_counts.update(other.tool_counts)
        self.length_bins.update(other.length_bins)
        self.turn_counts.update(other.turn_counts)
        for name, tool in other.tools.items():
            self.tools.setdefault(name, ToolSums()).merge(tool)
        self.max_length = max(self.max_length, other.max_length)

    def add_group(self, group: Group) -> None:
        """A closed group."""
        for name, rule in RATES.items():
            numerator, denominator = rule.addends(group)
            if denominator:
                self.rates[name].add(numerator, denominator)
        counts = self.counts
        if not group.n:  # continuations whose siblings are not there
            counts["orphaned_continuations"] += group.continuations
            return
        counts["groups"] += 1
        counts["rollouts"] += group.n
        counts["scored"] += group.scored
        counts["continuations"] += group.continuations
        self.group_sizes[min(group.n, MAX_BIN)] += 1
        self.tool_counts[min(group.tool, MAX_BIN)] += 1
        if group.has_no_signal:
            counts[_why_no_signal(group)] += 1
        if group.tool_scored:
            self.successes.add(group.tool_right, group.tool_scored)
        no_tool = _no_tool_scored(group)
        self.gap.add(
            (group.is_triggered, group.tool_scored > 0), (no_tool > 0 and _no_tool_right(group) == 0, no_tool > 0)
        )
        if group.is_triggered:
            counts["triggered"] += 1
            counts["candidates"] += group.candidates
            self.need[group.tool_scored, group.candidates] += 1
        for name, (calls, failed, _, scored, right) in (group.tools or {}).items():
            tool = self.tools[name]
            if calls:
                tool.failure_rate.add(failed, calls)
            if scored:
                tool.accuracy.add(right, scored)


def _why_no_signal(group: Group) -> str:
    if group.scored == 1:
        return "no_signal_one_sample"
    if group.right == group.scored:
        return "no_signal_all_right"
    return "no_signal_all_wrong"


# -- one dump ---------------------------------------------------------------------------------------------------------


class DumpSums:
    """A dump, rollout after rollout. Call `end_file` after each of its files."""

    def __init__(self, *, correct_at: float = 1.0) -> None:
        self._correct_at = correct_at
        self._open: dict[int, Group] = {}
        self._names: dict[str, str] = {}
        self._num_rows = 0
        self.steps: dict[int | None, StepSums] = {}
        self.later = StepSums()
        self.num_closed_early = 0

    def add(self, seen: SeenRollout) -> None:
        """One rollout or continuation."""
        self._num_rows += 1
        key = hash((seen.step, seen.question))
        group = self._open.get(key)
        if group is None:
            if len(self._open) >= MAX_OPEN_GROUPS:
                self._close_oldest()
            group = self._open[key] = Group(seen.step)
        group.last_row = self._num_rows
        reward = seen.reward
        is_right = reward is not None and reward >= self._correct_at
        if seen.is_continuation:
            if reward is not None:
                group.continuations += 1
                group.continuations_right += is_right
                group.continuations_reward += reward
            return
        group.n += 1
        if reward is not None:
            group.scored += 1
            group.right += is_right
            group.reward += reward
            group.min_reward = min(group.min_reward, reward)
            group.max_reward = max(group.max_reward, reward)
        step = self._step(seen.step)
        if seen.uses_tool:
            self._add_tool_use(group, step, seen, reward, is_right)
        if seen.num_calls_in_thinking is not None:
            group.thinking_known += 1
            group.in_thinking += seen.num_calls_in_thinking > 0
        if seen.is_truncated is not None:
            group.truncation_known += 1
            group.truncated += seen.is_truncated
        if seen.length is not None:
            group.lengths_known += 1
            group.length += seen.length
            step.length_bins[length_bin(seen.length)] += 1
            step.max_length = max(step.max_length, seen.length)
        if seen.num_turns is not None:
            group.turns_known += 1
            group.turns += seen.num_turns
            step.turn_counts[min(seen.num_turns, MAX_BIN)] += 1

    def end_file(self) -> None:
        """Close the groups that are open: the next file's are others."""
        for group in self._open.values():
            self._step(group.step).add_group(group)
        self._open.clear()

    def total(self) -> StepSums:
        """All steps together."""
        total = StepSums()
        for step in (*self.steps.values(), self.later):
            total.merge(step)
        return total

    def _step(self, step: int | None) -> StepSums:
        sums = self.steps.get(step)
        if sums is None:
            if len(self.steps) >= MAX_STEPS:
                return self.later
            sums = self.steps[step] = StepSums()
        return sums

    def _close_oldest(self) -> None:
        by_age = sorted(self._open, key=lambda key: self._open[key].last_row)
        for key in by_age[: len(by_age) // 2]:
            group = self._open.pop(key)
            self._step(group.step).add_group(group)
            self.num_closed_early += 1

    def _add_tool_use(
        self, group: Group, step: StepSums, seen: SeenRollout, reward: float | None, is_right: bool
    ) -> None:
        group.tool += 1
        group.candidates += seen.is_resumable
        if reward is not None:
            group.tool_scored += 1
            group.tool_right += is_right
            group.tool_reward += reward
        if seen.calls:
            first = hash((seen.calls[0].tool, seen.calls[0].arguments))
            group.has_two_calls = group.has_two_calls or group.first_call not in (None, first)
            group.first_call = first
            self._add_calls(group, step, seen.calls, is_scored=reward is not None, is_right=is_right)

    def _add_calls(
        self, group: Group, step: StepSums, calls: tuple[SeenCall, ...], *, is_scored: bool, is_right: bool
    ) -> None:
        users: set[str] = set()
        for call in calls:
            if not call.is_answered:
                group.calls_never_ran += 1
                continue
            group.answered += 1
            if call.failure is not None:
                group.failed += 1
                step.failures[call.failure] += 1
            if call.tool is None:
                continue
            name = self._names.get(call.tool) or self._name(call.tool)
            tool = step.tools.get(name)
            if tool is None:
                tool = step.tools[name] = ToolSums()
            tool.calls += 1
            if call.failure is not None:
                tool.failures[call.failure] += 1
            if group.tools is None:
                group.tools = {}
            numbers = group.tools.setdefault(name, [0, 0, 0, 0, 0])
            numbers[0] += 1
            numbers[1] += call.failure is not None
            if name not in users:
                users.add(name)
                tool.rollouts += 1
                numbers[2] += 1
                numbers[3] += is_scored
                numbers[4] += is_right

    def _name(self, tool: str) -> str:
        if len(self._names) >= MAX_TOOLS:
            return OTHER_TOOLS
        return self._names.setdefault(tool[:1000], plain(tool, 64))


def length_bin(length: int) -> int:
    """Quarter octaves: a bin spans 19 %."""
    return int(BINS_PER_OCTAVE * math.log2(length)) if length > 0 else -1


def quantile(bins: Mapping[int, int], share: float, *, longest: int) -> float | None:
    """The length below which a share of rollouts lies, to the middle of its bin: within 9 %."""
    total = sum(bins.values())
    if not total:
        return None
    seen = 0
    for position in sorted(bins):
        seen += bins[position]
        if seen >= share * total:
            return 0.0 if position < 0 else min(float(longest), round(2 ** ((position + 0.5) / BINS_PER_OCTAVE), 1))
    return None
