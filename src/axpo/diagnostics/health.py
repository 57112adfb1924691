"""Metrics of a run -> alarms: what is wrong, since when, what to do. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

WINDOW_STEPS = 10
"""Training steps an alarm about a trend looks back."""

MAX_LOGPROB_GAP = 0.03
"""nats, mean |engine - trainer|: what bfloat16 may cost. In float32 a healthy gap is below 1e-4."""

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something to look at. `name` stays the same from step to step."""

    name: str
    level: Literal["warning", "error"]
    step: int
    text: str
    advice: str


def check(history: History, *, max_logprob_gap: float = MAX_LOGPROB_GAP) -> tuple[Alarm, ...]:
    """Alarms standing after the last training step of `history` (records of `metrics.jsonl`, oldest first)."""
    steps = [record for record in history if record.get("kind", "train") == "train"]
    if not steps:
        return ()
    rules: tuple[Callable[[History], Alarm | None], ...] = (
        _check_finite,
        lambda steps: _check_logprob_gap(steps, max_logprob_gap),
        _check_tool_use,
        _check_tool_failures,
        _check_unused_tools,
        _check_cut_results,
        _check_queues,
        _check_dropped,
        _check_signal,
        _check_resampling,
    )
    return tuple(alarm for rule in rules if (alarm := rule(steps)) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSpan:
    """An alarm over a whole run: its latest wording, the steps it stood at first and last, and how many of them."""

    alarm: Alarm
    first_step: int
    last_step: int
    num_steps: int


def summarize_alarms(history: History, *, max_logprob_gap: float = MAX_LOGPROB_GAP) -> tuple[AlarmSpan, ...]:
    """Every alarm that stood at any step of a run, in the order of first appearance."""
    steps = [record for record in history if record.get("kind", "train") == "train"]
    spans: dict[str, AlarmSpan] = {}
    for stop in range(1, len(steps) + 1):
        for alarm in check(steps[:stop], max_logprob_gap=max_logprob_gap):
            known = spans.get(alarm.name)
            first, count = (known.first_step, known.num_steps) if known else (alarm.step, 0)
            spans[alarm.name] = AlarmSpan(alarm=alarm, first_step=first, last_step=alarm.step, num_steps=count + 1)
    return tuple(spans.values())


# -- rules ------------------------------------------------------------------------------------------------------------


def _check_finite(steps: History) -> Alarm | None:
    last = steps[-1]
    broken = [key for key, value in last.items() if isinstance(value, float) and not math.isfinite(value)]
    broken += list(last.get("non_finite", ()))
    if not broken:
        return None
    return _alarm(
        last,
        "non_finite",
        level="error",
        text=f"Not a finite number: {', '.join(sorted(broken))}.",
        advice="Stop the run. Lower the learning rate, or compute in float32; resume from an earlier checkpoint.",
    )


def _check_logprob_gap(steps: History, max_gap: float) -> Alarm | None:
    gap = steps[-1].get("engine/logprob_gap_mean")
    if gap is None or gap <= max_gap:
        return None
    return _alarm(
        steps[-1],
        "logprob_gap",
        level="error",
        text=f"Engine and trainer differ by {gap:.2g} nats per token on average (limit {max_gap:g}).",
        advice="The engine samples from another policy than the one that learns: compare dtype, image preprocessing "
        "and attention of both, and look whether the engine took the last weights.",
    )


def _check_tool_use(steps: History) -> Alarm | None:
    rates = [rate for step in steps if (rate := step.get("rollout/tool_use_rate")) is not None]
    recent = rates[-5:]
    if len(rates) < 3 or sum(recent) / len(recent) >= 0.05:
        return None
    if max(rates) == 0:
        return _alarm(
            steps[-1],
            "tool_never_called",
            level="error",
            text=f"No rollout called a tool in {len(rates)} steps.",
            advice="Nothing can be resampled without a tool call: check that the prompt lists the tools and that the "
            "starting checkpoint calls them (fine-tune it on demonstrations first).",
        )
    return _alarm(
        steps[-1],
        "tool_use_vanishing",
        level="error",
        text=f"Tool use fell from {max(rates):.0%} to {sum(recent) / len(recent):.1%} of rollouts.",
        advice="Thinking drives acting out. Tool use at zero does not come back by itself: resume from an earlier "
        "step with `algorithm.resample_budget_frac` at 0.25 or more.",
    )


def _check_tool_failures(steps: History) -> Alarm | None:
    recent = steps[-3:]
    totals = {name: _of_tool(recent, name) for name in ("", *_tool_names(steps))}
    failing = [name for name, (calls, failures) in totals.items() if calls >= 10 and failures > 0.5 * calls]
    if not failing:
        return None
    kinds = {key: sum(step.get(key) or 0 for step in recent) for key in steps[-1] if key.startswith("tools/failures/")}
    worst = max(kinds, key=lambda key: kinds[key])
    shares = [
        f"{totals[name][1] / totals[name][0]:.0%} of {totals[name][0]} {name or 'tool'} calls" for name in failing
    ]
    return _alarm(
        steps[-1],
        "tool_failures",
        level="error",
        text=f"{', '.join(shares)} of the last steps failed, most failures: {worst.rpartition('/')[2]}.",
        advice="Read a few failing calls in the rollouts file. Malformed calls: the demonstrations do not match the "
        "template. Bad arguments: the tool's schema is unclear.",
    )


def _check_unused_tools(steps: History) -> Alarm | None:
    recent = steps[-WINDOW_STEPS:]
    names = _tool_names(steps)
    unused = [name for name in names if not any(step.get(f"tools/{name}/calls") for step in recent)]
    if len(recent) < WINDOW_STEPS or not unused or len(unused) == len(names):  # no tool at all is another alarm
        return None
    return _alarm(
        steps[-1],
        "tool_unused",
        level="warning",
        text=f"No call of {', '.join(unused)} in {WINDOW_STEPS} steps, while other tools are called.",
        advice="A tool that is never called never improves. Is there a question that needs it? Do the demonstrations "
        "show it? Otherwise take it out of `data.tools`: it costs tokens in every prompt.",
    )


def _check_cut_results(steps: History) -> Alarm | None:
    recent = steps[-3:]
    cut = {name: sum(step.get(f"tools/{name}/cut") or 0 for step in recent) for name in _tool_names(steps)}
    often = [name for name, num in cut.items() if num >= 5 and num > 0.2 * _of_tool(recent, name)[0]]
    if not often:
        return None
    return _alarm(
        steps[-1],
        "results_cut",
        level="warning",
        text=f"More than a fifth of the results of {', '.join(often)} were too large and lost a part.",
        advice="The model may miss what it asked for: raise `data.tool_limits.TOOL.max_result_tokens` (or the bounds "
        "on images), or make the tool answer more briefly.",
    )


def _check_queues(steps: History) -> Alarm | None:
    last = steps[-1]
    waiting = {
        name: last.get(f"tools/{name}/queue_seconds") or 0
        for name in _tool_names(steps)
        if (last.get(f"tools/{name}/queue_seconds") or 0) > max(1.0, last.get(f"tools/{name}/seconds") or 0)
    }
    if not waiting:
        return None
    return _alarm(
        last,
        "tool_queue",
        level="warning",
        text=f"Calls wait longer than they run: {', '.join(f'{name} {s:.1f} s' for name, s in waiting.items())}.",
        advice="Raise `data.tool_limits.TOOL.max_concurrent` if the machine or the service can take it. A wait after "
        "faults of ours counts too: see the warnings on standard error.",
    )


def _tool_names(steps: History) -> tuple[str, ...]:
    """Tools that any step logged."""
    keys = {
        key for step in steps[-WINDOW_STEPS:] for key in step if key.startswith("tools/") and key.endswith("/calls")
    }
    return tuple(sorted(key.split("/")[1] for key in keys if key.count("/") == 2))


def _of_tool(steps: History, name: str) -> tuple[int, int]:
    """Calls and failures of a tool, faults of ours among them; of all calls with a result when `name` is empty."""
    kinds = [key for key in steps[-1] if key.startswith("tools/failures/")]
    calls = [f"tools/{name}/calls" if name else "tools/calls"]
    failures = [f"tools/{name}/failures"] if name else kinds
    if name:  # a fault of ours is no result of a call
        calls, failures = ([*keys, f"tools/{name}/faults"] for keys in (calls, failures))
    num_calls, num_failures = (sum(step.get(key) or 0 for step in steps for key in keys) for keys in (calls, failures))
    return num_calls, num_failures


def _check_dropped(steps: History) -> Alarm | None:
    dropped = steps[-1].get("rollout/dropped") or 0
    if not dropped:
        return None
    return _alarm(
        steps[-1],
        "rollouts_dropped",
        level="warning",
        text=f"{dropped} rollouts of this step were dropped for faults of ours.",
        advice="They cost no reward but shrink their groups. Each fault is a warning on standard error; raise "
        "`rollout.time_limit_s` when the engine did not answer in time, else `rollout.max_fault_retries`.",
    )


def _check_signal(steps: History) -> Alarm | None:
    shares = [share for step in steps[-WINDOW_STEPS:] if (share := step.get("groups/zero_signal")) is not None]
    if len(shares) < 3 or sum(shares) / len(shares) <= 0.9:
        return None
    return _alarm(
        steps[-1],
        "no_signal",
        level="warning",
        text=f"In {sum(shares) / len(shares):.0%} of the groups all siblings got the same reward: no signal.",
        advice="Questions are too easy or too hard for this policy, or it has become deterministic. Change the "
        "difficulty of the data, or sample more siblings (`rollout.group_size`).",
    )


def _check_resampling(steps: History) -> Alarm | None:
    recent = [step for step in steps[-WINDOW_STEPS:] if step.get("resample/budget")]
    if len(recent) < WINDOW_STEPS:
        return None
    used, triggered = (sum(step.get(f"resample/{name}") or 0 for step in recent) for name in ("used", "triggered"))
    if used == 0 and triggered == 0:  # calls work, or there are none: the latter is another alarm
        return None
    if used == 0:
        return _alarm(
            steps[-1],
            "budget_unused",
            level="warning",
            text=f"{triggered} questions of the last {WINDOW_STEPS} steps were triggered, none was resampled.",
            advice="A prefix needs `algorithm.num_continuations` continuations at once: raise "
            "`algorithm.resample_budget_frac` or sample more questions a step.",
        )
    if any(step.get("resample/restore_rate") for step in recent):
        return None
    return _alarm(
        steps[-1],
        "nothing_recovered",
        level="warning",
        text=f"None of {used} continuations of the last {WINDOW_STEPS} steps was right.",
        advice="The tool does not help on these questions, or the prefixes are beyond repair: read a few "
        "continuations; raise `algorithm.num_continuations`, or fine-tune on better calls.",
    )


def _alarm(step: Mapping[str, Any], name: str, *, level: Literal["warning", "error"], text: str, advice: str) -> Alarm:
    return Alarm(name=name, level=level, step=int(step.get("step", 0)), text=text, advice=advice)
