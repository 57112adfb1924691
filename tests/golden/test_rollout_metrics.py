"""The logged numbers of one step, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axpo.algo import plan_resampling
from axpo.algo.example import build_continuations, build_group, build_rollout
from axpo.diagnostics.metrics import rollout_metrics
from axpo.types import (
    Content,
    FailureKind,
    Message,
    Problem,
    Rollout,
    RolloutGroup,
    StopReason,
    ToolCall,
    ToolFailure,
    ToolResult,
)

EMPTY_PLAN = plan_resampling([], budget_frac=0.25, num_continuations=2)


def zoom(box: list[float] | str, *, img_idx: float = 0, failure: FailureKind | None = None) -> ToolResult:
    call = ToolCall(id="c", name="image_zoom_in", arguments={"bbox_2d": box, "img_idx": img_idx})
    if failure is not None:
        return ToolResult(call=call, failure=ToolFailure(kind=failure, message="no"), wall_time_s=1.0)
    return ToolResult(call=call, content=(Content(text="crop"),), wall_time_s=3.0)


def with_results(rollout: Rollout, *results: ToolResult) -> Rollout:
    return replace(rollout, tool_results=results)


def problem(problem_id: str, target: list[float] | None) -> Problem:
    metadata = {} if target is None else {"target_box": target}
    return Problem(
        id=problem_id, messages=(Message(role="user", content=(Content(text="?"),)),), answer="A", metadata=metadata
    )


def test_the_gap_before_and_after_resampling() -> None:
    # 4 questions x 4 siblings:
    #   q0  tool 0 0     direct 1 0   triggered, resampled, recovered
    #   q1  tool 0       direct 0 0 0 triggered, resampled, not recovered
    #   q2  tool 1 0 0   direct 0     a call is right
    #   q3  no tool      direct 1 1 1 1
    groups = [
        build_group("q0", tool=[0, 0], no_tool=[1, 0]),
        build_group("q1", tool=[0], no_tool=[0, 0, 0]),
        build_group("q2", tool=[1, 0, 0], no_tool=[0]),
        build_group("q3", no_tool=[1, 1, 1, 1]),
    ]
    plan = plan_resampling(groups, budget_frac=0.25, num_continuations=2)  # floor(0.25 * 16) = 4: two prefixes
    by_problem = {prefix.source.problem_id: prefix for prefix in plan.prefixes}
    continuations = [build_continuations(by_problem["q0"], [0, 1]), build_continuations(by_problem["q1"], [0, 0])]

    metrics = rollout_metrics(groups, continuations, plan, 3)

    expected = {
        "rollout/count": 16,
        "rollout/dropped": 3,
        "rollout/tool_use_rate": 6 / 16,
        "rollout/all_wrong_tool": 2 / 3,  # q0, q1 of q0, q1, q2
        "rollout/all_wrong_no_tool": 2 / 4,  # q1, q2 of all
        "rollout/all_wrong_tool_post": 1 / 3,  # q0 recovered
        "reward/mean": 6 / 16,
        "reward/tool": 1 / 6,
        "reward/no_tool": 5 / 10,
        "reward/resampled": 1 / 4,
        "groups/zero_signal": 2 / 4,  # q1 all wrong, q3 all right
        "groups/all_right": 1 / 4,
        "groups/all_wrong": 1 / 4,
        "resample/budget": 4,
        "resample/planned": 4,
        "resample/used": 4,
        "resample/triggered": 2,
        "resample/candidates": 3,
        "resample/confidence_mean": 0.5,  # the first call of either question: 0.50
        "resample/restore_rate": 1 / 2,
        "resample/restore_rate_all": 1 / 2,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_generated_tokens_leave_out_the_inherited_prefix() -> None:
    # build_rollout: prompt 3, thinking 2, open 1, call 1, close 1, text 1, result 2, thinking 2, answer 2.
    # Sampled: 10 of a tool-using sibling; a continuation samples call, close, text, thinking, answer = 7.
    groups = [build_group("q0", tool=[0, 0, 0, 0])]
    plan = plan_resampling(groups, budget_frac=0.5, num_continuations=2)
    continuations = [build_continuations(plan.prefixes[0], [0, 1])]
    metrics = rollout_metrics(groups, continuations, plan, 0)
    assert metrics["tokens/generated"] == 4 * 10 + 2 * 7
    assert metrics["tokens/resampled"] == 2 * 7
    assert (metrics["length/prompt_mean"], metrics["length/response_mean"]) == (3, 12)


def test_calls_inside_thinking_are_counted_by_rollout() -> None:
    rollouts = [replace(build_rollout(f"q0/{n}"), num_calls_in_thinking=n) for n in (0, 1, 3)]
    groups = [RolloutGroup(problem_id="q0", rollouts=tuple(rollouts)), build_group("q1", tool=[0])]
    metrics = rollout_metrics(groups, [], EMPTY_PLAN, 0)
    assert metrics["rollout/calls_in_thinking"] == 2 / 4
    assert metrics["rollout/tool_use_rate"] == 1 / 4
    assert rollout_metrics([], [], EMPTY_PLAN, 0)["rollout/calls_in_thinking"] is None


def test_calls_failures_and_their_time() -> None:
    made_up = ToolResult(
        call=ToolCall(id="c", name="../<b>", arguments={}),
        failure=ToolFailure(kind=FailureKind.UNKNOWN_TOOL, message="no"),
        wall_time_s=0.0,
    )
    group = RolloutGroup(
        problem_id="q0",
        rollouts=(
            with_results(build_rollout("a", calls=[(0.5,)]), zoom([0, 0, 9, 9]), made_up),
            with_results(build_rollout("b", calls=[(0.5,)]), zoom("x", failure=FailureKind.BAD_ARGUMENTS)),
            build_rollout("c", stop_reason=StopReason.TOKEN_LIMIT),
            build_rollout("d"),
        ),
    )
    metrics = rollout_metrics([group], [], EMPTY_PLAN, 0)
    expected = {
        "tools/calls": 3,
        "tools/calls_per_rollout": 3 / 4,
        "tools/failure_rate": 2 / 3,
        "tools/seconds": 4 / 3,
        "tools/failures/unknown_tool": 1,
        "tools/failures/bad_arguments": 1,
        "tools/failures/timeout": 0,
        "tools/image_zoom_in/calls": 2,
        "tools/image_zoom_in/failures": 1,
        "stop/answered": 3 / 4,
        "stop/token_limit": 1 / 4,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert not [key for key in metrics if "<b>" in key], "a name the model made up must not become a key"


def test_zoom_hits_need_the_whole_target_on_the_first_picture() -> None:
    target = [400, 400, 450, 450]
    rollouts = (
        # a miss by one unit, then a hit: two calls, one hit, a rollout with a hit, right
        with_results(
            build_rollout("a", reward=1, calls=[(0.5,)]),
            zoom([401, 300, 500, 500]),
            zoom([400, 300, 450, 450], img_idx=0.0),
        ),
        # only calls that can not hit: on a crop (not counted), failed on a good box, unusable box
        with_results(
            build_rollout("b", reward=1, calls=[(0.5,)]),
            zoom([0, 0, 1000, 1000], img_idx=1),
            zoom([0, 0, 1000, 1000], failure=FailureKind.TIMEOUT),
            zoom("everywhere", failure=FailureKind.BAD_ARGUMENTS),
        ),
        with_results(build_rollout("c", calls=[(0.5,)]), zoom([0, 0, 100, 100])),
        build_rollout("d", reward=1),
    )
    group = RolloutGroup(problem_id="q0", rollouts=rollouts)
    metrics = rollout_metrics([group], [], EMPTY_PLAN, 0, problems=[problem("q0", target)])
    expected = {
        "zoom/box_hit_rate": 1 / 5,
        "zoom/hit_any": 1 / 3,
        "zoom/accuracy_given_hit": 1.0,
        "zoom/accuracy_given_miss": 1 / 2,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_without_a_target_there_are_no_zoom_keys() -> None:
    metrics = rollout_metrics([build_group("q0", tool=[0])], [], EMPTY_PLAN, 0, problems=[problem("q0", None)])
    assert not [key for key in metrics if key.startswith("zoom/")]


def test_nothing_to_count_is_none_not_zero() -> None:
    metrics = rollout_metrics([build_group("q0", no_tool=[1.0])], [], EMPTY_PLAN, 0)
    undefined = {
        "rollout/all_wrong_tool",
        "rollout/all_wrong_tool_post",
        "reward/tool",
        "reward/resampled",
        "resample/confidence_mean",
        "resample/restore_rate",
        "resample/restore_rate_all",
        "tools/failure_rate",
        "tools/seconds",
    }
    assert {key for key, value in metrics.items() if value is None} == undefined
