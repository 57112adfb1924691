"""The policy against its reference: which one it is, and how far away by plain transformers and dense softmax."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import axpo.cli.build as cli_build
import axpo.models.qwen3_vl as qwen3_vl
from axpo.errors import CheckpointError
from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.config import Config
from axpo.trainer.policy import Policy
from axpo.trainer.step import train_step
from axpo.types import RowRole, TrainingRow

CPU = torch.device("cpu")
TEMPERATURE, BANNED = 0.7, (3, 4, 5)
STORE = ContentImageStore()
needs_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # it asks for the old name


def build_policy(path: Path, *, reference_path: Path | None = None, **model: Any) -> Policy:
    torch.set_num_threads(1)
    return Policy(
        Config.model_validate({"model": {"path": "x", **model}}).model,
        path=path,
        preprocessor=ImagePreprocessor.from_pretrained(path),
        store=STORE,
        device=CPU,
        temperature=TEMPERATURE,
        banned_token_ids=BANNED,
        has_reference=True,
        reference_path=reference_path,
    )


def move(policy: Policy) -> None:
    """Away from the reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def other_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights of the language model and the same vision tower."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("other") / "model"))
    weights = load_file(folder / "model.safetensors")
    moved = {name: tensor if ".visual." in name else tensor * 1.1 for name, tensor in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rows_of(lengths: tuple[int, ...] = (9, 6)) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(1)
    return [
        TrainingRow(
            id=f"r{index}",
            role=RowRole.ROLLOUT,
            token_ids=tuple(torch.randint(40, 240, (length,), generator=generator).tolist()),
            loss_mask=(False, False, *[True] * (length - 2)),
            advantages=(1.0,) * length,
            behavior_logprobs=(-5.0,) * length,
            images=(),
            group_size=2,
        )
        for index, length in enumerate(lengths)
    ]


def mask_of(rows: list[TrainingRow]) -> Tensor:
    width = max(len(row.token_ids) for row in rows)
    return torch.tensor([[*row.loss_mask, *[False] * (width - len(row.loss_mask))] for row in rows])


def dense_logprobs(model: Any, row: TrainingRow) -> Tensor:
    """[T - 1, V] by plain transformers: entry t is about token t + 1."""
    logits_TV = model(input_ids=torch.tensor([row.token_ids]), use_cache=False).logits[0, :-1].float()
    logits_TV[:, list(BANNED)] = -1e30  # a probability of exactly zero without infinities
    return (logits_TV / TEMPERATURE).log_softmax(-1)


def dense_kl(model: Any, reference: Any, row: TrainingRow) -> Tensor:
    """[T - 1]"""
    logprobs_TV = dense_logprobs(model, row)
    with torch.no_grad():
        reference_TV = dense_logprobs(reference, row)
    return (logprobs_TV.exp() * (logprobs_TV - reference_TV)).sum(-1)


# -- exact divergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_exact_kl_and_its_gradient_are_those_of_the_dense_computation(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    policy = build_policy(tiny_checkpoint)
    move(policy)
    if chunk_size is not None:
        vocab_size = policy._model.config.text_config.vocab_size
        monkeypatch.setattr(qwen3_vl, "LOGITS_PER_CHUNK", chunk_size * vocab_size)
    rows, plain = rows_of(), copy.deepcopy(policy._model).requires_grad_(True)
    reference = load_model(tiny_checkpoint, dtype="float32", device=CPU)
    mask_BT = mask_of(rows)
    weights_BT = torch.rand(mask_BT.shape, generator=torch.Generator().manual_seed(2)) * mask_BT

    found_BT = policy.logprobs(rows, mask_BT, with_exact_kl=True).divergence_BT
    assert found_BT is not None
    (weights_BT * found_BT).sum().backward()
    total = torch.zeros(())
    for index, row in enumerate(rows):
        kl_T = dense_kl(plain, reference, row)
        stop = len(row.token_ids)
        torch.testing.assert_close(found_BT[index, 2:stop], kl_T[1:], rtol=1e-4, atol=1e-6)
        assert not found_BT[index, :2].any() and not found_BT[index, stop:].any()
        total = total + (weights_BT[index, 1:stop] * kl_T).sum()
    total.backward()
    assert found_BT.max() > 0.01

    expected = dict(plain.named_parameters())
    for name, parameter in policy.trainable_parameters().items():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in policy._reference.parameters())


