"""A training step by the equations of arXiv:2605.28774, with plain transformers and torch.

The expected side of `tests/golden/test_training_step.py`. Of axpo it reads only records and the configuration: it takes
rollouts apart by their segments, scores each row by itself (no padding, M-RoPE positions counted here), writes out
Eq. 2 to 6, merges LoRA adapters by hand, clips the gradient and applies AdamW.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from axpo.trainer.config import Config
from axpo.types import ContinuationGroup, Rollout, RolloutGroup, SegmentKind

K = SegmentKind
Weights = Mapping[str, Tensor]

SEED, STEP, WARMUP_STEPS = 3, 1, 4  # the first of four warm-up steps: a quarter of the peak learning rate
_SUMS = ("loss", "kl", "norm", "ratio", "low", "high", "entropy", "importance", "capped")
BETAS, ADAM_EPS, WEIGHT_DECAY = (0.9, 0.99), 1e-4, 0.1
"""The eps is large, so that rounding in a gradient near zero does not decide the sign of an update."""


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sequence, and the positions that learn in it with one advantage."""

    id: str
    token_ids: Sequence[int]
    old_logprobs: Sequence[float]
    learning: Sequence[int]
    advantage: float
    divisor: int
    """What Eq. 5 divides the row by: the siblings of an ordinary rollout, nothing for a prefix or continuation."""


def relative(rewards: Sequence[float], index: int) -> float:
    """(r - mean) / std with the defaults of the configuration: sample std, 1e-6 added."""
    return (rewards[index] - fmean(rewards)) / (stdev(rewards) + 1e-6)


def expected_rows(groups: Sequence[RolloutGroup], branches: Sequence[ContinuationGroup]) -> list[Row]:
    """The token table of the paper: siblings in order, then the continuations of the group's sources."""
    rows: list[Row] = []
    for group in groups:
        rewards = [rollout.reward for rollout in group.rollouts]
        chosen = {b.prefix.source.id: b for b in branches if b.prefix.source in group.rollouts}
        for index, rollout in enumerate(group.rollouts):
            if rollout.id not in chosen:
                rows.append(row_of(rollout, 0, None, relative(rewards, index), divisor=len(rewards)))
                continue
            branch = chosen[rollout.id]
            recovered = max(continuation.reward for continuation in branch.rollouts)  # Eq. 3
            replaced = [recovered if other == index else reward for other, reward in enumerate(rewards)]  # Eq. 4
            rows.append(row_of(rollout, 0, branch.prefix.num_tokens, relative(replaced, index), divisor=1))
        for branch in (chosen[rollout.id] for rollout in group.rollouts if rollout.id in chosen):
            own = [continuation.reward for continuation in branch.rollouts]  # Eq. 2
            for index, continuation in enumerate(branch.rollouts):
                rows.append(row_of(continuation, branch.prefix.num_tokens, None, relative(own, index), divisor=1))
    return rows


def row_of(rollout: Rollout, start: int, stop: int | None, advantage: float, *, divisor: int) -> Row:
    stop = len(rollout.token_ids) if stop is None else stop
    given = (K.PROMPT, K.TOOL_RESULT)
    sampled = [t for s in rollout.segments if s.kind not in given for t in range(s.start, s.stop)]
    return Row(
        id=rollout.id,
        token_ids=rollout.token_ids[:stop],
        old_logprobs=rollout.behavior_logprobs[:stop],
        learning=[t for t in sampled if start <= t < stop],
        advantage=advantage,
        divisor=divisor,
    )


# -- scores -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlainModel:
    """A checkpoint in plain transformers, and the images of the test's rows."""

    model: Any
    pixels: Mapping[tuple[int, int], tuple[Tensor, Tensor]]
    """Patches and grid of each image, by its height and width in merged patches."""

    def logprobs(self, weights: Weights, row: Row, *, temperature: float, allowed: Sequence[int]) -> Tensor:
        """[learning tokens, allowed ids]: log-probabilities of all allowed ids at each learning position."""
        pad = self.model.config.image_token_id
        columns, images = mrope_columns(row.token_ids, pad)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([row.token_ids]), "use_cache": False}
        inputs["position_ids"] = torch.tensor(columns).T[:, None]
        if images:
            patches, grids = zip(*(self.pixels[image] for image in images), strict=True)
            inputs |= {"pixel_values": torch.cat(patches), "image_grid_thw": torch.cat(grids)}
        logits_TV = functional_call(self.model, dict(weights), kwargs=inputs).logits[0]
        before = torch.tensor(row.learning) - 1
        return (logits_TV[before][:, list(allowed)] / temperature).log_softmax(dim=-1)


