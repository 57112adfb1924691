"""Every option of [algorithm] is connected: in the step below, changing it changes plan, rows or gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.algo import assign_credit, plan_resampling
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.config import AlgorithmConfig, Config
from axpo.trainer.policy import Policy
from axpo.trainer.step import score_rows, train_step
from axpo.types import RolloutGroup, TrainingRow
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


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    torch.set_num_threads(1)
    built = Policy(
        Config.model_validate({"model": {"path": "x"}}).model,
        path=tiny_checkpoint,
        preprocessor=ImagePreprocessor.from_pretrained(tiny_checkpoint),
        store=ContentImageStore(),
        device=torch.device("cpu"),
        temperature=1.0,
        banned_token_ids=(0,),
        has_reference=True,
    )
    with torch.no_grad():  # away from the reference, so that the KL term has a gradient
        for parameter in built.trainable_parameters().values():
            parameter.mul_(1.1)
    return built


def observe(policy: Policy, config: AlgorithmConfig) -> tuple[list[str], tuple[TrainingRow, ...], list[float]]:
    """Plan, rows and gradient of one step under a configuration."""
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
    return [prefix.source.id for prefix in plan.prefixes], rows, step_gradient(policy, rows, config)


def step_gradient(policy: Policy, rows: tuple[TrainingRow, ...], algorithm: AlgorithmConfig) -> list[float]:
    """What `train_step` leaves behind for tokens that the engine sampled with other probabilities than the policy's."""
    generator = torch.Generator().manual_seed(0)
    sampled: list[TrainingRow] = []
    for row in score_rows(policy, rows, max_tokens=4096):
        noise_T = torch.randn(len(row.token_ids), generator=generator)
        engine_T = (torch.tensor(row.old_logprobs) + noise_T).clamp(max=0.0)
        sampled.append(replace(row, old_logprobs=None, behavior_logprobs=tuple(engine_T.tolist())))
    config = Config.model_validate(
        {"model": {"path": "x"}, "algorithm": algorithm, "train": {"learning_rate": 0.0, "max_grad_norm": 1e9}}
    )
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0)
    train_step(policy, optimizer, sampled, config=config, step=1, num_questions=len(GROUPS))
    return torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None]).tolist()


BASE: dict[str, Any] = {"resample_budget_frac": 0.5, "num_continuations": 4, "kl_coef": 0.1}
ALTERNATIVES: dict[str, Any] = {
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
    "old_logprobs": "trainer",
    "importance_cap": 2.0,
    "aggregation": "sequence_mean",
    "kl_coef": 0.0,
    "kl_estimator": "exact",
}
NEEDED = {"importance_cap": {"old_logprobs": "trainer"}}
"""What an option works with alone."""
PLAN_OPTIONS = {"resample_budget_frac", "num_continuations", "rank", "branch_at", "confidence_calls", "confidence_tags"}
ROW_OPTIONS = {"prefix_credit", "separate_groups", "advantage_std", "advantage_eps"}


def test_no_option_is_forgotten_here():
    assert set(ALTERNATIVES) == set(AlgorithmConfig.model_fields)


@pytest.mark.parametrize("option", ALTERNATIVES)
def test_changing_the_option_changes_what_it_should(policy: Policy, option: str):
    base = {**BASE, **NEEDED.get(option, {})}
    plan, rows, gradient = observe(policy, AlgorithmConfig(**base))
    other_plan, other_rows, other_gradient = observe(policy, AlgorithmConfig(**{**base, option: ALTERNATIVES[option]}))
    assert (plan != other_plan) == (option in PLAN_OPTIONS)
    assert (rows != other_rows) == (option in PLAN_OPTIONS | ROW_OPTIONS)
    assert gradient != other_gradient


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("advantage_std", ["sample", "population", "none"]),
        ("aggregation", ["token_mean", "sequence_mean", "equation5"]),
        ("importance_cap", [1.5, 2.0, 2.5]),
    ],
)
def test_all_three_choices_differ(policy: Policy, option: str, values: list[Any]):
    base = {**BASE, **NEEDED.get(option, {})}
    gradients = [tuple(observe(policy, AlgorithmConfig(**{**base, option: value}))[2]) for value in values]
    assert len(set(gradients)) == 3


def test_weights_need_the_trainer_s_own_probabilities():
    with pytest.raises(ValueError, match=r"algorithm\.importance_cap: .* set algorithm\.old_logprobs to trainer"):
        AlgorithmConfig(importance_cap=2.0)
