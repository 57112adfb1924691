"""Rollouts one at a time -> sums per group, per step, per dump. Memory does not grow with the length of a dump.

A group is what one file holds of one question at one step. It is a row of counters that is closed (added to its step)
when the file ends, or when `MAX_OPEN_GROUPS` are open and it is among the half that was touched longest ago.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from axpo.diagnostics.importers.problems import plain
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout
from axpo.diagnostics.recovery import SuccessSums
from axpo.measures.rates import RATES, GroupCounts
from axpo.measures.sums import PairSums, RatioSums
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


@dataclass(slots=True, kw_only=True)
class Group(GroupCounts):
    """Counters of the rollouts of one question at one step."""

    step: int | None
    candidates: int = 0
    """Prefixes that could be resampled."""
    last_row: int = 0
    first_call: int | None = None
    """Hash of the first call of the last tool-using sibling."""
    tools: dict[str, list[int]] | None = None
    """Tool -> calls, failures, rollouts, scored rollouts, right rollouts."""


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
        self.gap = PairSums()
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
            self.rates[name].add(*rule.addends(group))
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
        self.gap.add(RATES["all_wrong_tool"].addends(group), RATES["all_wrong_no_tool"].addends(group))
        if group.is_triggered:
            counts["triggered"] += 1
            counts["candidates"] += group.candidates
            self.need[group.tool_scored, group.candidates] += 1
        for name, (calls, failed, _, scored, right) in (group.tools or {}).items():
            tool = self.tools[name]
            tool.failure_rate.add(failed, calls)
            tool.accuracy.add(right, scored)


def _why_no_signal(group: GroupCounts) -> str:
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
            group = self._open[key] = Group(step=seen.step)
        group.last_row = self._num_rows
        reward = seen.reward
        is_right = reward is not None and reward >= self._correct_at
        if seen.is_continuation:
            if reward is not None:
                group.add_continuation(reward, is_right=is_right)
            return
        group.n += 1
        if reward is not None:
            group.add_reward(reward, is_right=is_right, uses_tool=seen.uses_tool)
        step = self._step(seen.step)
        if seen.uses_tool:
            self._add_tool_use(group, step, seen, is_right)
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

    def _add_tool_use(self, group: Group, step: StepSums, seen: SeenRollout, is_right: bool) -> None:
        group.tool += 1
        group.candidates += seen.is_resumable
        if seen.calls:
            first = hash((seen.calls[0].tool, seen.calls[0].arguments))
            group.has_two_calls = group.has_two_calls or group.first_call not in (None, first)
            group.first_call = first
            self._add_calls(group, step, seen.calls, is_scored=seen.reward is not None, is_right=is_right)

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