def mrope_columns(token_ids: Sequence[int], pad: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """(time, height, width) of each token, and the merged grid of each image, read off the runs of placeholders.

    The test's images are 2 x 3 and 3 x 3 merged patches, so a run of 6 or 9 placeholders says which one it is.
    """
    columns: list[tuple[int, int, int]] = []
    images: list[tuple[int, int]] = []
    position = 0
    for is_image, run in itertools.groupby(token_ids, key=lambda token: token == pad):
        number = len(list(run))
        if is_image:
            height, width = number // 3, 3
            images.append((height, width))
            columns += [(position, position + y, position + x) for y in range(height) for x in range(width)]
            position += max(height, width)
        else:
            columns += [(position + i,) * 3 for i in range(number)]
            position += number
    return columns, images


def merge_adapters(base: Weights, adapters: Weights, *, scale: float) -> dict[str, Tensor]:
    """W + scale * B A for every adapted W."""
    merged: dict[str, Tensor] = {}
    for name, down in adapters.items():
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").split(".lora_A.")[0] + ".weight"
            merged[weight] = base[weight] + scale * adapters[name.replace("lora_A", "lora_B")] @ down
    return merged


# -- loss and update --------------------------------------------------------------------------------------------------


def k3(policy_NV: Tensor, reference_NV: Tensor, sampled_N: Tensor) -> Tensor:
    gap = at(reference_NV, sampled_N) - at(policy_NV, sampled_N)
    return gap.exp() - 1 - gap


def exact(policy_NV: Tensor, reference_NV: Tensor, _: Tensor) -> Tensor:
    return (policy_NV.exp() * (policy_NV - reference_NV)).sum(dim=1)


KL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"k3": k3, "exact": exact}
"""Reference formula of each `algorithm.kl_estimator`: whole distributions and the sampled ids to nats per token."""


def at(logprobs_NV: Tensor, sampled_N: Tensor) -> Tensor:
    return logprobs_NV.gather(1, sampled_N[:, None])[:, 0]


