"""Group-relative advantages against values derived by hand."""

from __future__ import annotations

import math
from math import sqrt

import pytest
import torch

from axpo.algo import group_relative_advantages, prefix_advantage
from axpo.errors import ConfigError, UserError

# c correct of K = 4: mean c/4, squared deviations sum to c (4 - c) / 4.
#   population: std = sqrt(c (4 - c)) / 4      A+ = (1 - c/4) / std = sqrt((4 - c) / c)      A- = -sqrt(c / (4 - c))
#   sample:     std is sqrt(4/3) times that, so both are sqrt(3)/2 times as large
CONTINUATIONS = {
    ("population", 1): (sqrt(3), -1 / sqrt(3)),  # 1.7321 -0.5774
    ("population", 2): (1.0, -1.0),
    ("population", 3): (1 / sqrt(3), -sqrt(3)),  # 0.5774 -1.7321
    ("sample", 1): (3 / 2, -1 / 2),
    ("sample", 2): (sqrt(3) / 2, -sqrt(3) / 2),  # 0.8660 -0.8660
    ("sample", 3): (1 / 2, -3 / 2),
    ("none", 1): (3 / 4, -1 / 4),
    ("none", 3): (1 / 4, -3 / 4),
}


@pytest.mark.parametrize(("std", "num_correct"), CONTINUATIONS)
def test_continuation_group_of_four(std, num_correct):
    right, wrong = CONTINUATIONS[std, num_correct]
    rewards = [1.0] * num_correct + [0.0] * (4 - num_correct)
    expected = [right] * num_correct + [wrong] * (4 - num_correct)
    assert group_relative_advantages(rewards, std=std, eps=0.0).tolist() == pytest.approx(expected, abs=1e-12)


# Recovered prefix in N = 8 with m other correct rollouts: m + 1 of 8 are correct, so with c = m + 1
#   population: A = sqrt((8 - c) / c) = sqrt((7 - m) / (m + 1)); sample: sqrt(7/8) times that.
PREFIX_POPULATION = [sqrt(7), sqrt(3), sqrt(5 / 3), 1.0, sqrt(3 / 5), sqrt(1 / 3), sqrt(1 / 7)]
PRINTED = {
    "population": [2.6458, 1.7321, 1.2910, 1.0000, 0.7746, 0.5774, 0.3780],
    "sample": [2.4749, 1.6202, 1.2076, 0.9354, 0.7246, 0.5401, 0.3536],
}


@pytest.mark.parametrize("std", ["population", "sample"])
@pytest.mark.parametrize("num_correct", range(7))
def test_recovered_prefix_in_a_group_of_eight(std, num_correct):
    rewards = [0.0] * (8 - num_correct) + [1.0] * num_correct
    expected = PREFIX_POPULATION[num_correct] * (sqrt(7 / 8) if std == "sample" else 1.0)
    advantage = prefix_advantage(rewards, source=0, is_recovered=True, std=std, eps=0.0)
    assert advantage == pytest.approx(expected, abs=1e-12)
    assert round(advantage, 4) == PRINTED[std][num_correct]


def test_recovery_that_makes_all_rewards_equal_gives_no_credit():
    assert prefix_advantage([0.0] + [1.0] * 7, source=0, is_recovered=True) == 0.0


# Not recovered, m of 8 correct: the wrong member's A- = -sqrt(m / (8 - m)), times sqrt(7/8) for sample.
@pytest.mark.parametrize(
    ("num_correct", "expected"),
    [
        (0, 0.0),
        (1, -sqrt(7 / 8) * sqrt(1 / 7)),  # -0.3536
        (3, -sqrt(7 / 8) * sqrt(3 / 5)),  # -0.7246
        (7, -sqrt(7 / 8) * sqrt(7)),  # -2.4749
    ],
)
def test_unrecovered_prefix_keeps_its_grpo_advantage(num_correct, expected):
    rewards = [0.0] * (8 - num_correct) + [1.0] * num_correct
    advantage = prefix_advantage(rewards, source=0, is_recovered=False, eps=0.0)
    assert advantage == pytest.approx(expected, abs=1e-12)
    assert advantage == group_relative_advantages(rewards, eps=0.0)[0]


def test_the_advantage_is_that_of_the_source_whichever_sibling_it_is():
    # one of four correct, sample std 1/2; with the last one recovered [1, 0, 0, 1]: sample std 1/sqrt(3)
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert prefix_advantage(rewards, source=2, is_recovered=False, eps=0.0) == pytest.approx(-1 / 2)
    assert prefix_advantage(rewards, source=3, is_recovered=True, eps=0.0) == pytest.approx(sqrt(3) / 2)


def test_eps_is_added_to_the_standard_deviation():
    # [1, 0]: deviations +-1/2, sample std sqrt(1/2); with eps = sqrt(1/2) the advantages are +-1/2 / sqrt(2).
    advantages = group_relative_advantages([1.0, 0.0], eps=sqrt(1 / 2))
    assert advantages.tolist() == pytest.approx([1 / (2 * sqrt(2)), -1 / (2 * sqrt(2))], abs=1e-12)


def test_a_group_of_equal_rewards_is_exactly_zero():
    # In float64 the mean of six times 0.1 is not 0.1; divided by eps the difference would be visible.
    for std in ("sample", "population", "none"):
        assert group_relative_advantages([0.1] * 6, std=std, eps=0.0).tolist() == [0.0] * 6


def test_a_group_of_one_is_zero():
    assert group_relative_advantages([1.0]).tolist() == [0.0]


def test_integers_and_tensors_are_rewards_too():
    expected = group_relative_advantages([1.0, 0.0, 0.0])
    assert torch.equal(group_relative_advantages(torch.tensor([1, 0, 0])), expected)
    assert expected.dtype == torch.float64


@pytest.mark.parametrize("rewards", [[], [0.0, math.nan], [math.inf, 0.0], torch.zeros(2, 2)])
def test_bad_rewards_are_refused(rewards):
    with pytest.raises(UserError, match="rewards:"):
        group_relative_advantages(rewards)


def test_a_reward_that_recovery_would_replace_is_checked_too():
    with pytest.raises(UserError, match="every reward must be finite"):
        prefix_advantage([float("nan"), 0.0, 1.0], source=0, is_recovered=True)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="sample, population, none; got 'biased'"):
        group_relative_advantages([1.0], std="biased")
    with pytest.raises(ConfigError, match="eps"):
        group_relative_advantages([1.0], eps=-1.0)
    with pytest.raises(UserError, match="index into 2 siblings, got 2"):
        prefix_advantage([0.0, 1.0], source=2, is_recovered=True)
