from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from axpo.algo import (
    assign_credit,
    cispo_loss,
    clipped_surrogate_loss,
    exact_kl,
    kl_penalty,
    masked_sum,
    row_weights,
    zero_masked,
)
from records import steps

LOSSES = [clipped_surrogate_loss, cispo_loss]
AGGREGATIONS = ["token_mean", "sequence_mean", "equation5"]
GARBAGE = [0.0, -1.0, 1e30, -1e30, math.inf, -math.inf, math.nan]


def random_batch(seed, num_rows=3, num_tokens=5):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_tokens)
    logprobs_BT, old_BT, reference_BT = (-3 * torch.rand(shape, generator=generator) for _ in range(3))
    advantages_BT = torch.randn(shape, generator=generator)
    mask_BT = torch.rand(shape, generator=generator) < 0.5
    return logprobs_BT, old_BT, reference_BT, advantages_BT, mask_BT


def total_loss(loss_fn, logprobs_BT, old_BT, reference_BT, advantages_BT, mask_BT):
    """As a trainer does it: inputs through `zero_masked`, then the sum over what learns."""
    learning = zero_masked(logprobs_BT, mask_BT)
    per_token_BT = loss_fn(learning, zero_masked(old_BT, mask_BT), zero_masked(advantages_BT, mask_BT))
    per_token_BT = per_token_BT + 0.1 * kl_penalty(learning, zero_masked(reference_BT, mask_BT))
    return masked_sum(per_token_BT, mask_BT).sum()


@pytest.mark.parametrize("loss_fn", LOSSES)
@given(st.integers(0, 2**16), st.lists(st.sampled_from(GARBAGE), min_size=4, max_size=4))
def test_a_masked_position_changes_neither_loss_nor_gradient(loss_fn, seed, garbage):
    *inputs, mask_BT = random_batch(seed)
    outcomes = []
    for perturbed in (False, True):
        tensors = [
            torch.where(mask_BT, x, torch.full_like(x, value)) if perturbed else x.clone()
            for x, value in zip(inputs, garbage, strict=True)
        ]
        logprobs_BT = tensors[0].requires_grad_()
        loss = total_loss(loss_fn, *tensors, mask_BT)
        loss.backward()
        outcomes.append((loss.detach(), logprobs_BT.grad))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])
    assert not outcomes[1][1][~mask_BT].any()


@given(st.integers(0, 2**16))
def test_k3_is_never_negative_and_zero_only_at_the_reference(seed):
    logprobs_BT, _, reference_BT, _, _ = random_batch(seed)
    assert (kl_penalty(logprobs_BT, reference_BT) >= 0).all()
    assert not kl_penalty(logprobs_BT, logprobs_BT).any()


@given(st.lists(st.floats(0.1, 1.0), min_size=2, max_size=6), st.lists(st.floats(0.1, 1.0), min_size=6, max_size=6))
def test_the_expected_penalty_is_the_exact_divergence(policy, reference):
    """Summed over the vocabulary with the policy's probabilities, as long as no token is far enough to be held."""
    policy_V = torch.tensor(policy, dtype=torch.float64)
    reference_V = torch.tensor(reference[: len(policy)], dtype=torch.float64)
    policy_V, reference_V = policy_V / policy_V.sum(), reference_V / reference_V.sum()
    penalty_V = kl_penalty(policy_V.log(), reference_V.log())
    assume(bool((penalty_V < 10).all()))
    exact = exact_kl(policy_V.log(), reference_V.log()).item()
    assert (policy_V * penalty_V).sum().item() == pytest.approx(exact, abs=1e-9)
    assert exact >= -1e-12


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_the_expected_gradient_of_the_penalty_is_that_of_the_other_direction(policy, reference):
    """KL(reference || policy): what `kl_penalty` pulls towards, while `exact_kl` is about KL(policy || reference)."""
    reference_V = torch.tensor(reference, dtype=torch.float64).log_softmax(-1)
    gradients = []
    for divergence in (
        lambda logprobs_V: (logprobs_V.exp().detach() * kl_penalty(logprobs_V, reference_V)).sum(),
        lambda logprobs_V: exact_kl(reference_V, logprobs_V.clone()),
        lambda logprobs_V: (reference_V.exp() * (reference_V - logprobs_V)).sum(),
    ):
        logits_V = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
        value = divergence(logits_V.log_softmax(-1))
        gradients.append(torch.autograd.grad(value, logits_V)[0] if value.requires_grad else None)
    assert gradients[1] is None  # the second argument is a constant
    torch.testing.assert_close(gradients[0], gradients[2])


@given(st.integers(0, 2**16))
def test_the_clipped_surrogate_never_promises_more_than_the_unclipped_one(seed):
    logprobs_BT, old_BT, _, advantages_BT, _ = random_batch(seed)
    unclipped_BT = -(logprobs_BT - old_BT).exp() * advantages_BT
    assert (clipped_surrogate_loss(logprobs_BT, old_BT, advantages_BT) >= unclipped_BT).all()


def batch_loss(rows, weights_B, policy_V):
    """Pads the rows; a token's log-prob depends on its id alone."""
    num_tokens = max(len(row.token_ids) for row in rows)

    def padded(values, fill):
        return torch.tensor([[*v, *[fill] * (num_tokens - len(v))] for v in values])

    ids_BT = padded([row.token_ids for row in rows], 0) % len(policy_V)
    mask_BT = padded([row.loss_mask for row in rows], False)
    old_BT = padded([row.behavior_logprobs for row in rows], 0.0).double()
    advantages_BT = padded([row.advantages for row in rows], 0.0).double()
    per_token_BT = clipped_surrogate_loss(policy_V.log_softmax(-1)[ids_BT], old_BT, advantages_BT)
    return (weights_B * masked_sum(per_token_BT, mask_BT)).sum()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(steps(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(aggregation, step, size, rng: random.Random):
    rows = assign_credit(step.groups, step.continuation_groups)
    weights_B = row_weights(
        [row.num_learning_tokens for row in rows],
        [row.role for row in rows],
        [row.group_size for row in rows],
        aggregation=aggregation,
        num_questions=len(step.groups),
    )
    order = rng.sample(range(len(rows)), len(rows))
    splits = [[list(range(len(rows)))], [order[i : i + size] for i in range(0, len(order), size)]]
    outcomes = []
    for split in splits:
        policy_V = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
        losses = [batch_loss([rows[i] for i in part], weights_B[part], policy_V) for part in split]
        for loss in losses:
            loss.backward()
        outcomes.append((sum(loss.item() for loss in losses), policy_V.grad))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-9, abs=1e-9)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-9, atol=1e-9)


@given(steps())
def test_weights_sum_to_one_over_learning_tokens(step):
    rows = assign_credit(step.groups, step.continuation_groups)
    lengths_B = [row.num_learning_tokens for row in rows]
    for aggregation in ("token_mean", "sequence_mean"):
        weights_B = row_weights(
            lengths_B,
            [row.role for row in rows],
            [row.group_size for row in rows],
            aggregation=aggregation,
            num_questions=len(step.groups),
        )
        assert (weights_B * torch.tensor(lengths_B)).sum().item() == pytest.approx(1.0)
