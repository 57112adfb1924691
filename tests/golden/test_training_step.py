"""Whole training steps, recomputed from the paper's equations with plain transformers and torch.

The expected side uses no code of `axpo.algo`, `axpo.models` or `axpo.trainer`. It takes rollouts apart by their
segments, scores each row by itself (no padding, eager attention, M-RoPE positions counted here), writes out Eq. 2 to 6
of arXiv:2605.28774, merges LoRA adapters by hand, clips the gradient and applies AdamW.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.func import functional_call

from axpo.algo import assign_credit
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.config import AlgorithmConfig, Config
from axpo.trainer.policy import Policy
from axpo.trainer.step import train_step
from axpo.types import (
    Content,
    ContinuationGroup,
    ImageRef,
    PrefixRef,
    Rollout,
    RolloutGroup,
    Segment,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
    ToolCall,
    ToolResult,
)

K = SegmentKind
LOOK = ToolCall(id="call", name="look")
Weights = Mapping[str, Tensor]

SEED, STEP, WARMUP_STEPS = 3, 1, 4  # the first of four warm-up steps: a quarter of the peak learning rate
BETAS, ADAM_EPS, WEIGHT_DECAY = (0.9, 0.99), 1e-4, 0.1
"""The eps is large, so that rounding in a gradient near zero does not decide the sign of an update."""
BANNED = (31, 32, 33)  # in addition to the image placeholder; no rollout of the test samples them

BASE: dict[str, Any] = {
    "algorithm": {"clip_low": 0.1, "clip_high": 0.3, "kl_coef": 0.5},
    "rollout": {"temperature": 0.7},
    "train": {"mini_batches": 2, "epochs": 2, "tokens_per_micro_batch": 90, "learning_rate": 0.02},
}
CASES: dict[str, dict[str, Any]] = {
    "token mean": {},
    "sequence mean": {"algorithm": {"aggregation": "sequence_mean"}},
    "equation 5": {"algorithm": {"aggregation": "equation5"}},
    "CISPO": {"algorithm": {"loss": "cispo"}},
    "wide below, narrow above": {"algorithm": {"clip_low": 0.5, "clip_high": 0.05}},
    "no reference": {"algorithm": {"kl_coef": 0.0}},
    "LoRA": {"model": {"lora_rank": 2, "lora_alpha": 6}},
    "learning vision tower": {"model": {"freeze_vision": False}},
    "temperature 1, no update limit": {"rollout": {"temperature": 1.0}, "train": {"max_grad_norm": 1e6}},
    "one update, one row per forward": {"train": {"mini_batches": 1, "epochs": 1, "tokens_per_micro_batch": 1}},
    "three mini-batches": {"algorithm": {"aggregation": "equation5"}, "train": {"mini_batches": 3, "epochs": 1}},
}


# -- the expected side: rows ------------------------------------------------------------------------------------------


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


# -- the expected side: scores ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlainModel:
    """The checkpoint in plain transformers, with the pictures of the test's rows by where they are in a rollout."""

    model: Any
    pixels: Mapping[tuple[int, int], tuple[Tensor, Tensor]]
    """Patches and grid of a picture by the two numbers of placeholders that it needs: one merged grid each."""

    def logprobs(self, weights: Weights, row: Row, *, temperature: float, allowed: Sequence[int]) -> Tensor:
        """[learning tokens, allowed ids]: log-probabilities of all allowed ids at each learning position."""
        pad = self.model.config.image_token_id
        columns, pictures = mrope_columns(row.token_ids, pad)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([row.token_ids]), "use_cache": False}
        inputs["position_ids"] = torch.tensor(columns).T[:, None]
        if pictures:
            patches, grids = zip(*(self.pixels[picture] for picture in pictures), strict=True)
            inputs |= {"pixel_values": torch.cat(patches), "image_grid_thw": torch.cat(grids)}
        logits_TV = functional_call(self.model, dict(weights), kwargs=inputs).logits[0]
        before = torch.tensor(row.learning) - 1
        return (logits_TV[before][:, list(allowed)] / temperature).log_softmax(dim=-1)