def test_exact_kl_in_bfloat16_is_close_in_value_and_gradient(tiny_checkpoint: Path) -> None:
    outcomes: list[tuple[Tensor, Tensor]] = []
    for dtype in ("float32", "bfloat16"):
        policy = build_policy(tiny_checkpoint, dtype=dtype)
        move(policy)
        rows = rows_of()
        found_BT = policy.logprobs(rows, mask_of(rows), with_exact_kl=True).divergence_BT
        assert found_BT is not None
        found_BT.sum().backward()
        parameters = policy.trainable_parameters().values()
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        outcomes.append((found_BT.detach(), gradient))
    (exact_BT, exact), (rounded_BT, rounded) = outcomes
    assert rounded_BT.sum() == pytest.approx(exact_BT.sum().item(), rel=0.1)
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=0) > 0.98


@needs_peft
def test_exact_kl_of_adapters_is_relative_to_the_model_without_them(tiny_checkpoint: Path) -> None:
    pytest.importorskip("peft")
    policy = build_policy(tiny_checkpoint, lora_rank=2)
    rows = rows_of()
    fresh_BT = policy.logprobs(rows, mask_of(rows), with_exact_kl=True).divergence_BT
    assert fresh_BT is not None and fresh_BT.abs().max() < 1e-5
    move(policy)
    merged = load_model(tiny_checkpoint, dtype="float32", device=CPU)
    merged.load_state_dict(dict(policy.engine_weights()), strict=False)
    reference = load_model(tiny_checkpoint, dtype="float32", device=CPU)
    found_BT = policy.logprobs(rows, mask_of(rows), with_exact_kl=True).divergence_BT
    assert found_BT is not None and found_BT.max() > 0.01
    for index, row in enumerate(rows):
        expected_T = dense_kl(merged, reference, row)[1:]
        torch.testing.assert_close(found_BT[index, 2 : len(row.token_ids)], expected_T, rtol=1e-3, atol=1e-5)


