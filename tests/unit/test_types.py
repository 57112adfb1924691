"""What the records refuse: numbers that would pass every comparison and mean nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from axpo.algo import assign_credit, tool_call_confidence
from axpo.algo.example import build_rollout
from axpo.errors import RecordError
from axpo.types import Completion, Rollout, RolloutGroup

# prompt 0:3, thinking 3:5, tool_open 5:6, tool_call 6:8, tool_close, text, tool_result 10:12, thinking, answer
ROLLOUT = build_rollout("q/0", calls=[(0.5, 0.25)])
BAD_LOGPROBS = (math.nan, math.inf, -math.inf, 0.5)


def with_logprob(position: int, value: float) -> Rollout:
    logprobs = list(ROLLOUT.behavior_logprobs)
    logprobs[position] = value
    return replace(ROLLOUT, behavior_logprobs=tuple(logprobs))


@pytest.mark.parametrize("value", BAD_LOGPROBS)
@pytest.mark.parametrize("position", [3, 5, 6, 7, len(ROLLOUT.token_ids) - 1])
def test_a_rollout_refuses_log_probs_that_are_none(position: int, value: float) -> None:
    with pytest.raises(RecordError, match=rf"Rollout q/0: log-probs .* finite and <= 0 .*, got \[{value}\]"):
        with_logprob(position, value)


def test_probabilities_given_as_log_probs_are_refused() -> None:
    probabilities = tuple(math.exp(value) for value in ROLLOUT.behavior_logprobs)
    with pytest.raises(RecordError, match=r"natural logarithms of probabilities\), got \[0\.9"):
        replace(ROLLOUT, behavior_logprobs=probabilities)


@pytest.mark.parametrize("value", BAD_LOGPROBS)
def test_log_probs_of_prompt_and_tool_results_are_not_looked_at(value: float) -> None:
    for position in (0, 10):
        rollout = with_logprob(position, value)
        assert tool_call_confidence(rollout) == pytest.approx(0.375)
        [row] = assign_credit([RolloutGroup(problem_id="q0", rollouts=(rollout,))], [])
        assert not row.loss_mask[position]


def test_rounding_above_zero_is_no_mistake_and_a_confidence_at_most_1() -> None:
    rollout = replace(ROLLOUT, behavior_logprobs=(5e-7,) * len(ROLLOUT.token_ids))
    assert tool_call_confidence(rollout) == 1.0


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_rollout_refuses_a_reward_that_is_not_finite(reward: float) -> None:
    with pytest.raises(RecordError, match=f"Rollout q/0: the reward must be finite, got {reward}"):
        replace(ROLLOUT, reward=reward)


@pytest.mark.parametrize("value", BAD_LOGPROBS)
def test_completions_and_training_rows_refuse_the_same_log_probs(value: float) -> None:
    with pytest.raises(RecordError, match="Completion: log-probs"):
        Completion(token_ids=(1,), logprobs=(value,), finish_reason="stop", policy_version=0)
    [row] = assign_credit([RolloutGroup(problem_id="q0", rollouts=(ROLLOUT,))], [])
    num_tokens = len(row.token_ids)
    with pytest.raises(RecordError, match="TrainingRow q/0: log-probs"):
        replace(row, behavior_logprobs=(value,) * num_tokens)
    masked = tuple(0.0 if learns else value for learns in row.loss_mask)
    assert replace(row, behavior_logprobs=masked).num_learning_tokens == row.num_learning_tokens
