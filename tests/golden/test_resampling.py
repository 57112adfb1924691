"""Trigger, cut point, confidence and plan against values derived by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axpo.algo import (
    cut_point,
    is_triggered,
    plan_resampling,
    resample_budget,
    thinking_prefixes,
    tool_call_confidence,
)
from axpo.errors import ConfigError, RecordError
from axpo.types import RolloutGroup, SegmentKind, StopReason
from records import (
    ANSWER,
    PROMPT,
    THINKING,
    TOOL_CLOSE,
    TOOL_OPEN,
    TOOL_RESULT,
    build_continuations,
    build_group,
    build_rollout,
)

# prompt 0:3, thinking 3:5, open 5 (p = 0.4), body 6:8, close 8 (p = 1), text 9, result 10:12, thinking 12:14,
# open 14 (p = 0.4), body 15, close 16 (p = 1), ...
TWO_CALLS = build_rollout("two", calls=[(0.5, 0.25), (0.125,)])


@pytest.mark.parametrize(
    ("tool", "no_tool", "expected"),
    [
        ([], [0.0, 0.0], False),  # nobody used a tool
        ([0.0], [], True),
        ([0.0, 0.0], [1.0, 0.0], True),  # successes without a tool do not matter
        ([0.0, 1.0], [0.0], False),  # the tool call already has positive credit
    ],
)
def test_trigger(tool, no_tool, expected):
    assert is_triggered(build_group("q", tool=tool, no_tool=no_tool)) is expected


def test_cut_point_is_right_after_the_opening_tag():
    assert cut_point(TWO_CALLS) == 6
    assert cut_point(TWO_CALLS, call="last") == 15


def test_cut_point_needs_a_call():
    with pytest.raises(RecordError, match="Rollout plain: has no tool_open"):
        cut_point(build_rollout("plain"))
    stray = [PROMPT, THINKING, TOOL_CLOSE, ANSWER]
    with pytest.raises(RecordError, match="Rollout stray: tool_close at 5 before any tool_open"):
        cut_point(build_rollout("stray", layout=stray))


@pytest.mark.parametrize(
    ("calls", "tags", "expected"),
    [
        ("first", False, (1 / 2 + 1 / 4) / 2),
        ("first", True, (2 / 5 + 1 / 2 + 1 / 4 + 1) / 4),
        ("last", False, 1 / 8),
        ("last", True, (2 / 5 + 1 / 8 + 1) / 3),
        ("all", False, (1 / 2 + 1 / 4 + 1 / 8) / 3),
        ("all", True, (2 / 5 + 1 / 2 + 1 / 4 + 1 + 2 / 5 + 1 / 8 + 1) / 7),
    ],
)
def test_confidence_is_the_arithmetic_mean_of_probabilities(calls, tags, expected):
    assert tool_call_confidence(TWO_CALLS, calls=calls, tags=tags) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "layout",
    [
        [PROMPT, THINKING, TOOL_OPEN],  # cut off right after the tag
        [PROMPT, THINKING, TOOL_OPEN, TOOL_CLOSE, ANSWER],  # closed at once
    ],
)
def test_a_call_without_a_body_is_as_sure_as_its_opening_tag(layout):
    assert tool_call_confidence(build_rollout("empty", layout=layout)) == pytest.approx(2 / 5)


def test_a_logprob_above_zero_by_rounding_stays_a_probability():
    rollout = build_rollout("sure", calls=[(1.0,)])
    assert tool_call_confidence(replace(rollout, behavior_logprobs=(1e-7,) * len(rollout.token_ids))) == 1.0


def group_of(*rollouts):
    return RolloutGroup(problem_id="q0", rollouts=rollouts)


def test_candidates_are_the_tool_using_siblings_least_confident_first():
    group = group_of(
        build_rollout("sure", calls=[(0.9,)]),
        build_rollout("plain", reward=1.0),
        build_rollout("unsure", calls=[(0.2, 0.4)]),
        build_rollout("b-tie", calls=[(0.5,)]),
        build_rollout("a-tie", calls=[(0.5,)]),
    )
    prefixes = thinking_prefixes(group)
    assert [p.source.id for p in prefixes] == ["unsure", "a-tie", "b-tie", "sure"]
    assert [p.confidence for p in prefixes] == pytest.approx([0.3, 0.5, 0.5, 0.9])
    assert {p.num_tokens for p in prefixes} == {6}


def test_a_group_that_is_not_triggered_has_no_candidates():
    assert thinking_prefixes(build_group("q", tool=[0.0, 1.0])) == ()


def test_branching_at_the_last_call_ranks_by_the_call_that_is_resampled():
    group = group_of(TWO_CALLS, build_rollout("one", calls=[(0.25,)]))
    first = thinking_prefixes(group)
    last = thinking_prefixes(group, branch_at="last")
    everything = thinking_prefixes(group, branch_at="last", calls="all")
    assert [(p.source.id, p.num_tokens) for p in first] == [("one", 6), ("two", 6)]
    assert [p.confidence for p in first] == pytest.approx([1 / 4, 3 / 8])
    assert [(p.source.id, p.num_tokens) for p in last] == [("two", 15), ("one", 6)]
    assert [p.confidence for p in last] == pytest.approx([1 / 8, 1 / 4])
    assert [(p.source.id, p.num_tokens) for p in everything] == [("one", 6), ("two", 15)]
    assert [p.confidence for p in everything] == pytest.approx([1 / 4, 7 / 24])


def test_a_malformed_or_truncated_call_is_a_candidate_while_a_token_is_left_to_resample():
    cut_off = [PROMPT, THINKING, TOOL_OPEN, (SegmentKind.TOOL_CALL, (0.5,))]
    at_the_tag = [PROMPT, THINKING, TOOL_OPEN]
    group = group_of(
        build_rollout("cut off", layout=cut_off, stop_reason=StopReason.TOKEN_LIMIT),
        build_rollout("no token left", layout=at_the_tag, stop_reason=StopReason.TOKEN_LIMIT),
        build_rollout("out of time", layout=at_the_tag, stop_reason=StopReason.TIME_LIMIT),
    )
    assert [p.source.id for p in thinking_prefixes(group)] == ["out of time", "cut off"]


def test_a_call_beyond_the_turn_limit_is_no_candidate_an_earlier_one_is():
    # two calls written, one run: the second was one more than the limit allows
    limited = replace(TWO_CALLS, stop_reason=StopReason.TURN_LIMIT)
    calls = [s.stop for s in limited.segments if s.kind is SegmentKind.TOOL_OPEN]
    assert [p.num_tokens for p in thinking_prefixes(group_of(limited))] == [calls[0]]
    unrun = [PROMPT, THINKING, TOOL_OPEN, (SegmentKind.TOOL_CALL, (0.5,)), TOOL_CLOSE]
    no_turns = build_rollout("no turns", layout=unrun, stop_reason=StopReason.TURN_LIMIT)
    assert thinking_prefixes(group_of(no_turns)) == ()


@pytest.mark.parametrize(
    ("last_call", "stop_reason", "is_candidate"),
    [
        ([], StopReason.TOKEN_LIMIT, False),  # the token limit fell on the opening tag
        ([(SegmentKind.TOOL_CALL, (0.5,))], StopReason.TOKEN_LIMIT, True),
        ([(SegmentKind.TOOL_CALL, (0.5,)), TOOL_CLOSE], StopReason.TURN_LIMIT, False),  # one call more than allowed
        ([(SegmentKind.TOOL_CALL, (0.5,)), TOOL_CLOSE], StopReason.TIME_LIMIT, True),
    ],
)
def test_a_last_call_that_cannot_be_resumed_is_no_candidate_though_the_first_one_is(
    last_call, stop_reason, is_candidate
):
    first_call = [TOOL_OPEN, (SegmentKind.TOOL_CALL, (0.5,)), TOOL_CLOSE, TOOL_RESULT]
    layout = [PROMPT, THINKING, *first_call, THINKING, TOOL_OPEN, *last_call]
    group = group_of(build_rollout("a", layout=layout, stop_reason=stop_reason))
    assert [p.num_tokens for p in thinking_prefixes(group)] == [6]
    assert [p.num_tokens for p in thinking_prefixes(group, branch_at="last")] == [13] * is_candidate


def test_a_last_call_without_a_body_is_as_sure_as_its_opening_tag():
    first_call = [TOOL_OPEN, (SegmentKind.TOOL_CALL, (0.5, 0.25)), TOOL_CLOSE, TOOL_RESULT]
    layout = [PROMPT, THINKING, *first_call, THINKING, (SegmentKind.TOOL_OPEN, (0.2,)), TOOL_CLOSE, TOOL_RESULT, ANSWER]
    group = group_of(build_rollout("a", layout=layout))
    [last] = thinking_prefixes(group, branch_at="last")
    [everything] = thinking_prefixes(group, branch_at="last", calls="all")
    assert (last.num_tokens, last.confidence) == (14, pytest.approx(1 / 5))
    assert everything.confidence == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_rollout_that_inherits_a_prefix_is_never_a_source():
    [prefix] = thinking_prefixes(build_group("q0", tool=[0.0]))
    [continuation] = build_continuations(prefix, [0.0]).rollouts
    assert thinking_prefixes(group_of(continuation)) == ()


@pytest.mark.parametrize(
    ("num_rollouts", "budget_frac", "expected"),
    [(64 * 8, 0.25, 128), (256 * 8, 0.25, 512), (100, 0.29, 29), (10, 0.07, 0), (1000, 0.007, 7), (8, 0, 0), (8, 1, 8)],
)
def test_budget_is_the_exact_floor(num_rollouts, budget_frac, expected):
    assert resample_budget(num_rollouts, budget_frac) == expected


@pytest.mark.parametrize("num_questions", [1, 2, 3, 4, 5])
def test_default_budget_is_one_prefix_for_every_two_questions(num_questions):
    # floor(floor(B * 8 / 4) / 4) = floor(B / 2)
    groups = [build_group(f"q{i}", tool=[0.0] * 3, no_tool=[1.0] * 5) for i in range(num_questions)]
    plan = plan_resampling(groups)
    assert len(plan.prefixes) == num_questions // 2
    assert (plan.budget, plan.num_triggered, plan.num_candidates) == (
        2 * num_questions,
        num_questions,
        3 * num_questions,
    )


def confident_group(problem_id, *confidences):
    """Wrong tool-using siblings with these confidences, up to a group of eight."""
    tool = [
        build_rollout(f"{problem_id}/{i}", calls=[(confidence,)], problem_id=problem_id)
        for i, confidence in enumerate(confidences)
    ]
    rest = [build_rollout(f"{problem_id}/{i}", problem_id=problem_id) for i in range(len(tool), 8)]
    return RolloutGroup(problem_id=problem_id, rollouts=(*tool, *rest))


STEP = [confident_group("c", 0.1, 0.2, 0.3), confident_group("a", 0.9), confident_group("b", 0.8, 0.15)]
# level 0: c/0 0.1, b/1 0.15, a/0 0.9     level 1: c/1 0.2, b/0 0.8     level 2: c/2 0.3
BREADTH_FIRST = ["c/0", "b/1", "a/0", "c/1", "b/0", "c/2"]


@pytest.mark.parametrize(
    ("budget_frac", "num_prefixes"),
    [(0.0, 0), (0.125, 0), (0.25, 1), (0.5, 3), (0.6, 3), (0.7, 4), (1.0, 6)],
)
def test_plan_is_breadth_first_and_whole(budget_frac, num_prefixes):
    # 24 rollouts: floor(24 r) continuations, floor of a quarter of that prefixes
    plan = plan_resampling(STEP, budget_frac=budget_frac)
    assert [p.source.id for p in plan.prefixes] == BREADTH_FIRST[:num_prefixes]


def test_leftover_budget_stays_unused():
    plan = plan_resampling(STEP[1:2], budget_frac=1.0, num_continuations=2)
    assert (plan.budget, plan.num_planned) == (8, 2)


def test_ties_between_questions_go_by_problem_id_then_rollout_id():
    plan = plan_resampling([confident_group("z", 0.5, 0.5), confident_group("y", 0.5, 0.5)], budget_frac=1.0)
    assert [p.source.id for p in plan.prefixes] == ["y/0", "z/0", "y/1", "z/1"]


def test_random_rank_is_seeded_and_still_breadth_first():
    plans = [plan_resampling(STEP, budget_frac=1.0, rank="random", seed=seed) for seed in range(8)]
    orders = [[p.source.id for p in plan.prefixes] for plan in plans]
    again = plan_resampling(STEP, budget_frac=1.0, rank="random", seed=3)
    assert [p.source.id for p in again.prefixes] == orders[3]
    assert len({tuple(order) for order in orders}) > 1
    for order in orders:
        assert [{name[0] for name in order[:3]}, {name[0] for name in order[3:5]}, order[5][0]] == [
            {"a", "b", "c"},
            {"b", "c"},
            "c",
        ]


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"budget_frac.*1\.5"):
        plan_resampling(STEP, budget_frac=1.5)
    with pytest.raises(ConfigError, match="budget_frac"):
        plan_resampling(STEP, budget_frac=float("nan"))
    with pytest.raises(ConfigError, match="num_continuations"):
        plan_resampling(STEP, num_continuations=0)
    with pytest.raises(ConfigError, match="rank: expected one of confidence, random"):
        plan_resampling(STEP, rank="entropy")
    with pytest.raises(ConfigError, match="calls"):
        plan_resampling(STEP, calls="last")


def test_a_rollout_id_names_one_rollout_of_the_step():
    twice = [build_group("q0", tool=[0.0]), RolloutGroup(problem_id="q1", rollouts=())]
    with pytest.raises(RecordError, match="Rollout q0/0: ids must be unique"):
        plan_resampling([*twice, twice[0]])
