"""Records survive JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from axpo.codec import from_json, to_json
from axpo.diagnostics.recorder import RolloutRecord, rollout_lines
from axpo.errors import RecordError
from axpo.types import (
    Completion,
    ContinuationGroup,
    ImageRef,
    Message,
    Problem,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    Segment,
)
from records import Step, build_rollout, steps


@given(steps())
def test_a_step_comes_back_equal(step: Step) -> None:
    for record_type, records in (
        (RolloutGroup, step.groups),
        (ResamplePlan, (step.plan,)),
        (ContinuationGroup, step.continuation_groups),
    ):
        for record in records:
            assert from_json(record_type, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("value", [{"sha256": "0" * 64}, {"sha256": "0" * 64, "width": 1}, [], None, {"x": 1}])
def test_a_record_with_other_fields_is_refused(value: object) -> None:
    with pytest.raises(RecordError, match="ImageRef"):
        from_json(ImageRef, value)


ROLLOUT = to_json(build_rollout("a", calls=[(0.5,)]))
COMPLETION = {"token_ids": [1], "logprobs": [-0.5], "finish_reason": "stop", "policy_version": 0}


@pytest.mark.parametrize(
    ("record_type", "value", "message"),
    [
        (Rollout, {**ROLLOUT, "reward": "1.0"}, "Rollout.reward: expected a number, got '1.0'"),
        (Rollout, {**ROLLOUT, "reward": True}, "Rollout.reward: expected a number, got True"),
        (Rollout, {**ROLLOUT, "reward": None}, "Rollout.reward: expected a number, got None"),
        (Rollout, {**ROLLOUT, "reward": 10**400}, "Rollout.reward: expected a number, got 1000"),
        (Rollout, {**ROLLOUT, "token_ids": "abc"}, "Rollout.token_ids: expected a list, got 'abc'"),
        (Rollout, {**ROLLOUT, "token_ids": ["a"]}, r"Rollout.token_ids\[0\]: expected a whole number, got 'a'"),
        (Rollout, {**ROLLOUT, "token_ids": [1, 2.0]}, r"Rollout.token_ids\[1\]: expected a whole number, got 2.0"),
        (Rollout, {**ROLLOUT, "token_ids": None}, "Rollout.token_ids: expected a list, got None"),
        (Rollout, {**ROLLOUT, "policy_version": False}, "Rollout.policy_version: expected a whole number, got False"),
        (Rollout, {**ROLLOUT, "stop_reason": "bored"}, "Rollout.stop_reason: expected one of answered, turn_limit"),
        (Rollout, {**ROLLOUT, "stop_reason": []}, r"Rollout.stop_reason: expected one of answered, .*, got \[\]"),
        (Rollout, {**ROLLOUT, "id": 3}, "Rollout.id: expected a text, got 3"),
        (Rollout, {**ROLLOUT, "prefix": [1]}, r"Rollout.prefix: expected a JSON object, got \[1\]"),
        (Rollout, {**ROLLOUT, "prefix": {"source_id": "b"}}, r"Rollout.prefix: missing fields \['num_tokens'\]"),
        (Rollout, {**ROLLOUT, "segments": [{"kind": "x"}]}, r"Rollout.segments\[0\]: missing fields"),
        (Segment, {"kind": "prompt", "start": "0", "stop": 1}, "Segment.start: expected a whole number, got '0'"),
        (Message, {"role": "robot"}, "Message.role: expected one of system, user, assistant, tool, got 'robot'"),
        (Completion, {**COMPLETION, "finish_reason": 1}, "Completion.finish_reason: expected one of stop, length"),
    ],
)
def test_a_value_of_another_type_is_refused_and_named(record_type: type, value: object, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_json(record_type, value)


def test_whole_numbers_are_numbers() -> None:
    rollout = from_json(Rollout, {**ROLLOUT, "reward": 1, "behavior_logprobs": [0] * len(ROLLOUT["token_ids"])})
    assert (rollout.reward, type(rollout.reward), rollout.behavior_logprobs[0]) == (1.0, float, 0.0)


def test_every_place_of_a_credit_span_has_its_own_type() -> None:
    group = RolloutGroup(problem_id="q0", rollouts=(build_rollout("a"),))
    problem = Problem(id="q0", messages=(Message(role="user"),), answer="A")
    [line] = rollout_lines(step=1, phase="train", groups=[group], problems=[problem], decode=lambda ids: "x")
    assert from_json(RolloutRecord, {**line, "credit": [[3, 5, 0.5], [5, 6, -1]]}).credit == ((3, 5, 0.5), (5, 6, -1.0))
    for credit, message in (
        ([[3, 5]], r"credit\[0\]: expected a list of 3"),
        ([[3, 5.0, 0.5]], r"credit\[0\]\[1\]: expected a whole number, got 5.0"),
    ):
        with pytest.raises(RecordError, match=message):
            from_json(RolloutRecord, {**line, "credit": credit})