def test_a_step_adds_the_exact_kl_to_its_loss_and_logs_it(tiny_checkpoint: Path) -> None:
    policy = build_policy(tiny_checkpoint)
    move(policy)
    reference = load_model(tiny_checkpoint, dtype="float32", device=CPU)
    rows = [replace(row, advantages=(0.0,) * len(row.token_ids)) for row in rows_of()]  # nothing but the KL term
    with torch.no_grad():
        kl = torch.cat([dense_kl(policy._model, reference, row)[1:] for row in rows]).mean().item()
    config = Config.model_validate(
        {
            "model": {"path": "x"},
            "algorithm": {"kl_coef": 0.5, "kl_estimator": "exact"},
            "train": {"learning_rate": 0.0},
        }
    )
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=0.0)
    metrics = train_step(policy, optimizer, rows, config=config, step=1, num_questions=1)
    assert metrics["train/kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["train/loss"] == pytest.approx(0.5 * kl, rel=1e-4)


# -- reference of another checkpoint ----------------------------------------------------------------------------------


def reference_logprobs(policy: Policy, rows: list[TrainingRow]) -> Tensor:
    return policy.reference_logprobs(rows, mask_of(rows))


def with_image(row: TrainingRow, policy: Policy) -> TrainingRow:
    """The row with a picture in front."""
    image = STORE.add_image(Image.effect_noise((96, 64), 90).convert("RGB"))
    num_tokens = policy._features.preprocessor.num_tokens(image)
    config = policy._model.config
    ids = (config.vision_start_token_id, *[config.image_token_id] * num_tokens, config.vision_end_token_id)
    zeros = (0.0,) * len(ids)
    return replace(
        row,
        token_ids=ids + row.token_ids,
        loss_mask=(False,) * len(ids) + row.loss_mask,
        advantages=zeros + row.advantages,
        behavior_logprobs=zeros + row.behavior_logprobs,
        images=(image,),
    )


@needs_peft
@pytest.mark.parametrize("options", [{}, {"freeze_vision": False}, {"lora_rank": 2}])
def test_reference_path_is_what_the_policy_is_compared_with(
    tiny_checkpoint: Path, other_checkpoint: Path, options: dict[str, Any]
) -> None:
    if "lora_rank" in options:
        pytest.importorskip("peft")
    policy = build_policy(tiny_checkpoint, reference_path=other_checkpoint, **options)
    own, other = build_policy(tiny_checkpoint, **options), build_policy(other_checkpoint)
    rows = [with_image(rows_of()[0], policy)]
    found_BT = reference_logprobs(policy, rows)
    assert torch.equal(found_BT, reference_logprobs(other, rows))
    assert (found_BT - reference_logprobs(own, rows)).abs().max() > 0.01
    move(policy)  # the reference is fixed
    policy.forget_images()
    assert torch.equal(reference_logprobs(policy, rows), found_BT)
    kl_BT = policy.logprobs(rows, mask_of(rows), with_exact_kl=True).divergence_BT
    assert kl_BT is not None and kl_BT.max() > 0.01


def test_an_equal_frozen_vision_tower_is_shared_another_one_is_not(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    policy = build_policy(tiny_checkpoint, reference_path=other_checkpoint)
    assert policy._reference.model.visual is policy._model.model.visual
    learning = build_policy(tiny_checkpoint, reference_path=other_checkpoint, freeze_vision=False)
    assert learning._reference.model.visual is not learning._model.model.visual

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "seeing"))
    weights = {name: tensor * 1.5 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    policy = build_policy(tiny_checkpoint, reference_path=folder)
    rows = [with_image(rows_of()[0], policy)]
    assert torch.equal(reference_logprobs(policy, rows), reference_logprobs(build_policy(folder), rows))


def test_a_reference_of_another_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def changed(name: str, file: str, change: Any) -> Path:
        folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / name))
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))
        return folder

    larger = changed("larger", "config.json", lambda c: c["text_config"].update(num_hidden_layers=3))
    with pytest.raises(
        CheckpointError, match=r"larger: not the same model as .*num_hidden_layers is 3 there and 2 here"
    ):
        build_policy(tiny_checkpoint, reference_path=larger)

    def rename_token(content: Any) -> None:
        content["added_tokens"][-1]["content"] = "<tool>"

    renamed = changed("renamed", "tokenizer.json", rename_token)
    with pytest.raises(CheckpointError, match=r"renamed: its tokenizer differs .* token '</think>' has id None there"):
        build_policy(tiny_checkpoint, reference_path=renamed)
    with pytest.raises(CheckpointError, match="nowhere"):
        build_policy(tiny_checkpoint, reference_path=tmp_path / "nowhere")

    written = changed("written", "config.json", lambda c: c.update(transformers_version="4.57", dtype="bfloat16"))
    build_policy(tiny_checkpoint, reference_path=written)


def test_the_command_line_passes_the_reference_on(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    paths = {"path": str(tiny_checkpoint), "reference_path": str(other_checkpoint)}
    config = Config.model_validate({"model": paths, "data": {"tools": []}, "run": {"device": "cpu"}})
    parts = cli_build.build_parts(config, store=ContentImageStore(tmp_path))
    rows = rows_of()
    policy = cli_build.build_policy(parts, has_reference=True)
    same = replace(parts, config=Config.model_validate({"model": {"path": str(other_checkpoint)}}))
    other = cli_build.build_policy(replace(same, model_path=other_checkpoint), has_reference=True)
    assert torch.equal(reference_logprobs(policy, rows), reference_logprobs(other, rows))
    assert cli_build.build_policy(parts, has_reference=False)._reference is None
