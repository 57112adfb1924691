"""One step: rows -> mini-batches -> micro-batches -> loss, gradient, update.

The loss of a mini-batch is `sum_B weights_B * sum_T mask_BT * loss_BT`, its weights computed over all of its rows
before it is split, so micro-batches change memory and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from axpo.algo.losses import (
    cispo_loss,
    clipped_surrogate_loss,
    cross_entropy_loss,
    importance_weights,
    kl_penalty,
    masked_sum,
    row_weights,
)
from axpo.errors import NonFiniteError
from axpo.trainer.config import AlgorithmConfig, Config
from axpo.trainer.schedule import learning_rate
from axpo.types import RowRole, TrainingRow

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from axpo.trainer.policy import Policy

Metrics = dict[str, float | int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass, padded on the right. Masked positions hold zeros, whatever the rows hold there."""

    rows: tuple[TrainingRow, ...]
    weights_B: Tensor
    """Weight of one learning token of each row, over the whole mini-batch."""
    mask_BT: Tensor
    advantages_BT: Tensor
    behavior_logprobs_BT: Tensor
    """The engine's, as it sampled the tokens."""
    old_logprobs_BT: Tensor
    """Denominator of the policy's ratio: the trainer's own where the rows have them, else the engine's."""

    @classmethod
    def from_rows(cls, rows: Sequence[TrainingRow], weights: Sequence[float], *, device: torch.device) -> MicroBatch:
        """Pad rows to the longest."""
        shape = (len(rows), max(len(row.token_ids) for row in rows))
        mask_BT = torch.zeros(shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            mask_BT[index, : len(row.loss_mask)] = torch.tensor(row.loss_mask)

        def pad(values: Iterable[Sequence[float]]) -> Tensor:
            padded_BT = torch.zeros(shape)
            for index, values_T in enumerate(values):
                mask_T = mask_BT[index, : len(values_T)]
                padded_BT[index, : len(values_T)][mask_T] = torch.tensor(values_T)[mask_T]
            return padded_BT.to(device)

        return cls(
            rows=tuple(rows),
            weights_B=torch.tensor(weights, device=device),
            mask_BT=mask_BT.to(device),
            advantages_BT=pad(row.advantages for row in rows),
            behavior_logprobs_BT=pad(row.behavior_logprobs for row in rows),
            old_logprobs_BT=pad(row.old_logprobs or row.behavior_logprobs for row in rows),
        )

    @property
    def is_demonstration(self) -> bool:
        """Supervised rows; they never share a step with rollouts."""
        return self.rows[0].role is RowRole.DEMONSTRATION


def train_step(
    policy: Policy,
    optimizer: Optimizer,
    rows: Sequence[TrainingRow],
    *,
    config: Config,
    step: int,
    num_questions: int,
) -> Metrics:
    """Update the policy on the rows of step `step` and return the `train/` and `engine/` metrics.

    Old log-probs are the engine's or, with `algorithm.old_logprobs = "trainer"`, the policy's own before the first
    update; they stay the same over mini-batches and epochs. Rows without a learning token are left out; without any row
    nothing is updated. Raises `NonFiniteError` before a bad update reaches the weights.
    """
    rate = learning_rate(
        step,
        num_steps=config.train.steps,
        peak=config.train.learning_rate,
        schedule=config.train.schedule,
        warmup_steps=config.train.warmup_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    policy.forget_images()
    rows = [row for row in rows if row.num_learning_tokens]
    if config.algorithm.old_logprobs == "trainer":
        rows = score_rows(policy, rows, max_tokens=config.train.tokens_per_micro_batch)
    totals = _Totals()
    for epoch in range(config.train.epochs):
        seed = f"{config.run.seed}/{step}/{epoch}"
        mini_batches = split_mini_batches(rows, num_mini_batches=config.train.mini_batches, seed=seed)
        share = num_questions / max(1, len(mini_batches))
        for mini_batch in mini_batches:
            _update(policy, optimizer, mini_batch, config=config, step=step, num_questions=share, totals=totals)
    return {**totals.metrics(), "train/learning_rate": rate, "train/rows": len(rows)}


def score_rows(policy: Policy, rows: Sequence[TrainingRow], *, max_tokens: int) -> list[TrainingRow]:
    """The rows in the same order, with the log-probs of the policy as it is now; demonstrations stay without."""
    scored: dict[str, tuple[float, ...]] = {}
    sampled = [row for row in rows if row.role is not RowRole.DEMONSTRATION]
    for batch in split_micro_batches(sampled, [0.0] * len(sampled), max_tokens=max_tokens, device=policy.device):
        logprobs_BT = policy.constant_logprobs(batch.rows, batch.mask_BT).tolist()
        for row, logprobs_T in zip(batch.rows, logprobs_BT, strict=True):
            scored[row.id] = tuple(logprobs_T[: len(row.token_ids)])
    return [dataclasses.replace(row, old_logprobs=scored.get(row.id)) for row in rows]


def split_mini_batches(
    rows: Sequence[TrainingRow], *, num_mini_batches: int, seed: str
) -> tuple[tuple[TrainingRow, ...], ...]:
    """Shuffle and split into nearly equal parts, none of them empty, no row left out."""
    shuffled = list(rows)
    if num_mini_batches > 1:
        random.Random(seed).shuffle(shuffled)
    num_parts = min(num_mini_batches, len(shuffled))
    bounds = [len(shuffled) * part // num_parts for part in range(num_parts + 1)] if num_parts else [0]
    return tuple(tuple(shuffled[start:stop]) for start, stop in itertools.pairwise(bounds))


def split_micro_batches(
    rows: Sequence[TrainingRow], weights: Sequence[float], *, max_tokens: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Rows of similar length together, at most `max_tokens` padded tokens each; a longer row goes alone."""
    # Longest first: the peak of memory comes at once, not at the end of a step.
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].token_ids))
    start = 0
    while start < len(order):
        num_rows = max(1, max_tokens // len(rows[order[start]].token_ids))
        chosen = order[start : start + num_rows]
        yield MicroBatch.from_rows([rows[i] for i in chosen], [weights[i] for i in chosen], device=device)
        start += num_rows


def _update(
    policy: Policy,
    optimizer: Optimizer,
    rows: Sequence[TrainingRow],
    *,
    config: Config,
    step: int,
    num_questions: float,
    totals: _Totals,
) -> None:
    weights_B = row_weights(
        [row.num_learning_tokens for row in rows],
        [row.role for row in rows],
        [row.group_size for row in rows],
        aggregation=config.algorithm.aggregation,
        num_questions=num_questions,
    )
    micro_batches = split_micro_batches(
        rows, weights_B.tolist(), max_tokens=config.train.tokens_per_micro_batch, device=policy.device
    )
    optimizer.zero_grad(set_to_none=True)
    for batch in micro_batches:
        loss = _batch_loss(policy, batch, config.algorithm, totals)
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {step}: the loss is {loss.item()} on {_names(batch.rows)}; this update was not made"
            )
        torch.autograd.backward(loss)
    parameters = list(policy.trainable_parameters().values())
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm))
    if not math.isfinite(grad_norm):
        raise NonFiniteError(
            f"step {step}: the gradient norm is {grad_norm} on {_names(rows)}; this update was not made"
        )
    optimizer.step()
    totals.end_update(grad_norm)


def _batch_loss(policy: Policy, batch: MicroBatch, algorithm: AlgorithmConfig, totals: _Totals) -> Tensor:
    has_kl = algorithm.kl_coef > 0 and not batch.is_demonstration
    scores = policy.logprobs(
        batch.rows,
        batch.mask_BT,
        is_demonstration=batch.is_demonstration,
        with_exact_kl=has_kl and algorithm.kl_estimator == "exact",
    )
    kl_BT = scores.divergence_BT
    if has_kl and kl_BT is None:
        kl_BT = kl_penalty(scores.logprobs_BT, policy.reference_logprobs(batch.rows, batch.mask_BT))
    if batch.is_demonstration:
        loss_BT = cross_entropy_loss(scores.logprobs_BT)
    else:
        loss_BT = _policy_loss(scores.logprobs_BT, batch, algorithm)
    if kl_BT is not None:
        loss_BT = loss_BT + algorithm.kl_coef * kl_BT
    loss = (batch.weights_B * masked_sum(loss_BT, batch.mask_BT)).sum()
    with torch.no_grad():
        totals.add(
            batch, algorithm, loss=loss, logprobs_BT=scores.logprobs_BT, entropy_BT=scores.entropy_BT, kl_BT=kl_BT
        )
    return loss


def _policy_loss(logprobs_BT: Tensor, batch: MicroBatch, algorithm: AlgorithmConfig) -> Tensor:
    surrogate_loss = {"ppo_clip": clipped_surrogate_loss, "cispo": cispo_loss}[algorithm.loss]
    loss_BT = surrogate_loss(
        logprobs_BT,
        batch.old_logprobs_BT,
        batch.advantages_BT,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
    )
    if algorithm.importance_cap == 0:
        return loss_BT
    return loss_BT * importance_weights(batch.old_logprobs_BT, batch.behavior_logprobs_BT, cap=algorithm.importance_cap)


def _names(rows: Sequence[TrainingRow]) -> str:
    names = ", ".join(row.id for row in rows[:4])
    return f"rows {names}" + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")


@dataclass(slots=True)
class _Totals:
    """Sums over the learning tokens of a step, one entry per forward pass of a token."""

    num_tokens: int = 0
    num_updates: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    maxima: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    grad_norms: list[float] = field(default_factory=lambda: list[float]())
    num_first_tokens: int = 0
    """Tokens scored before the first update, where engine and trainer hold the same weights."""

    def add(
        self,
        batch: MicroBatch,
        algorithm: AlgorithmConfig,
        *,
        loss: Tensor,
        logprobs_BT: Tensor,
        entropy_BT: Tensor,
        kl_BT: Tensor | None,
    ) -> None:
        """Count one micro-batch."""
        num_tokens = int(batch.mask_BT.sum())
        self.num_tokens += num_tokens
        self._add("loss", loss)
        self._add("entropy", entropy_BT[batch.mask_BT].sum())
        if kl_BT is not None:
            self._add("kl", kl_BT[batch.mask_BT].sum())
        if batch.is_demonstration:
            return
        gap_N = (logprobs_BT - batch.behavior_logprobs_BT)[batch.mask_BT]
        advantages_N = batch.advantages_BT[batch.mask_BT]
        ratio_N = (logprobs_BT - batch.old_logprobs_BT)[batch.mask_BT].exp()
        # PPO's minimum lets the clip act on one side only; CISPO's weight is clipped whatever the sign.
        is_cispo = algorithm.loss == "cispo"
        self._add("ratio", ratio_N.sum())
        self._add("clip_low", ((ratio_N < 1 - algorithm.clip_low) & ((advantages_N < 0) | is_cispo)).sum())
        self._add("clip_high", ((ratio_N > 1 + algorithm.clip_high) & ((advantages_N > 0) | is_cispo)).sum())
        self._raise("ratio", ratio_N.max())
        if algorithm.importance_cap > 0:
            weights_N = (batch.old_logprobs_BT - batch.behavior_logprobs_BT)[batch.mask_BT].exp()
            self._add("importance", weights_N.clamp(max=algorithm.importance_cap).sum())
            self._add("importance_capped", (weights_N > algorithm.importance_cap).sum())
        if self.num_updates == 0:
            self.num_first_tokens += num_tokens
            self._add("gap", gap_N.abs().sum())
            self._raise("gap", gap_N.abs().max())

    def end_update(self, grad_norm: float) -> None:
        """Count one optimiser step."""
        self.num_updates += 1
        self.grad_norms.append(grad_norm)

    def metrics(self) -> Metrics:
        """Means over tokens, over updates for the loss and the gradient norm; None without anything to count."""
        return {
            "train/loss": self._mean("loss", self.num_updates),
            "train/grad_norm": sum(self.grad_norms) / len(self.grad_norms) if self.grad_norms else None,
            "train/entropy": self._mean("entropy", self.num_tokens),
            "train/kl": self._mean("kl", self.num_tokens),
            "train/ratio_mean": self._mean("ratio", self.num_tokens),
            "train/ratio_max": self.maxima.get("ratio"),
            "train/clip_frac_low": self._mean("clip_low", self.num_tokens),
            "train/clip_frac_high": self._mean("clip_high", self.num_tokens),
            "train/importance_mean": self._mean("importance", self.num_tokens),
            "train/importance_capped": self._mean("importance_capped", self.num_tokens),
            "train/updates": self.num_updates,
            "tokens/trained": self.num_tokens,
            "engine/logprob_gap_mean": self._mean("gap", self.num_first_tokens),
            "engine/logprob_gap_max": self.maxima.get("gap"),
        }

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def _raise(self, name: str, value: Tensor) -> None:
        self.maxima[name] = max(self.maxima.get(name, -math.inf), float(value))

    def _mean(self, name: str, count: int) -> float | None:
        return self.sums[name] / count if count and name in self.sums else None