def mrope_columns(token_ids: Sequence[int], pad: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """(time, height, width) of each token, and the merged grid of each picture, read off the runs of placeholders.

    The test's pictures are 2 x 3 and 3 x 3 merged patches, so a run of 6 or 9 placeholders says which one it is.
    """
    columns: list[tuple[int, int, int]] = []
    pictures: list[tuple[int, int]] = []
    at = 0
    for is_picture, run in itertools.groupby(token_ids, key=lambda token: token == pad):
        number = len(list(run))
        if is_picture:
            height, width = number // 3, 3
            pictures.append((height, width))
            columns += [(at, at + y, at + x) for y in range(height) for x in range(width)]
            at += max(height, width)
        else:
            columns += [(at + i,) * 3 for i in range(number)]
            at += number
    return columns, pictures


def merge_adapters(base: Weights, adapters: Weights, *, scale: float) -> dict[str, Tensor]:
    """W + scale * B A for every adapted W."""
    merged: dict[str, Tensor] = {}
    for name, down in adapters.items():
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").split(".lora_A.")[0] + ".weight"
            merged[weight] = base[weight] + scale * adapters[name.replace("lora_A", "lora_B")] @ down
    return merged


# -- the expected side: loss and update -------------------------------------------------------------------------------


def k3(policy_NV: Tensor, reference_NV: Tensor, sampled_N: Tensor) -> Tensor:
    gap = at(reference_NV, sampled_N) - at(policy_NV, sampled_N)
    return gap.exp() - 1 - gap


def k1(policy_NV: Tensor, reference_NV: Tensor, sampled_N: Tensor) -> Tensor:
    return at(policy_NV, sampled_N) - at(reference_NV, sampled_N)


KL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"k1": k1, "k3": k3}
"""Reference formula of each `algorithm.kl_estimator`: whole distributions and the sampled ids to nats per token."""
ESTIMATORS = get_args(AlgorithmConfig.model_fields["kl_estimator"].annotation)


def at(logprobs_NV: Tensor, sampled_N: Tensor) -> Tensor:
    return logprobs_NV.gather(1, sampled_N[:, None])[:, 0]


