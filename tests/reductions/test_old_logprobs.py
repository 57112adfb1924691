"""Old log-probs from the trainer: an engine that agrees changes nothing; otherwise each token has its exact weight."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.config import Config
from axpo.trainer.policy import Policy
from axpo.trainer.step import score_rows, train_step
from axpo.types import RowRole, TrainingRow

LENGTHS = (12, 7, 9, 5)


def build_policy(path: Path, **model: Any) -> Policy:
    torch.set_num_threads(1)
    return Policy(
        Config.model_validate({"model": {"path": "x", **model}}).model,
        path=path,
        preprocessor=ImagePreprocessor.from_pretrained(path),
        store=ContentImageStore(),
        device=torch.device("cpu"),
        temperature=0.7,
        banned_token_ids=(0,),
        has_reference=True,
    )


def rows_of(policy: Policy, *, engine_gap: float = 0.0, advantages: tuple[float, ...] = (1.0, -1.0, 0.5, -0.5)) -> list:
    """Rows whose tokens the engine sampled with the trainer's log-probs plus `engine_gap`."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        TrainingRow(
            id=f"r{index}",
            role=RowRole.ROLLOUT,
            token_ids=tuple(torch.randint(40, 240, (length,), generator=generator).tolist()),
            loss_mask=(False, *[True] * (length - 1)),
            advantages=(advantage,) * length,
            behavior_logprobs=(-1.0,) * length,
            images=(),
            group_size=4,
        )
        for index, (length, advantage) in enumerate(zip(LENGTHS, advantages, strict=True))
    ]
    scored = score_rows(policy, rows, max_tokens=16384)
    return [
        replace(row, old_logprobs=None, behavior_logprobs=tuple(value + engine_gap for value in row.old_logprobs or ()))
        for row in scored
    ]


def step(policy: Policy, rows: list[TrainingRow], *, train: dict[str, Any] | None = None, **algorithm: Any) -> Any:
    """Metrics, and the gradients of the last update."""
    tables = {
        "model": {"path": "x"},
        "algorithm": algorithm,
        "train": {"learning_rate": 0.0, "max_grad_norm": 1e9, **(train or {})},
    }
    config = Config.model_validate(tables)
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0)
    metrics = train_step(policy, optimizer, rows, config=config, step=1, num_questions=1)
    return metrics, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"importance_cap": 2.0}, {"loss": "cispo", "importance_cap": 1.0}])
@pytest.mark.parametrize("kl_estimator", ["k3", "exact"])
def test_an_engine_that_agrees_with_the_trainer_changes_no_bit(
    tiny_checkpoint: Path, options: dict[str, Any], kl_estimator: str
) -> None:
    # several updates that move the weights, on micro-batches of one row, so that padding is the same in every pass
    train = {"learning_rate": 1e-3, "mini_batches": 2, "epochs": 2, "tokens_per_micro_batch": 1}
    outcomes = []
    for old_logprobs, chosen in (("engine", {"loss": options.get("loss", "ppo_clip")}), ("trainer", options)):
        policy = build_policy(tiny_checkpoint)
        metrics, gradients = step(
            policy,
            rows_of(policy),
            train=train,
            kl_coef=0.1,
            kl_estimator=kl_estimator,
            old_logprobs=old_logprobs,
            **chosen,
        )
        weights = {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}
        outcomes.append((metrics, gradients, weights))
    (engine, engine_gradients, engine_weights), (trainer, trainer_gradients, trainer_weights) = outcomes
    assert engine["train/ratio_max"] > 1.0  # the updates did move the policy
    assert {key: value for key, value in trainer.items() if "importance" not in key} == {
        key: value for key, value in engine.items() if "importance" not in key
    }
    for name in engine_gradients:
        assert torch.equal(trainer_gradients[name], engine_gradients[name]), name
        assert torch.equal(trainer_weights[name], engine_weights[name]), name


# The engine gives each token 1/3 or 3/2 of the trainer's probability: weights min(3, cap) and min(2/3, cap).
@pytest.mark.parametrize(
    ("factor", "cap", "weight", "capped"), [(1 / 3, 4.0, 3.0, 0.0), (1 / 3, 2.0, 2.0, 1.0), (3 / 2, 2.0, 2 / 3, 0.0)]
)
def test_the_weight_multiplies_each_token_s_loss_and_gradient(
    tiny_checkpoint: Path, factor: float, cap: float, weight: float, capped: float
) -> None:
    policy = build_policy(tiny_checkpoint)
    rows = rows_of(policy, engine_gap=log(factor), advantages=(1.0, 1.0, 1.0, -1.0))
    plain, plain_gradients = step(policy, rows, kl_coef=0.0, old_logprobs="trainer")
    weighted, gradients = step(policy, rows, kl_coef=0.0, old_logprobs="trainer", importance_cap=cap)
    num_tokens, num_negative = sum(LENGTHS) - 4, LENGTHS[3] - 1
    mean_advantage = (num_tokens - 2 * num_negative) / num_tokens
    assert plain["train/loss"] == pytest.approx(-mean_advantage, rel=1e-5)  # every ratio is 1
    assert weighted["train/loss"] == pytest.approx(-weight * mean_advantage, rel=1e-5)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], weight * gradient, rtol=1e-3, atol=1e-6)
    assert (plain["train/importance_mean"], plain["train/importance_capped"]) == (None, None)
    assert weighted["train/importance_mean"] == pytest.approx(weight, rel=1e-5)
    assert weighted["train/importance_capped"] == capped
    for metrics in (plain, weighted):  # the gap between engine and trainer is logged whatever the ratio starts from
        assert metrics["train/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["engine/logprob_gap_mean"] == pytest.approx(abs(log(factor)), rel=1e-4)


def test_the_weight_leaves_the_kl_term_alone(tiny_checkpoint: Path) -> None:
    policy = build_policy(tiny_checkpoint)
    rows = rows_of(policy, engine_gap=-log(2), advantages=(0.0,) * 4)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.mul_(1.05)
    options = {"kl_coef": 0.1, "old_logprobs": "trainer"}
    plain, weighted = step(policy, rows, **options)[0], step(policy, rows, **options, importance_cap=2.0)[0]
    assert plain["train/loss"] == weighted["train/loss"] == pytest.approx(0.1 * plain["train/kl"], rel=1e-5) != 0


def test_demonstrations_are_not_scored_again(tiny_checkpoint: Path) -> None:
    policy = build_policy(tiny_checkpoint)
    rows = [replace(row, role=RowRole.DEMONSTRATION) for row in rows_of(policy)]
    assert step(policy, rows, old_logprobs="trainer")[0] == step(policy, rows)[0]


def test_scoring_keeps_no_image_features_that_the_update_outdates(tiny_checkpoint: Path) -> None:
    from PIL import Image

    for freeze_vision, kept in ((True, 1), (False, 0)):
        policy = build_policy(tiny_checkpoint, freeze_vision=freeze_vision)
        cache = policy._features
        image = cache._store.add_image(Image.new("RGB", (64, 64)))
        config = policy._model.config
        ids = (*[config.image_token_id] * cache.preprocessor.num_tokens(image), 50, 60)
        row = replace(
            rows_of(policy)[0],
            token_ids=ids,
            loss_mask=(*[False] * (len(ids) - 1), True),
            advantages=(1.0,) * len(ids),
            behavior_logprobs=(-1.0,) * len(ids),
            images=(image,),
        )
        score_rows(policy, [row], max_tokens=100)
        assert len(cache._cached) == kept
