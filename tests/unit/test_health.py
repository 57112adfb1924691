"""Each alarm: silent on a healthy run, raised by what it is about, gone when that is over."""

from __future__ import annotations

import math
from typing import Any

import pytest

from axpo.diagnostics.health import check, summarize_alarms

HEALTHY: dict[str, Any] = {
    "kind": "train",
    "engine/logprob_gap_mean": 1e-5,
    "rollout/tool_use_rate": 0.3,
    "rollout/dropped": 0,
    "groups/zero_signal": 0.4,
    "tools/calls": 40,
    "tools/failures/timeout": 0,
    "tools/failures/bad_arguments": 4,
    "tools/look/calls": 30,
    "tools/look/failures": 4,
    "tools/look/cut": 1,
    "tools/look/seconds": 2.0,
    "tools/look/queue_seconds": 1.5,
    "tools/ask/calls": 10,
    "tools/ask/failures": 0,
    "resample/budget": 32,
    "resample/used": 32,
    "resample/triggered": 9,
    "resample/restore_rate": 0.2,
}


def history(num_steps: int = 12, **changes: Any) -> list[dict[str, Any]]:
    """Steps 1.. with `changes`; a list gives the last steps' values in turn."""
    steps = [{**HEALTHY, "step": step + 1} for step in range(num_steps)]
    for key, value in changes.items():
        values = value if isinstance(value, list) else [value] * num_steps
        for step, item in zip(steps[-len(values) :], values, strict=True):
            step[key.replace("__", "/")] = item
    return steps


def names(steps: list[dict[str, Any]], **options: Any) -> list[str]:
    return [alarm.name for alarm in check(steps, **options)]


def test_a_healthy_run_is_silent() -> None:
    assert names(history()) == []
    assert names([]) == []
    assert names([{"kind": "eval", "step": 3}]) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"engine__logprob_gap_mean": [0.05]}, "logprob_gap"),
        ({"train__loss": [math.nan]}, "non_finite"),
        ({"non_finite": [["train/kl"]]}, "non_finite"),
        ({"rollout__tool_use_rate": 0.0}, "tool_never_called"),
        ({"rollout__tool_use_rate": [0.04, 0.02, 0.0, 0.0, 0.0]}, "tool_use_vanishing"),
        ({"tools__failures/timeout": [30, 30, 30]}, "tool_failures"),
        ({"tools__ask/failures": [6, 6, 6]}, "tool_failures"),
        ({"tools__ask/calls": [0] * 10}, "tool_unused"),
        ({"tools__look/cut": [10, 10, 10]}, "results_cut"),
        ({"tools__look/queue_seconds": [2.5]}, "tool_queue"),
        ({"rollout__dropped": [2]}, "rollouts_dropped"),
        ({"groups__zero_signal": 0.95}, "no_signal"),
        ({"resample__used": 0}, "budget_unused"),
        ({"resample__restore_rate": 0.0}, "nothing_recovered"),
    ],
)
def test_each_alarm_is_raised_alone_and_says_what_to_do(changes: dict[str, Any], name: str) -> None:
    steps = history(**changes)
    [alarm] = check(steps)
    assert alarm.name == name
    assert alarm.step == 12
    assert alarm.text.endswith(".") and alarm.advice.endswith(".")


def test_a_run_that_calls_no_tool_has_one_alarm_about_it() -> None:
    silent = history(rollout__tool_use_rate=0.0, tools__calls=0, **{"tools__look/calls": 0, "tools__ask/calls": 0})
    assert names(silent) == ["tool_never_called"]


def test_alarms_end_with_their_cause() -> None:
    assert names(history(engine__logprob_gap_mean=[0.05, 1e-5])) == []
    assert names(history(rollout__dropped=[2, 0])) == []
    assert names(history(resample__restore_rate=[0.0] * 9 + [0.1])) == []


def test_resampling_that_is_not_needed_or_switched_off_is_no_alarm() -> None:
    assert names(history(resample__used=0, resample__triggered=0, resample__restore_rate=None)) == []
    assert names(history(resample__used=0, resample__budget=0)) == []


def test_the_text_names_the_worst_failure_and_its_share() -> None:
    # 3 steps x 40 calls = 120; 3 x (30 + 4) = 102 failed
    [alarm] = check(history(tools__calls=40, **{"tools__failures/timeout": [30, 30, 30]}))
    assert "85%" in alarm.text and "120" in alarm.text and "timeout" in alarm.text


def test_the_gap_limit_is_the_callers() -> None:
    assert names(history(), max_logprob_gap=1e-6) == ["logprob_gap"]


def test_a_summary_tells_when_an_alarm_stood() -> None:
    steps = history(rollout__dropped=[0, 1, 1, 0, 1, 0])  # of steps 7 to 12: 8, 9 and 11
    [span] = summarize_alarms(steps)
    assert (span.alarm.name, span.first_step, span.last_step, span.num_steps) == ("rollouts_dropped", 8, 11, 3)