class PlainTrainer:
    """The update of one step, row by row."""

    def __init__(self, plain: PlainModel, config: Config, start: Weights, allowed: Sequence[int]) -> None:
        self.plain, self.config, self.allowed = plain, config, allowed
        self.parameters = {name: weight.clone().requires_grad_() for name, weight in start.items()}
        self.reference = {name: weight.detach() for name, weight in plain.model.named_parameters()}
        self.moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in start.items()}
        self.sums: dict[str, float] = dict.fromkeys(("loss", "kl", "norm", "ratio", "low", "high", "entropy"), 0.0)
        self.num_tokens = self.num_updates = 0
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
        for epoch in range(train.epochs):
            order = list(rows)
            if train.mini_batches > 1:
                random.Random(f"{SEED}/{STEP}/{epoch}").shuffle(order)
            bounds = [len(order) * part // train.mini_batches for part in range(train.mini_batches + 1)]
            for start, stop in itertools.pairwise(bounds):
                self.update(order[start:stop], num_questions / train.mini_batches)

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
        sampled_N = torch.tensor([self.allowed.index(row.token_ids[t]) for t in row.learning])
        old_N = torch.tensor([row.old_logprobs[t] for t in row.learning])
        policy_NV = self.scores(self.weights(), row)
        logprobs_N = at(policy_NV, sampled_N)
        ratio_N = (logprobs_N - old_N).exp()
        clipped_N = ratio_N.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
        if algorithm.loss == "cispo":
            loss_N = -clipped_N.detach() * row.advantage * logprobs_N
        else:
            loss_N = -torch.minimum(ratio_N * row.advantage, clipped_N * row.advantage)
        if algorithm.kl_coef:
            with torch.no_grad():
                reference_NV = self.scores(self.reference, row)
            kl_N = KL[algorithm.kl_estimator](policy_NV, reference_NV, sampled_N)
            loss_N = loss_N + algorithm.kl_coef * kl_N
            self.sums["kl"] += kl_N.sum().item()
        self.count(row, logprobs_N.detach() - old_N, policy_NV.detach())
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
        if self.num_updates == 0:
            self.gaps += gap_N.abs().tolist()

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
        kl = {"train/kl": self.sums["kl"] / self.num_tokens} if self.config.algorithm.kl_coef else {}
        return kl | {
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


# -- a step of rollouts -----------------------------------------------------------------------------------------------


class World:
    """A random checkpoint, its pictures, and two questions whose rollouts it might have sampled."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.checkpoint = checkpoint
        model: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # a fresh initialization is so even that a mistake would hardly show
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model.save_pretrained(checkpoint)
        self.store = ContentImageStore()
        processor: Any = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.pictures: dict[tuple[int, int], ImageRef] = {}
        pixels: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for height, width in ((2, 3), (3, 3)):
            random.seed(height)
            image = Image.frombytes("RGB", (32 * width, 32 * height), random.randbytes(3 * 32 * 32 * height * width))
            self.pictures[height, width] = self.store.add_image(image)
            patches = processor(images=[image], return_tensors="pt")
            pixels[height, width] = (patches["pixel_values"], patches["image_grid_thw"])
        self.plain = PlainModel(model=model.eval(), pixels=pixels)
        self.pad: int = model.config.image_token_id
        self.groups, self.branches = self.rollouts()

    def rollouts(self) -> tuple[list[RolloutGroup], list[ContinuationGroup]]:
        """A question with a picture, of whose three failed calls two were resampled, and one with mixed rewards."""
        asked = [(K.PROMPT, (4, (2, 3), 3)), (K.THINKING, (4,)), (K.TOOL_OPEN, (1,))]
        call = [(K.TOOL_CALL, (3,)), (K.TOOL_CLOSE, (1,)), (K.TEXT, (1,)), (K.TOOL_RESULT, (2, (3, 3), 2))]
        answer = [(K.THINKING, (2,)), (K.ANSWER, (3,))]
        plain = [(K.PROMPT, (5,)), (K.THINKING, (3,)), (K.ANSWER, (4,))]
        tool = [self.rollout(f"a/{i}", [*asked, *call, *answer], reward=0.0) for i in range(3)]
        no_tool = [self.rollout(f"a/{i}", [asked[0], *answer], reward=float(i == 3)) for i in (3, 4)]
        other = [self.rollout(f"b/{i}", plain, reward=float(i < 2)) for i in range(3)]
        branches: list[ContinuationGroup] = []
        for source, rewards in ((tool[1], (0.0, 1.0, 0.0)), (tool[0], (0.0, 0.0, 0.0))):
            cut = next(s.stop for s in source.segments if s.kind is K.TOOL_OPEN)
            continuations = [
                self.rollout(f"{source.id}+{i}", [*asked, *call, *answer], reward=reward, source=source, cut=cut)
                for i, reward in enumerate(rewards)
            ]
            prefix = ThinkingPrefix(source=source, num_tokens=cut, confidence=0.5)
            branches.append(ContinuationGroup(prefix=prefix, rollouts=tuple(continuations)))
        groups = [("a", [*tool, *no_tool]), ("b", other)]
        return [RolloutGroup(problem_id=name, rollouts=tuple(members)) for name, members in groups], branches

    def rollout(
        self, name: str, parts: Sequence[Any], *, reward: float, source: Rollout | None = None, cut: int = 0
    ) -> Rollout:
        """Random text ids; a pair of numbers stands for the placeholders of the picture with that merged grid."""
        rng = random.Random(name)
        ids: list[int] = []
        segments: list[Segment] = []
        images: list[ImageRef] = []
        for kind, pieces in parts:
            start = len(ids)
            for piece in pieces:
                if isinstance(piece, int):
                    ids += [rng.randrange(40, 200) for _ in range(piece)]
                else:
                    ids += [self.pad] * (piece[0] * piece[1])
                    images.append(self.pictures[piece])
            segments.append(Segment(kind=kind, start=start, stop=len(ids)))
        if source is not None:
            ids[:cut] = source.token_ids[:cut]
        return Rollout(
            id=name,
            problem_id=name[0],
            token_ids=tuple(ids),
            behavior_logprobs=(0.0,) * len(ids),
            segments=tuple(segments),
            images=tuple(images),
            stop_reason=StopReason.ANSWERED,
            final_text="",
            reward=reward,
            tool_results=tuple(ToolResult(call=LOOK, content=(Content(image=image),)) for image in images[1:]),
            prefix=PrefixRef(source_id=source.id, num_tokens=cut) if source is not None else None,
        )

    def policy(self, config: Config) -> Policy:
        """The trainer's model, moved away from the checkpoint, so that the reference is another policy."""
        policy = Policy(
            config.model,
            path=self.checkpoint,
            preprocessor=ImagePreprocessor.from_pretrained(self.checkpoint),
            store=self.store,
            device=torch.device("cpu"),
            temperature=config.rollout.temperature,
            banned_token_ids=(*BANNED, self.pad),
            has_reference=config.algorithm.kl_coef > 0,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.trainable_parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        return policy

    def behaved(self, trainer: PlainTrainer) -> tuple[list[RolloutGroup], list[ContinuationGroup]]:
        """The step with log-probs of an engine that is up to half a nat away from the policy, so that clips bite."""
        behaved: dict[str, Rollout] = {}
        for group in (*self.groups, *self.branches):
            for rollout in group.rollouts:
                row = row_of(rollout, 0, None, 0.0, divisor=1)
                sampled_N = torch.tensor([trainer.allowed.index(row.token_ids[t]) for t in row.learning])
                with torch.no_grad():
                    own = at(trainer.scores(trainer.weights(), row), sampled_N).tolist()
                old = [0.0] * len(row.token_ids)
                for t, logprob in zip(row.learning, own, strict=True):
                    old[t] = logprob + 0.5 * math.sin(17 * t + row.token_ids[t])
                behaved[rollout.id] = replace(rollout, behavior_logprobs=tuple(old))
        groups = [replace(g, rollouts=tuple(behaved[r.id] for r in g.rollouts)) for g in self.groups]
        branches = [
            ContinuationGroup(
                prefix=replace(b.prefix, source=behaved[b.prefix.source.id]),
                rollouts=tuple(behaved[r.id] for r in b.rollouts),
            )
            for b in self.branches
        ]
        return groups, branches


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    torch.set_num_threads(1)
    yield World(Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("golden") / "checkpoint")))


def configured(changes: Mapping[str, Mapping[str, Any]]) -> Config:
    tables = {name: {**BASE.get(name, {}), **changes.get(name, {})} for name in {*BASE, *changes}}
    tables["model"] = {"path": "unused", **tables.get("model", {})}
    tables["train"] = {"warmup_steps": WARMUP_STEPS, **tables["train"]}
    return Config.model_validate({**tables, "run": {"seed": SEED}})


def run_both(world: World, config: Config) -> tuple[Policy, dict[str, Any], PlainTrainer]:
    policy = world.policy(config)
    vocab = range(world.plain.model.config.text_config.vocab_size)
    allowed = [token for token in vocab if token not in (*BANNED, world.pad)]
    start = {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}
    expected = PlainTrainer(world.plain, config, start, allowed)
    groups, branches = world.behaved(expected)
    optimizer = torch.optim.AdamW(
        policy.trainable_parameters().values(), betas=BETAS, eps=ADAM_EPS, weight_decay=WEIGHT_DECAY
    )
    rows = assign_credit(groups, branches)
    found = train_step(policy, optimizer, rows, config=config, step=STEP, num_questions=len(groups))
    expected.train(expected_rows(groups, branches), num_questions=len(groups))
    return policy, found, expected


def assert_equal(policy: Policy, found: Mapping[str, Any], expected: PlainTrainer) -> None:
    metrics = expected.metrics()
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, rel=5e-5, abs=1e-6)
    parameters = policy.trainable_parameters()
    assert parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(parameters[name], parameter, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_equations(world: World, case: str) -> None:
    policy, found, expected = run_both(world, configured(CASES[case]))
    assert_equal(policy, found, expected)
    assert min(found["train/clip_frac_low"], found["train/clip_frac_high"]) > 0, "no clip bites: the test is too easy"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_kl_estimator_is_its_formula(world: World, estimator: str) -> None:
    assert_equal(*run_both(world, configured({"algorithm": {"kl_estimator": estimator}})))
