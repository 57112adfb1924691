"""What must not matter to an update: how rows are split, and whatever stands where nothing learns."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axpo.errors import NonFiniteError
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.config import Config
from axpo.trainer.policy import Policy
from axpo.trainer.step import split_micro_batches, split_mini_batches, train_step
from axpo.types import RowRole, TrainingRow

TEXT_IDS = range(40, 240)
ROLES = (RowRole.ROLLOUT, RowRole.PREFIX, RowRole.CONTINUATION)


def config_of(**train: Any) -> Config:
    """No update, no clipping: `train_step` leaves the whole gradient behind."""
    tables = {
        "model": {"path": "x"},
        "algorithm": {"kl_coef": 0.1, "aggregation": train.pop("aggregation", "token_mean")},
    }
    return Config.model_validate({**tables, "train": {"learning_rate": 0.0, "max_grad_norm": 1e9, **train}})


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    torch.set_num_threads(1)
    config = config_of()
    built = Policy(
        config.model,
        path=tiny_checkpoint,
        preprocessor=ImagePreprocessor.from_pretrained(tiny_checkpoint),
        store=ContentImageStore(),
        device=torch.device("cpu"),
        temperature=0.7,
        banned_token_ids=(0,),
        has_reference=True,
    )
    with torch.no_grad():  # away from the reference, so that the KL term has a gradient
        for parameter in built.trainable_parameters().values():
            parameter.mul_(1.01)
    return built


def gradients(
    policy: Policy, rows: list[TrainingRow], config: Config
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0)
    metrics = train_step(policy, optimizer, rows, config=config, step=1, num_questions=2)
    return metrics, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def rows_of(seed: int, number: int) -> list[TrainingRow]:
    rng = random.Random(seed)
    rows: list[TrainingRow] = []
    for index in range(number):
        length = rng.randint(4, 24)
        mask = [False] + [rng.random() < 0.6 for _ in range(length - 1)]
        rows.append(
            TrainingRow(
                id=f"r{index}",
                role=rng.choice(ROLES),
                token_ids=tuple(rng.choice(TEXT_IDS) for _ in range(length)),
                loss_mask=tuple(mask),
                advantages=tuple(rng.uniform(-2, 2) for _ in range(length)),
                behavior_logprobs=tuple(rng.uniform(-6.5, -5) for _ in range(length)),
                images=(),
                group_size=rng.choice([2, 8]),
            )
        )
    return rows


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale + 1e-9, name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 200),
    aggregation=st.sampled_from(["token_mean", "sequence_mean", "equation5"]),
)
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(
    policy: Policy, seed: int, tokens: int, aggregation: str
) -> None:
    rows = rows_of(seed, 7)
    whole, expected = gradients(policy, rows, config_of(aggregation=aggregation))
    split, found = gradients(policy, rows, config_of(aggregation=aggregation, tokens_per_micro_batch=tokens))
    assert split["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5, abs=1e-7)
    assert_equal(found, expected)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([float("nan"), float("inf"), -1e30, 7.0]))
def test_what_stands_at_masked_tokens_changes_neither_loss_nor_gradient(
    policy: Policy, seed: int, noise: float
) -> None:
    rows = [row for row in rows_of(seed, 4) if row.num_learning_tokens]
    changed = [_disturb(row, noise) for row in rows]
    whole, expected = gradients(policy, rows, config_of())
    disturbed, found = gradients(policy, changed, config_of())
    assert disturbed == whole
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def _disturb(row: TrainingRow, noise: float) -> TrainingRow:
    """Other numbers at every masked token, other ids after the last learning one (earlier ones are context)."""
    last = max(index for index, learns in enumerate(row.loss_mask) if learns)
    return replace(
        row,
        token_ids=tuple(id if index <= last else 300 - id for index, id in enumerate(row.token_ids)),
        advantages=tuple(a if learns else noise for a, learns in zip(row.advantages, row.loss_mask, strict=True)),
        behavior_logprobs=tuple(
            value if learns else noise for value, learns in zip(row.behavior_logprobs, row.loss_mask, strict=True)
        ),
    )


@given(number=st.integers(0, 40), num_mini_batches=st.integers(1, 12), seed=st.text(max_size=4))
def test_mini_batches_hold_every_row_once_and_are_nearly_equal(number: int, num_mini_batches: int, seed: str) -> None:
    rows = [replace(rows_of(0, 1)[0], id=str(index)) for index in range(number)]
    parts = split_mini_batches(rows, num_mini_batches=num_mini_batches, seed=seed)
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert len(parts) == min(number, num_mini_batches)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_the_rows(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}
    row = rows_of(1, 1)[0]
    bad = replace(row, advantages=(float("nan"),) * len(row.advantages))
    with pytest.raises(NonFiniteError, match=r"step 1: the loss is nan on rows r0; this update was not made"):
        gradients(policy, [bad], config_of(learning_rate=1.0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.trainable_parameters().items())


def test_a_gradient_that_overflows_stops_before_the_update_and_names_the_rows(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}
    row = rows_of(1, 1)[0]
    huge = replace(row, advantages=(1e30,) * len(row.advantages))
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient norm is inf on rows r0; this update was not made"):
        gradients(policy, [huge], config_of(learning_rate=1.0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.trainable_parameters().items())


def test_rows_in_which_nothing_learns_are_left_out(policy: Policy) -> None:
    rows = [row for row in rows_of(2, 4) if row.num_learning_tokens]
    silent = [replace(row, id=f"silent {row.id}", loss_mask=(False,) * len(row.loss_mask)) for row in rows]
    config = config_of(mini_batches=2)
    assert gradients(policy, [*silent, *rows], config)[0] == gradients(policy, rows, config)[0]


@given(seed=st.integers(0, 10**6), max_tokens=st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_at_most_their_tokens(seed: int, max_tokens: int) -> None:
    rows = rows_of(seed, 9)
    batches = list(split_micro_batches(rows, [1.0] * 9, max_tokens=max_tokens, device=torch.device("cpu")))
    assert sorted(row.id for batch in batches for row in batch.rows) == sorted(row.id for row in rows)
    assert all(batch.mask_BT.numel() <= max_tokens or len(batch.rows) == 1 for batch in batches)
    assert max_tokens < 24 * 9 or len(batches) == 1


def test_without_a_row_nothing_is_updated(policy: Policy) -> None:
    metrics, _ = gradients(policy, [], config_of(learning_rate=1.0))
    assert (metrics["train/rows"], metrics["train/updates"], metrics["train/loss"]) == (0, 0, None)