class PlainTrainer:
    """The update of one step, row by row."""

    def __init__(self, plain: PlainModel, config: Config, start: Weights, allowed: Sequence[int]) -> None:
        self.plain, self.config, self.allowed = plain, config, allowed
        self.parameters = {name: weight.clone().requires_grad_() for name, weight in start.items()}
        self.reference = {name: weight.detach() for name, weight in plain.model.named_parameters()}
        self.moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in start.items()}
        self.sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        self.num_tokens = self.num_updates = 0
        self.recomputed: dict[str, Tensor] = {}
        """By row: log-probs of the sampled tokens under the weights of the start of the step."""
        self.gaps: list[float] = []

    def weights(self) -> Weights:
        model = self.config.model
        if not model.lora_rank:
            return self.parameters
        return merge_adapters(self.reference, self.parameters, scale=model.lora_alpha / model.lora_rank)

    def scores(self, weights: Weights, row: Row) -> Tensor:
        temperature = self.config.rollout.temperature
        return self.plain.logprobs(weights, row, temperature=temperature, allowed=self.allowed)

    def train(self, rows: Sequence[Row], *, num_questions: int) -> None:
        train = self.config.train
        if self.config.algorithm.old_logprobs == "trainer":
            with torch.no_grad():
                self.recomputed = {row.id: self.own(row) for row in rows}
        for epoch in range(train.epochs):
            order = list(rows)
            if train.mini_batches > 1:
                random.Random(f"{SEED}/{STEP}/{epoch}").shuffle(order)
            bounds = [len(order) * part // train.mini_batches for part in range(train.mini_batches + 1)]
            for start, stop in itertools.pairwise(bounds):
                self.update(order[start:stop], num_questions / train.mini_batches)

    def sampled(self, row: Row) -> Tensor:
        """Index of each sampled token among the allowed ids."""
        return torch.tensor([self.allowed.index(row.token_ids[t]) for t in row.learning])

    def own(self, row: Row) -> Tensor:
        return at(self.scores(self.weights(), row), self.sampled(row))

    def update(self, rows: Sequence[Row], num_questions: float) -> None:
        """One optimizer step on a mini-batch."""
        share = {
            "token_mean": lambda row: sum(len(row.learning) for row in rows),
            "sequence_mean": lambda row: len(rows) * len(row.learning),
            "equation5": lambda row: num_questions * row.divisor * len(row.learning),
        }[self.config.algorithm.aggregation]
        for parameter in self.parameters.values():
            parameter.grad = None
        for row in rows:
            loss = self.loss(row) / share(row)
            loss.backward()
            self.sums["loss"] += loss.item()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters.values() if p.grad is not None))
        self.sums["norm"] += norm
        self.num_updates += 1
        self.adamw(scale=min(1.0, self.config.train.max_grad_norm / norm))

    def loss(self, row: Row) -> Tensor:
        """Eq. 6 summed over the learning tokens of a row."""
        algorithm = self.config.algorithm
        sampled_N = self.sampled(row)
        engine_N = torch.tensor([row.old_logprobs[t] for t in row.learning])
        old_N = self.recomputed.get(row.id, engine_N)
        policy_NV = self.scores(self.weights(), row)
        logprobs_N = at(policy_NV, sampled_N)
        ratio_N = (logprobs_N - old_N).exp()
        clipped_N = ratio_N.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
        if algorithm.loss == "cispo":
            loss_N = -clipped_N.detach() * row.advantage * logprobs_N
        else:
            loss_N = -torch.minimum(ratio_N * row.advantage, clipped_N * row.advantage)
        if algorithm.importance_cap:
            weight_N = (old_N - engine_N).exp()
            loss_N = weight_N.clamp(max=algorithm.importance_cap) * loss_N
            self.sums["importance"] += weight_N.clamp(max=algorithm.importance_cap).sum().item()
            self.sums["capped"] += int((weight_N > algorithm.importance_cap).sum())
        if algorithm.kl_coef:
            with torch.no_grad():
                reference_NV = self.scores(self.reference, row)
            kl_N = KL[algorithm.kl_estimator](policy_NV, reference_NV, sampled_N)
            loss_N = loss_N + algorithm.kl_coef * kl_N
            self.sums["kl"] += kl_N.sum().item()
        self.count(row, logprobs_N.detach() - old_N, policy_NV.detach())
        if self.num_updates == 0:
            self.gaps += (logprobs_N.detach() - engine_N).abs().tolist()
        return loss_N.sum()

    def count(self, row: Row, gap_N: Tensor, policy_NV: Tensor) -> None:
        algorithm, ratio_N = self.config.algorithm, gap_N.exp()
        is_cispo = algorithm.loss == "cispo"
        self.num_tokens += len(gap_N)
        self.sums["entropy"] -= (policy_NV.exp() * policy_NV).sum().item()
        self.sums["ratio"] += ratio_N.sum().item()
        if is_cispo or row.advantage < 0:
            self.sums["low"] += int((ratio_N < 1 - algorithm.clip_low).sum())
        if is_cispo or row.advantage > 0:
            self.sums["high"] += int((ratio_N > 1 + algorithm.clip_high).sum())

    @torch.no_grad()
    def adamw(self, *, scale: float) -> None:
        rate = self.config.train.learning_rate * STEP / WARMUP_STEPS
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradient = scale * parameter.grad
                first, second = self.moments[name]
                first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
                second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.square())
                mean = first / (1 - BETAS[0] ** self.num_updates)
                scatter = (second / (1 - BETAS[1] ** self.num_updates)).sqrt()
                parameter.sub_(rate * (mean / (scatter + ADAM_EPS) + WEIGHT_DECAY * parameter))

    def metrics(self) -> dict[str, float]:
        algorithm, some = self.config.algorithm, dict[str, float]()
        if algorithm.kl_coef:
            some["train/kl"] = self.sums["kl"] / self.num_tokens
        if algorithm.importance_cap:
            some["train/importance_mean"] = self.sums["importance"] / self.num_tokens
            some["train/importance_capped"] = self.sums["capped"] / self.num_tokens
        return some | {
            "train/loss": self.sums["loss"] / self.num_updates,
            "train/grad_norm": self.sums["norm"] / self.num_updates,
            "train/ratio_mean": self.sums["ratio"] / self.num_tokens,
            "train/clip_frac_low": self.sums["low"] / self.num_tokens,
            "train/clip_frac_high": self.sums["high"] / self.num_tokens,
            "train/entropy": self.sums["entropy"] / self.num_tokens,
            "train/updates": self.num_updates,
            "tokens/trained": self.num_tokens,
            "engine/logprob_gap_mean": fmean(self.gaps),
            "engine/logprob_gap_max": max(self.gaps),
        }
