"""Whole training steps are those of the paper's equations, recomputed in `tests/plain_training.py`.

Loss, KL, gradient norm, clip fractions and updated weights of `train_step` are compared with plain transformers: rows
one by one, no padding, eager attention.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import Tensor

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
    RowRole,
    Segment,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
    ToolCall,
    ToolResult,
    TrainingRow,
)
from plain_training import (
    ADAM_EPS,
    BETAS,
    SEED,
    STEP,
    WARMUP_STEPS,
    WEIGHT_DECAY,
    PlainModel,
    PlainTrainer,
    at,
    expected_rows,
    row_of,
)

K = SegmentKind
LOOK = ToolCall(id="call", name="look")
ESTIMATORS = get_args(AlgorithmConfig.model_fields["kl_estimator"].annotation)
BANNED = (31, 32, 33)  # in addition to the image placeholder; no rollout of the test samples them

BASE: dict[str, Any] = {
    "algorithm": {"clip_low": 0.1, "clip_high": 0.3, "kl_coef": 0.5},
    "rollout": {"temperature": 0.7},
    "train": {"mini_batches": 2, "epochs": 2, "tokens_per_micro_batch": 90, "learning_rate": 0.003},
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
    "old log-probs of the trainer": {"algorithm": {"old_logprobs": "trainer"}},
    "capped importance weights": {"algorithm": {"old_logprobs": "trainer", "importance_cap": 1.1}},
    "capped weights, CISPO": {"algorithm": {"old_logprobs": "trainer", "importance_cap": 1.1, "loss": "cispo"}},
    "three mini-batches": {"algorithm": {"aggregation": "equation5"}, "train": {"mini_batches": 3, "epochs": 1}},
}


# -- a step of rollouts -----------------------------------------------------------------------------------------------


class World:
    """A random checkpoint, its images, and two questions whose rollouts it might have sampled."""

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
        self.images: dict[tuple[int, int], ImageRef] = {}
        pixels: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for height, width in ((2, 3), (3, 3)):
            noise = random.Random(height).randbytes(3 * 32 * 32 * height * width)
            image = Image.frombytes("RGB", (32 * width, 32 * height), noise)
            self.images[height, width] = self.store.add_image(image)
            patches = processor(images=[image], return_tensors="pt")
            pixels[height, width] = (patches["pixel_values"], patches["image_grid_thw"])
        self.plain = PlainModel(model=model.eval(), pixels=pixels)
        self.pad: int = model.config.image_token_id
        self.groups, self.branches = self.rollouts()

    def rollouts(self) -> tuple[list[RolloutGroup], list[ContinuationGroup]]:
        """A question with an image, of whose three failed calls two were resampled, and one with mixed rewards."""
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
        """Random text ids; a pair of numbers stands for the placeholders of the image with that merged grid."""
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
                    images.append(self.images[piece])
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

    def policy(self, config: Config, *, drift: float = 0.02) -> Policy:
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
                parameter.add_(torch.randn(parameter.shape, generator=generator) * drift)
        return policy

    def with_engine_logprobs(self, trainer: PlainTrainer) -> tuple[list[RolloutGroup], list[ContinuationGroup]]:
        """The step with log-probs of an engine that is up to half a nat away from the policy, so that clips bite."""
        sampled: dict[str, Rollout] = {}
        for group in (*self.groups, *self.branches):
            for rollout in group.rollouts:
                row = row_of(rollout, 0, None, 0.0, divisor=1)
                with torch.no_grad():
                    own = trainer.own(row).tolist()
                old = [0.0] * len(row.token_ids)
                for t, logprob in zip(row.learning, own, strict=True):
                    old[t] = logprob + 0.5 * math.sin(17 * t + row.token_ids[t])
                sampled[rollout.id] = replace(rollout, behavior_logprobs=tuple(old))
        groups = [replace(g, rollouts=tuple(sampled[r.id] for r in g.rollouts)) for g in self.groups]
        branches = [
            ContinuationGroup(
                prefix=replace(b.prefix, source=sampled[b.prefix.source.id]),
                rollouts=tuple(sampled[r.id] for r in b.rollouts),
            )
            for b in self.branches
        ]
        return groups, branches


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return World(Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("golden") / "checkpoint")))


def configured(changes: Mapping[str, Mapping[str, Any]]) -> Config:
    tables = {name: {**BASE.get(name, {}), **changes.get(name, {})} for name in {*BASE, *changes}}
    tables["model"] = {"path": "unused", **tables.get("model", {})}
    tables["train"] = {"warmup_steps": WARMUP_STEPS, **tables["train"]}
    return Config.model_validate({**tables, "run": {"seed": SEED}})


def learning_names(world: World, config: Config) -> set[str]:
    """The weights that learn without adapters."""
    names = {name for name, _ in world.plain.model.named_parameters()}
    return {name for name in names if not (config.model.freeze_vision and ".visual." in name)}


def run_both(world: World, config: Config) -> tuple[Policy, dict[str, Any], PlainTrainer]:
    policy = world.policy(config)
    vocab = range(world.plain.model.config.text_config.vocab_size)
    allowed = [token for token in vocab if token not in (*BANNED, world.pad)]
    start = {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}
    assert start.keys() == learning_names(world, config) or config.model.lora_rank
    expected = PlainTrainer(world.plain, config, start, allowed)
    groups, branches = world.with_engine_logprobs(expected)
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


def test_demonstrations_are_scored_at_temperature_1_over_all_ids(world: World) -> None:
    config = configured({"train": {"mini_batches": 1, "epochs": 1}})
    everything = range(world.plain.model.config.text_config.vocab_size)
    rollouts = [replace(r, token_ids=(*r.token_ids[:-1], BANNED[0])) for g in world.groups for r in g.rollouts]
    rows = [row_of(rollout, 0, None, 0.0, divisor=1) for rollout in rollouts]
    weights = dict(world.plain.model.named_parameters())
    losses: list[float] = []
    for row in rows:
        logprobs_NV = world.plain.logprobs(weights, row, temperature=1.0, allowed=everything)
        losses += (-at(logprobs_NV, torch.tensor([row.token_ids[t] for t in row.learning]))).tolist()
    demonstrations = [
        TrainingRow(
            id=rollout.id,
            role=RowRole.DEMONSTRATION,
            token_ids=rollout.token_ids,
            loss_mask=tuple(t in row.learning for t in range(len(rollout.token_ids))),
            advantages=(0.0,) * len(rollout.token_ids),
            behavior_logprobs=rollout.behavior_logprobs,
            images=rollout.images,
        )
        for rollout, row in zip(rollouts, rows, strict=True)
    ]
    policy = world.policy(config, drift=0.0)
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values())
    found = train_step(policy, optimizer, demonstrations, config=config, step=STEP, num_questions=len(rows))
    assert found["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_scores_after_a_step_use_the_images_of_the_new_weights(world: World) -> None:
    """Scoring without a gradient, as the weight hand-over does, keeps image features until the next step."""
    config = configured(CASES["learning vision tower"])
    policy = world.policy(config)
    rows = assign_credit(world.groups, [])[:1]
    mask_BT = torch.tensor([rows[0].loss_mask])

    def scores() -> Tensor:
        with torch.no_grad():
            return policy.logprobs(rows, mask_BT).logprobs_BT

    optimizer = torch.optim.AdamW(policy.trainable_parameters().values())
    before = scores()
    train_step(policy, optimizer, rows, config=config, step=STEP, num_questions=1)
    after = scores()
    torch.testing.assert_close(after, policy.logprobs(rows, mask_BT).logprobs_BT)
    assert not torch.equal(before, after)
