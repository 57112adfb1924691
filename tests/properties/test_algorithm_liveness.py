"""Every option of [algorithm] is connected: in the step below, changing it changes plan, rows or loss."""

from __future__ import annotations

import pytest
import torch

from axpo.algo import (
    assign_credit,
    cispo_loss,
    clipped_surrogate_loss,
    kl_penalty,
    masked_sum,
    plan_resampling,
    row_weights,
)
from axpo.trainer.config import AlgorithmConfig
from axpo.types import RolloutGroup
from records import build_continuations, build_rollout

# The budget allows one prefix. By its first call `a` (0.38) is less sure than `b` (0.4), by its last call (0.9) and by
# both together (0.64) it is more sure. The tags (0.4 and 1.0) weigh less in the longer call of `b`:
# a (0.4 + 0.38 + 1) / 3 = 0.59, b (0.4 + 4 * 0.4 + 1) / 6 = 0.5.
GROUPS = [
    RolloutGroup(
        problem_id="q0",
        rollouts=(
            build_rollout("a", calls=[(0.38,), (0.9,)]),
            build_rollout("b", calls=[(0.4,) * 4]),
            build_rollout("c", reward=1.0),
            *(build_rollout(f"d{i}") for i in range(5)),
        ),
    )
]


def observe(config: AlgorithmConfig):
    """Plan, rows and loss of one step under a configuration."""
    plan = plan_resampling(
        GROUPS,
        budget_frac=config.resample_budget_frac,
        num_continuations=config.num_continuations,
        rank=config.rank,
        seed=0,
        branch_at=config.branch_at,
        calls=config.confidence_calls,
        tags=config.confidence_tags,
    )
    branches = [build_continuations(p, [1.0] + [0.0] * (plan.num_continuations - 1)) for p in plan.prefixes]
    rows = assign_credit(
        GROUPS,
        branches,
        std=config.advantage_std,
        eps=config.advantage_eps,
        prefix_credit=config.prefix_credit,
        separate_groups=config.separate_groups,
    )
    return [prefix.source.id for prefix in plan.prefixes], rows, loss_gradient(rows, config)


def loss_gradient(rows, config: AlgorithmConfig):
    """Gradient with respect to the log-probs of all rows, drawn around the behaviour policy's."""
    weights_B = row_weights(
        [row.num_learning_tokens for row in rows],
        [row.role for row in rows],
        [row.group_size for row in rows],
        aggregation=config.aggregation,
        num_questions=len(GROUPS),
    )
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for row, weight in zip(rows, weights_B, strict=True):
        old_BT = torch.tensor([row.behavior_logprobs])
        logprobs_BT = (old_BT + torch.randn(old_BT.shape, generator=generator)).requires_grad_()
        loss_fn = {"ppo_clip": clipped_surrogate_loss, "cispo": cispo_loss}[config.loss]
        advantages_BT, mask_BT = torch.tensor([row.advantages]), torch.tensor([row.loss_mask])
        loss_BT = loss_fn(
            logprobs_BT, old_BT, advantages_BT, clip_low=config.clip_low, clip_high=config.clip_high
        ) + config.kl_coef * kl_penalty(logprobs_BT, old_BT - 0.1, estimator=config.kl_estimator)
        (weight * masked_sum(loss_BT, mask_BT)).sum().backward()
        gradients += logprobs_BT.grad.flatten().tolist()
    return gradients


BASE = {"resample_budget_frac": 0.5, "num_continuations": 4, "kl_coef": 0.1}
ALTERNATIVES = {
    "resample_budget_frac": 0.0,
    "num_continuations": 2,
    "rank": "random",
    "branch_at": "last",
    "confidence_calls": "all",
    "confidence_tags": True,
    "prefix_credit": False,
    "separate_groups": False,
    "advantage_std": "population",
    "advantage_eps": 0.1,
    "loss": "cispo",
    "clip_low": 0.9,
    "clip_high": 4.0,
    "aggregation": "sequence_mean",
    "kl_coef": 0.0,
    "kl_estimator": "k1",
}
PLAN_OPTIONS = {"resample_budget_frac", "num_continuations", "rank", "branch_at", "confidence_calls", "confidence_tags"}
ROW_OPTIONS = {"prefix_credit", "separate_groups", "advantage_std", "advantage_eps"}


def test_no_option_is_forgotten_here():
    assert set(ALTERNATIVES) == set(AlgorithmConfig.model_fields)


@pytest.mark.parametrize("option", ALTERNATIVES)
def test_changing_the_option_changes_what_it_should(option):
    plan, rows, gradient = observe(AlgorithmConfig(**BASE))
    other_plan, other_rows, other_gradient = observe(AlgorithmConfig(**{**BASE, option: ALTERNATIVES[option]}))
    assert (plan != other_plan) == (option in PLAN_OPTIONS)
    assert (rows != other_rows) == (option in PLAN_OPTIONS | ROW_OPTIONS)
    assert gradient != other_gradient


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("advantage_std", ["sample", "population", "none"]),
        ("aggregation", ["token_mean", "sequence_mean", "equation5"]),
    ],
)
def test_all_three_choices_differ(option, values):
    gradients = [tuple(observe(AlgorithmConfig(**{**BASE, option: value}))[2]) for value in values]
    assert len(set(gradients)) == 3
