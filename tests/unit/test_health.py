"""Each alarm: silent on a healthy run, raised by what it is about, gone when that is over."""

from __future__ import annotations

import math
from typing import Any

import pytest

from axpo.diagnostics.health import ALARM_NAMES, HealthMonitor, check, summarize_alarms

HEALTHY: dict[str, Any] = {
    "kind": "train",
    "engine/logprob_gap_mean": 1e-5,
    "tokens/trained": 5000,
    "sync/failed": 0,
    "sync/canary_gap": 1e-5,
    "train/entropy": 0.3,
    "train/kl": 0.2,
    "rollout/count": 128,
    "rollout/tool_use_rate": 0.3,
    "rollout/calls_in_thinking": 0.01,
    "rollout/all_wrong_tool": 0.4,
    "groups/tool_using": 12,
    "stop/answered": 0.95,
    "stop/turn_limit": 0.05,
    "stop/token_limit": 0.0,
    "stop/time_limit": 0.0,
    "images/count": 16,
    "images/downscaled": 0.1,
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


RAISING: list[tuple[dict[str, Any], str]] = [
    ({"engine__logprob_gap_mean": [0.05]}, "logprob_gap"),
    ({"train__loss": [math.nan]}, "non_finite"),
    ({"non_finite": [["train/kl"]]}, "non_finite"),
    ({"sync__failed": [1], "sync__canary_gap": [0.4]}, "canary_failed"),
    ({"rollout__tool_use_rate": 0.0}, "tool_never_called"),
    ({"rollout__calls_in_thinking": [0.1] * 5}, "calls_in_thinking"),
    ({"rollout__tool_use_rate": [0.04, 0.02, 0.0, 0.0, 0.0]}, "tool_use_vanishing"),
    ({"rollout__tool_use_rate": [0.1, 0.1, 0.1, 0.1, 0.1]}, "tool_use_falling"),
    ({"rollout__all_wrong_tool": [0.2] * 10 + [0.7] * 10}, "all_wrong_rising"),
    ({"tools__failures/timeout": [30, 30, 30]}, "tool_failures"),
    ({"tools__ask/failures": [6, 6, 6]}, "tool_failures"),
    ({"tools__ask/calls": [0] * 10}, "tool_unused"),
    ({"tools__look/cut": [10, 10, 10]}, "results_cut"),
    ({"tools__look/queue_seconds": [2.5, 2.5, 2.5]}, "tool_queue"),
    ({"rollout__dropped": [2]}, "rollouts_dropped"),
    ({"stop__answered": [0.6] * 5, "stop__token_limit": [0.4] * 5}, "truncation"),
    ({"groups__zero_signal": 0.95}, "no_signal"),
    ({"train__entropy": [0.05] * 5}, "entropy_collapse"),
    ({"train__kl": [0.9, 1.5, 1.5, 1.5, 0.9]}, "kl_runaway"),
    ({"images__downscaled": 1.0}, "image_downscaled"),
    ({"resample__used": 0}, "budget_unused"),
    ({"resample__restore_rate": 0.0}, "nothing_recovered"),
]


def test_every_alarm_has_a_case_here() -> None:
    assert {name for _, name in RAISING} == set(ALARM_NAMES)


def test_a_healthy_run_is_silent() -> None:
    assert names(history()) == []
    assert names([]) == []
    assert names([{"kind": "eval", "step": 3}]) == []


@pytest.mark.parametrize(("changes", "name"), RAISING)
def test_each_alarm_is_raised_alone_and_says_what_to_do(changes: dict[str, Any], name: str) -> None:
    steps = history(num_steps=20, **changes)
    [alarm] = check(steps)
    assert alarm.name == name
    assert alarm.step == 20
    assert alarm.text.endswith(".") and alarm.advice.endswith(".")


def test_a_run_that_calls_no_tool_has_one_alarm_about_it() -> None:
    silent = history(rollout__tool_use_rate=0.0, tools__calls=0, **{"tools__look/calls": 0, "tools__ask/calls": 0})
    assert names(silent) == ["tool_never_called"]


def test_alarms_end_with_their_cause() -> None:
    assert names(history(engine__logprob_gap_mean=[0.05, 1e-5])) == []
    assert names(history(rollout__dropped=[2, 0, 0, 0, 0])) == ["rollouts_dropped"]
    assert names(history(rollout__dropped=[2, 0, 0, 0, 0, 0])) == []
    assert names(history(resample__restore_rate=[0.0] * 9 + [0.1])) == []
    assert names(history(num_steps=20, train__kl=[3.0] * 5 + [0.2] * 3)) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rollout__tool_use_rate": 0.0, "rollout__count": 4}, "tool_never_called"),
        ({"rollout__calls_in_thinking": 1.0, "rollout__count": 16}, "calls_in_thinking"),
        ({"rollout__tool_use_rate": [0.0] * 5, "rollout__count": 16}, "tool_use_vanishing"),
        ({"rollout__tool_use_rate": [0.14] * 5, "rollout__count": 22}, "tool_use_falling"),
        ({"rollout__all_wrong_tool": [0.2] * 10 + [0.7] * 10, "groups__tool_using": 2}, "all_wrong_rising"),
        ({"tools__calls": 6, "tools__failures/timeout": 5, "tools__look/calls": 0}, "tool_failures"),
        ({"tools__look/queue_seconds": 9.0, "tools__look/calls": 3, "tools__look/failures": 0}, "tool_queue"),
        ({"stop__answered": 0.0, "rollout__count": 16}, "truncation"),
        ({"groups__zero_signal": 1.0, "rollout__count": 16}, "no_signal"),
        ({"engine__logprob_gap_mean": 0.05, "tokens__trained": 40}, "logprob_gap"),
        ({"resample__restore_rate": 0.0, "resample__used": 4}, "nothing_recovered"),
        ({"train__kl": [5.0]}, "kl_runaway"),
    ],
)
def test_too_little_evidence_is_no_alarm(changes: dict[str, Any], name: str) -> None:
    assert name not in names(history(num_steps=20, **changes))


