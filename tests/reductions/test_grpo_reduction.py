"""GRPO is the same code with the resampling budget at zero."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.algo import group_relative_advantages
from axpo.cli.build import (
    build_engine,
    build_optimizer,
    build_parts,
    build_policy,
    build_rollout_setup,
    build_sync,
    load_train_problems,
)
from axpo.cli.main import main
from axpo.cli.overrides import load_config, split_overrides
from axpo.images import ContentImageStore
from axpo.rollout.collect import sample_groups
from axpo.trainer.checkpoint import restore_checkpoint
from axpo.trainer.sources import select_items
from axpo.trainer.step import train_step
from axpo.types import RolloutGroup, RowRole, TrainingRow
from workshop import numbers_of, words_of

NUM_STEPS = 5
GRPO: dict[str, Any] = {"algorithm__resample_budget_frac": 0}
OPTIONS: dict[str, Any] = {"train__steps": NUM_STEPS, "train__save_every": NUM_STEPS, "data__eval": ""}


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def grpo_rows(groups: tuple[RolloutGroup, ...]) -> list[TrainingRow]:
    """Plain GRPO, written out: every sampled token of a rollout learns with the rollout's own advantage."""
    rows: list[TrainingRow] = []
    for group in groups:
        advantages = group_relative_advantages([rollout.reward for rollout in group.rollouts]).tolist()
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            mask = [segment.kind.is_sampled for segment in rollout.segments for _ in range(len(segment))]
            rows.append(
                TrainingRow(
                    id=rollout.id,
                    role=RowRole.ROLLOUT,
                    token_ids=rollout.token_ids,
                    loss_mask=tuple(mask),
                    advantages=(advantage,) * len(mask),
                    behavior_logprobs=rollout.behavior_logprobs,
                    images=rollout.images,
                    group_size=len(group.rollouts),
                )
            )
    return rows


def train_grpo_by_hand(out: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after five steps of sampling, plain rows and updates; and how many questions AXPO would have taken."""
    words = words_of(**OPTIONS, **GRPO, run__output_dir=out)
    config = load_config(Path("config.toml"), split_overrides(words)[1])
    parts = build_parts(config, store=ContentImageStore(out))
    problems = load_train_problems(parts)
    policy = build_policy(parts, has_reference=True)
    optimizer = build_optimizer(policy, config)
    engine = build_engine(parts)
    setup = build_rollout_setup(parts, engine)
    sync = build_sync(parts, policy, engine, problems[0])
    num_triggered = 0
    sync.push(0)
    for step in range(1, NUM_STEPS + 1):
        num_questions = config.rollout.questions_per_step
        asked = select_items(problems, step=step, num_items=num_questions, seed=config.run.seed)
        sampling = sample_groups(
            asked, setup=setup, group_size=config.rollout.group_size, seed=config.run.seed, tag=f"step-{step}"
        )
        groups = asyncio.run(sampling).groups
        num_triggered += sum(group.is_triggered for group in groups)
        train_step(policy, optimizer, grpo_rows(groups), config=config, step=step, num_questions=num_questions)
        sync.push(step)
    engine.close()
    return {name: parameter.detach() for name, parameter in policy.trainable_parameters().items()}, num_triggered


def train_with_command(out: Path, **options: Any) -> dict[str, torch.Tensor]:
    assert main(["train", "config.toml", *words_of(**OPTIONS, **options, run__output_dir=out)]) == 0
    config = load_config(out / "config.toml")
    policy = build_policy(build_parts(config, store=ContentImageStore(out)), has_reference=False)
    restore_checkpoint(
        out / "checkpoints" / f"step-{NUM_STEPS:06d}", policy=policy, optimizer=build_optimizer(policy, config)
    )
    return {name: parameter.detach() for name, parameter in policy.trainable_parameters().items()}


def test_axpo_without_budget_is_grpo_bit_for_bit_over_five_updates(tmp_path: Path) -> None:
    by_hand, num_triggered = train_grpo_by_hand(tmp_path / "by_hand")
    assert num_triggered > 0, "AXPO would have had nothing to do: the test is too easy"
    # with no budget none of AXPO's own options may matter
    grpo = train_with_command(
        tmp_path / "grpo",
        **GRPO,
        algorithm__num_continuations=7,
        algorithm__rank="random",
        algorithm__prefix_credit="false",
        algorithm__separate_groups="false",
        algorithm__branch_at="last",
    )
    assert [name for name, weight in by_hand.items() if not torch.equal(weight, grpo[name])] == []

    axpo = train_with_command(tmp_path / "axpo")
    assert any(record["resample/used"] for record in numbers_of(tmp_path / "axpo"))
    assert any(not torch.equal(weight, axpo[name]) for name, weight in by_hand.items())
