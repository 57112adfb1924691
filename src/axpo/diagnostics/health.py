"""Metrics of a run -> alarms: what is wrong, since when, what to do. Pure; the rules are in `alarm_rules`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from axpo.diagnostics.alarm_rules import RULES, Past

MAX_LOGPROB_GAP = 0.03
"""nats, mean |engine - trainer|: what bfloat16 may cost. In float32 a healthy gap is below 1e-4."""

ALARM_NAMES = tuple(RULES)
"""Every alarm there is (`docs/metrics.md`)."""

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something to look at. `name` stays the same from step to step."""

    name: str
    level: Literal["warning", "error"]
    step: int
    text: str
    advice: str


class HealthMonitor:
    """Follows a run step by step. What it says is a function of the records it was given, so a resumed run's monitor
    that is given the earlier ones says what an uninterrupted run's would.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = (), *, max_logprob_gap: float = MAX_LOGPROB_GAP) -> None:
        """`history`: records of `metrics.jsonl`, oldest first; others than of training steps are passed over."""
        self._past = Past(max_logprob_gap=max_logprob_gap)
        self._standing: dict[str, Alarm] = {}
        self._seen: dict[str, None] = {}
        for record in history:
            if record.get("kind", "train") == "train":
                self.observe(record)

    @property
    def standing(self) -> tuple[Alarm, ...]:
        """Alarms that stand after the last step."""
        return tuple(self._standing.values())

    def observe(self, record: Mapping[str, Any]) -> tuple[Alarm, ...]:
        """Count a training step (its metrics and `step`); returns the alarms that stand after it."""
        self._past.add(record)
        step = int(record.get("step", self._past.num_steps))
        found = {name: rule(self._past, name in self._standing) for name, rule in RULES.items()}
        self._standing = {
            name: Alarm(name=name, level=finding.level, step=step, text=finding.text, advice=finding.advice)
            for name, finding in found.items()
            if finding is not None
        }
        self._seen |= dict.fromkeys(self._standing)
        return self.standing

    def metrics(self) -> dict[str, int]:
        """`alarm/NAME` of every alarm that was raised so far: 1 while it stands, then 0."""
        return {f"alarm/{name}": int(name in self._standing) for name in self._seen}


def check(history: History, *, max_logprob_gap: float = MAX_LOGPROB_GAP) -> tuple[Alarm, ...]:
    """Alarms standing after the last training step of `history` (records of `metrics.jsonl`, oldest first)."""
    return HealthMonitor(history, max_logprob_gap=max_logprob_gap).standing


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSpan:
    """An alarm over a whole run: its latest wording, the steps it stood at first and last, and how many of them."""

    alarm: Alarm
    first_step: int
    last_step: int
    num_steps: int


def summarize_alarms(history: History, *, max_logprob_gap: float = MAX_LOGPROB_GAP) -> tuple[AlarmSpan, ...]:
    """Every alarm that stood at any step of a run, in the order of first appearance."""
    monitor = HealthMonitor(max_logprob_gap=max_logprob_gap)
    spans: dict[str, AlarmSpan] = {}
    for record in history:
        if record.get("kind", "train") != "train":
            continue
        for alarm in monitor.observe(record):
            known = spans.get(alarm.name)
            first, count = (known.first_step, known.num_steps) if known else (alarm.step, 0)
            spans[alarm.name] = AlarmSpan(alarm=alarm, first_step=first, last_step=alarm.step, num_steps=count + 1)
    return tuple(spans.values())
