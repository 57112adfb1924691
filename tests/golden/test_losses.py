"""Losses and row weights against values derived by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from axpo.algo import (
    cispo_loss,
    clipped_surrogate_loss,
    cross_entropy_loss,
    exact_kl,
    importance_weights,
    kl_penalty,
    masked_sum,
    row_weights,
    zero_masked,
)
from axpo.errors import ConfigError, UserError
from axpo.types import RowRole


def loss_and_gradient(loss_fn, ratio, advantage, **options):
    """Of one token whose policy ratio is `ratio`; the gradient is with respect to its log-prob."""
    old = torch.tensor([log(0.1)], dtype=torch.float64)
    new = (old + log(ratio)).requires_grad_()
    loss = loss_fn(new, old, torch.tensor([advantage], dtype=torch.float64), **options)
    loss.sum().backward()
    return loss.item(), new.grad.item()


# d rho / d log pi = rho. Bounds 1 - 0.2 and 1 + 0.4. Loss is -min(rho A, clip(rho) A).
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 1.0, -1.2, -1.2),
        (1.5, 1.0, -1.4, 0.0),  # pushed up enough
        (1.5, -1.0, 1.5, 1.5),  # still pushed down
        (0.7, -1.0, 0.8, 0.0),  # pushed down enough
        (0.7, 1.0, -0.7, -0.7),  # still pushed up
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate(ratio, advantage, loss, gradient):
    seen = loss_and_gradient(clipped_surrogate_loss, ratio, advantage)
    assert seen == pytest.approx((loss, gradient), abs=1e-12)


# -clip(rho) A log pi with log pi = log(0.1 rho); the gradient is -clip(rho) A and never cut off.
@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(1.0, 2.0, 1.0), (1.2, 1.0, 1.2), (1.5, 1.0, 1.4), (1.5, -1.0, 1.4), (0.7, -1.0, 0.8), (0.7, 1.0, 0.8)],
)
def test_cispo(ratio, advantage, weight):
    seen = loss_and_gradient(cispo_loss, ratio, advantage)
    assert seen == pytest.approx((-weight * advantage * log(0.1 * ratio), -weight * advantage), abs=1e-12)


def test_bounds_are_separate():
    assert loss_and_gradient(clipped_surrogate_loss, 2.0, 1.0, clip_low=0.1, clip_high=0.5)[0] == pytest.approx(-1.5)
    assert loss_and_gradient(clipped_surrogate_loss, 0.5, -1.0, clip_low=0.1, clip_high=0.5)[0] == pytest.approx(0.9)
    assert loss_and_gradient(cispo_loss, 2.0, 1.0, clip_low=0.1, clip_high=0.5)[1] == pytest.approx(-1.5)


@pytest.mark.parametrize("loss_fn", [clipped_surrogate_loss, cispo_loss])
@pytest.mark.parametrize("gap", [-500.0, 500.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_hopeless_ratio_neither_overflows_nor_gives_nan(loss_fn, gap, advantage):
    new = torch.tensor([-600.0 if gap < 0 else -1.0], requires_grad=True)
    loss = loss_fn(new, new.detach() - gap, torch.tensor([advantage]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert new.grad.isfinite().all()


def test_the_sampling_policy_is_a_constant():
    logprobs = torch.tensor([-1.0], requires_grad=True)
    clipped_surrogate_loss(logprobs, logprobs, torch.tensor([1.0])).sum().backward()
    assert logprobs.grad.tolist() == [-1.0]


def test_kl_penalty():
    # pi = 1/2, reference = 1/4: d = log(1/2), k3 = 1/2 - 1 + log 2.
    policy = torch.tensor([log(1 / 2)], dtype=torch.float64, requires_grad=True)
    penalty = kl_penalty(policy, torch.tensor([log(1 / 4)], dtype=torch.float64))
    assert penalty.item() == pytest.approx(log(2) - 1 / 2)
    penalty.sum().backward()
    assert policy.grad.item() == pytest.approx(1 / 2)  # 1 - exp(d)
    assert kl_penalty(policy, policy).item() == 0.0


# exp(d) - 1 - d reaches 10 at d = 2.610 and at d = -11; beyond, value and gradient are held.
@pytest.mark.parametrize(
    ("d", "value", "gradient"),
    [
        (2.6, exp(2.6) - 3.6, 1 - exp(2.6)),
        (2.62, 10.0, 0.0),
        (20.0, 10.0, 0.0),
        (-10.9, exp(-10.9) + 9.9, 1 - exp(-10.9)),
        (-11.1, 10.0, 0.0),
        (500.0, 10.0, 0.0),
        (-500.0, 10.0, 0.0),
    ],
)
def test_kl_penalty_of_one_token_is_at_most_10_nats(d, value, gradient):
    policy = torch.tensor([-1.0 - d], dtype=torch.float64, requires_grad=True)
    penalty = kl_penalty(policy, torch.tensor([-1.0], dtype=torch.float64))
    penalty.sum().backward()
    assert (penalty.item(), policy.grad.item()) == pytest.approx((value, gradient))


def test_exact_kl():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/2 log 2 + 0 - 1/4 log 2 = 1/4 log 2.
    # Its gradient in the logits is p_v (log p_v - log q_v - KL).
    banned = -torch.inf
    logits_V = torch.tensor([log(2), 0.0, 0.0, banned], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([log(1 / 4), log(1 / 4), log(1 / 2), banned], dtype=torch.float64)
    divergence = exact_kl(logits_V.log_softmax(-1), reference_V)
    divergence.backward()
    kl = log(2) / 4
    assert divergence.item() == pytest.approx(kl)
    expected = [1 / 2 * (log(2) - kl), 1 / 4 * (0 - kl), 1 / 4 * (-log(2) - kl), 0.0]
    assert logits_V.grad.tolist() == pytest.approx(expected)


def test_exact_kl_is_zero_where_policy_and_reference_agree():
    logprobs_TV = torch.tensor([[3.0, -1.0, 0.5], [0.0, 1.0, 2.0]]).log_softmax(-1)
    changed_TV = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, 2.0]]).log_softmax(-1)
    same, other = exact_kl(logprobs_TV, changed_TV).tolist()
    assert same == 0.0 < other


def test_exact_kl_of_a_policy_that_lost_a_token_stays_small():
    logits_V = torch.tensor([-500.0, 0.0], requires_grad=True)
    divergence = exact_kl(logits_V.log_softmax(-1), torch.tensor([log(1 / 2), log(1 / 2)]))
    divergence.backward()
    assert divergence.item() == pytest.approx(log(2))  # all of p on a token of which q has half
    assert logits_V.grad.tolist() == [0.0, 0.0]


# min(pi_old / mu, cap)
@pytest.mark.parametrize(
    ("old", "behavior", "weight"), [(0.3, 0.3, 1.0), (0.3, 0.6, 0.5), (0.3, 0.2, 1.5), (0.8, 0.1, 2.0), (0.1, 1.0, 0.1)]
)
def test_importance_weights(old, behavior, weight):
    old, behavior = torch.tensor([log(old)], requires_grad=True), torch.tensor([log(behavior)])
    weights = importance_weights(old, behavior, cap=2.0)
    assert weights.tolist() == pytest.approx([weight])
    assert not weights.requires_grad


def test_importance_weights_of_hopeless_gaps_are_finite():
    weights = importance_weights(torch.tensor([-500.0, -1.0]), torch.tensor([-1.0, -500.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([0.0, 2.0], abs=1e-8)


def test_cross_entropy_is_the_negative_log_likelihood():
    assert cross_entropy_loss(torch.tensor([log(1 / 2), 0.0])).tolist() == pytest.approx([log(2), 0.0])


def test_masked_sum_is_per_row():
    per_token_BT = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 8.0, 16.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, False, True], [False, True, True]])
    sums_B = masked_sum(per_token_BT, mask_BT)
    (sums_B * torch.tensor([1.0, 10.0])).sum().backward()
    assert sums_B.tolist() == [3.0, 24.0]
    assert per_token_BT.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 10.0, 10.0]]


ROLES = [RowRole.ROLLOUT, RowRole.PREFIX, RowRole.CONTINUATION, RowRole.CONTINUATION]
LENGTHS, GROUP_SIZES = [10, 4, 5, 6], [8, 8, 4, 4]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1 / 25] * 4),
        ("sequence_mean", [1 / 40, 1 / 16, 1 / 20, 1 / 24]),
        ("equation5", [1 / (2 * 8 * 10), 1 / (2 * 4), 1 / (2 * 5), 1 / (2 * 6)]),
    ],
)
def test_row_weights(aggregation, expected):
    weights_B = row_weights(LENGTHS, ROLES, GROUP_SIZES, aggregation=aggregation, num_questions=2)
    assert weights_B.tolist() == pytest.approx(expected, rel=1e-12)


def test_row_weights_of_rows_that_do_not_learn_are_zero():
    roles = [RowRole.ROLLOUT, RowRole.ROLLOUT]
    for aggregation, expected in [("token_mean", 1 / 5), ("sequence_mean", 1 / 5), ("equation5", 1 / 10)]:
        weights_B = row_weights([5, 0], roles, [2, 2], aggregation=aggregation, num_questions=1)
        assert weights_B.tolist() == pytest.approx([expected, 0.0])
        assert row_weights([0], roles[:1], [2], aggregation=aggregation, num_questions=1).tolist() == [0.0]
    assert row_weights([], [], [], aggregation="token_mean", num_questions=1).tolist() == []


def test_demonstrations_weigh_like_rollouts_without_siblings():
    roles = [RowRole.DEMONSTRATION] * 2
    for aggregation, expected in [
        ("token_mean", [1 / 4, 1 / 4]),
        ("sequence_mean", [1 / 2, 1 / 6]),
        ("equation5", [1 / 2, 1 / 6]),
    ]:
        assert row_weights([1, 3], roles, [1, 1], aggregation=aggregation, num_questions=2).tolist() == pytest.approx(
            expected
        )


def test_mismatched_inputs_are_refused():
    with pytest.raises(UserError, match=r"logprobs \(2, 3\), old_logprobs \(2, 3\), advantages \(2, 1\)"):
        clipped_surrogate_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(UserError, match="shapes must be equal"):
        kl_penalty(torch.zeros(2), torch.zeros(3))
    with pytest.raises(UserError, match=r"logprobs \(2, 3\), reference_logprobs \(2, 1\)"):
        exact_kl(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(UserError, match="shapes must be equal"):
        importance_weights(torch.zeros(2), torch.zeros(3), cap=2.0)
    with pytest.raises(UserError, match="boolean"):
        zero_masked(torch.zeros(2), torch.ones(2))
    with pytest.raises(UserError, match="2 lengths, 1 roles, 2 group sizes"):
        row_weights([1, 1], [RowRole.ROLLOUT], [1, 1], aggregation="token_mean", num_questions=1)
    with pytest.raises(UserError, match="num_questions > 0"):
        row_weights([1], [RowRole.ROLLOUT], [1], aggregation="equation5", num_questions=0)
    nan = float("nan")
    for lengths, sizes, number in (([nan], [1], 1), ([1], [nan], 1), ([1], [1], nan)):
        with pytest.raises(UserError, match="lengths must be >= 0"):
            row_weights(lengths, [RowRole.ROLLOUT], sizes, aggregation="equation5", num_questions=number)


def test_bad_options_are_refused():
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="cap: expected a number > 0"):
            importance_weights(torch.zeros(1), torch.zeros(1), cap=cap)
    with pytest.raises(ConfigError, match=r"clip_low=-0\.1"):
        clipped_surrogate_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip_low=-0.1)
    with pytest.raises(ConfigError, match="aggregation"):
        row_weights([1], [RowRole.ROLLOUT], [1], aggregation="mean", num_questions=1)
