from __future__ import annotations

import itertools
import random

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from axpo.algo import group_relative_advantages, prefix_advantage

# Multiples of 1/8: their sums are exact, so that equal means equal.
rewards_strategy = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12)
stds = st.sampled_from(["sample", "population", "none"])


@given(rewards_strategy, stds)
def test_a_group_sums_to_zero(rewards, std):
    advantages_G = group_relative_advantages(rewards, std=std)
    assert abs(advantages_G.sum().item()) < 1e-9


@given(rewards_strategy, stds, st.randoms(use_true_random=False))
def test_the_order_of_a_group_does_not_matter(rewards, std, rng: random.Random):
    order = list(range(len(rewards)))
    rng.shuffle(order)
    shuffled_G = group_relative_advantages([rewards[i] for i in order], std=std)
    torch.testing.assert_close(shuffled_G, group_relative_advantages(rewards, std=std)[order], rtol=0, atol=1e-9)


@given(rewards_strategy, stds, st.integers(-800, 800))
def test_a_constant_added_to_all_rewards_does_not_matter(rewards, std, eighths):
    shifted_G = group_relative_advantages([reward + eighths / 8 for reward in rewards], std=std)
    torch.testing.assert_close(shifted_G, group_relative_advantages(rewards, std=std), rtol=0, atol=1e-9)


@given(rewards_strategy, st.sampled_from(["sample", "population"]), st.integers(-3, 3))
def test_the_scale_of_the_rewards_does_not_matter(rewards, std, exponent):
    scaled_G = group_relative_advantages([reward * 2.0**exponent for reward in rewards], std=std, eps=0.0)
    torch.testing.assert_close(scaled_G, group_relative_advantages(rewards, std=std, eps=0.0), rtol=0, atol=1e-9)


@given(rewards_strategy, stds)
def test_a_better_member_never_has_a_lower_advantage(rewards, std):
    advantages = group_relative_advantages(rewards, std=std).tolist()
    ranked = sorted(range(len(rewards)), key=lambda i: rewards[i])
    assert all(advantages[a] <= advantages[b] for a, b in itertools.pairwise(ranked))


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8), stds)
def test_recovery_never_lowers_a_prefix(rewards, std):
    assume(rewards[0] == 0.0)
    recovered = prefix_advantage(rewards, source=0, is_recovered=True, std=std)
    failed = prefix_advantage(rewards, source=0, is_recovered=False, std=std)
    assert recovered >= 0 >= failed
    assert (recovered == failed) == (sum(rewards) == 0 == recovered)