@pytest.mark.parametrize(
    ("key", "raising", "between", "over", "name"),
    [
        ("engine__logprob_gap_mean", 0.05, 0.02, 0.01, "logprob_gap"),
        ("rollout__calls_in_thinking", 0.1, 0.04, 0.01, "calls_in_thinking"),
        ("rollout__tool_use_rate", 0.03, 0.06, 0.2, "tool_use_vanishing"),
        ("stop__answered", 0.7, 0.78, 0.9, "truncation"),
        ("groups__zero_signal", 0.95, 0.87, 0.5, "no_signal"),
        ("train__kl", 1.2, 0.8, 0.5, "kl_runaway"),
        ("train__entropy", 0.05, 0.07, 0.2, "entropy_collapse"),
        ("tools__failures/timeout", 20, 14, 0, "tool_failures"),
        ("tools__look/cut", 8, 5, 0, "results_cut"),
        ("tools__look/queue_seconds", 2.5, 1.8, 0.5, "tool_queue"),
    ],
)
def test_an_alarm_that_stands_goes_only_when_its_number_is_clearly_back(
    key: str, raising: float, between: float, over: float, name: str
) -> None:
    start, values = 8, [raising] * 12
    assert name in names(history(num_steps=start + 12, **{key: values}))
    assert name in names(history(num_steps=start + 24, **{key: [*values, *[between] * 12]}))
    assert name not in names(history(num_steps=start + 24, **{key: [*values, *[over] * 12]}))
    assert name not in names(history(num_steps=start + 12, **{key: [between] * 12})), "between alone raises nothing"


def test_an_alarm_has_a_metric_from_its_first_step_on_which_falls_back_to_zero() -> None:
    steps = history(rollout__dropped=[2, 0, 0, 0, 0, 0])
    monitor = HealthMonitor()
    found = []
    for step in steps:
        monitor.observe(step)
        found.append(monitor.metrics())
    assert found[5:] == [{}, *[{"alarm/rollouts_dropped": 1}] * 5, {"alarm/rollouts_dropped": 0}]
    assert HealthMonitor(steps).metrics() == found[-1], "a resumed run forgets what was raised"


def test_fine_tuning_may_become_certain() -> None:
    steps = [{"kind": "train", "step": n, "train/entropy": 0.5 if n < 6 else 1e-4} for n in range(20)]
    assert names(steps) == []


def test_a_run_without_tools_is_not_told_that_it_calls_none() -> None:
    steps = history(rollout__tool_use_rate=0.0)
    without = [{key: value for key, value in step.items() if not key.startswith("tools/")} for step in steps]
    assert names(without) == []


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
    gaps = [1e-5, 0.05, 0.05, 1e-5, 0.05, 1e-5]  # of steps 7 to 12: 8, 9 and 11
    [span] = summarize_alarms(history(engine__logprob_gap_mean=gaps))
    assert (span.alarm.name, span.first_step, span.last_step, span.num_steps) == ("logprob_gap", 8, 11, 3)
