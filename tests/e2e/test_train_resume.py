"""A run goes on to the same numbers, whatever it learns with; its checkpoints are ordinary ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from axpo.cli.main import main
from axpo.models.preprocessing import ImagePreprocessor
from workshop import numbers_of, read_jsonl, rollouts_of, words_of

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "mini_batches_epochs_and_decay": {
        "train__mini_batches": 3,
        "train__epochs": 2,
        "train__weight_decay": 0.1,
        "train__tokens_per_micro_batch": 600,
        "algorithm__loss": "cispo",
    },
    "vision_and_checkpointing": {"model__freeze_vision": "false", "model__gradient_checkpointing": "true"},
    "lora_in_bfloat16": {"model__lora_rank": 4, "model__dtype": "bfloat16", "train__learning_rate": 1e-2},
}


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def train(out: Path, *words: str, **options: Any) -> None:
    assert main(["train", "config.toml", *words, *words_of(run__output_dir=out, **options)]) == 0


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "trainer.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, variant: str) -> None:
    options = VARIANTS[variant]
    train(tmp_path / "whole", **options)
    train(tmp_path / "halves", **options, train__steps=2)
    train(tmp_path / "halves", "--resume", **options)

    whole, halves = numbers_of(tmp_path / "whole"), numbers_of(tmp_path / "halves")
    assert [(r["kind"], r["step"]) for r in whole] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4)
    ]  # fmt: skip
    assert any(record.get("resample/used") for record in whole), "nothing was resampled: the test is too easy"
    assert any(record.get("train/grad_norm") for record in whole), "nothing was learnt: the test is too easy"
    assert halves == whole
    assert rollouts_of(tmp_path / "halves") == rollouts_of(tmp_path / "whole")
    expected, found = weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "halves", 4)
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize("variant", ["defaults", "lora_in_bfloat16"])
def test_engine_and_trainer_agree_and_a_checkpoint_is_one_of_transformers(tmp_path: Path, variant: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    options = VARIANTS[variant]
    train(tmp_path / "run", **options, train__steps=2, data__eval="")
    limit = {"defaults": 1e-4, "lora_in_bfloat16": 0.03}[variant]
    gaps = [record["engine/logprob_gap_mean"] for record in numbers_of(tmp_path / "run")]
    assert len(gaps) == 2 and max(gaps) < limit
    assert all(record["sync/canary_gap"] < limit for record in numbers_of(tmp_path / "run"))

    folder = tmp_path / "run" / "checkpoints" / "step-000002" / "model"
    dtype = torch.bfloat16 if variant == "lora_in_bfloat16" else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == dtype
    assert "<tool_call>" in AutoTokenizer.from_pretrained(folder).get_vocab()
    learnt, start = model.state_dict(), load_file(Path("model/model.safetensors"))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(learnt[name], start[name].to(dtype)), "the checkpoint holds the weights of the start"
    vision = "model.visual.patch_embed.proj.weight"
    assert torch.equal(learnt[vision], start[vision].to(dtype))
    if variant == "defaults":
        assert torch.equal(learnt[name], weights_of(tmp_path / "run", 2)[f"master.{name}"])


def test_a_checkpoint_remembers_how_large_its_pictures_were(tmp_path: Path) -> None:
    train(tmp_path / "run", train__steps=1, model__max_image_px=4096)
    words = words_of(run__output_dir=tmp_path / "run")
    assert main(["eval", "config.toml", "--checkpoint", str(tmp_path / "run"), *words]) == 0
    (alone,) = numbers_of(tmp_path / "run-eval")
    (in_training,) = [record for record in numbers_of(tmp_path / "run") if record["kind"] == "eval"]
    assert alone == {**in_training, "step": 0}
    model = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    assert ImagePreprocessor.from_pretrained(model).max_pixels == 4096


def test_best_is_the_highest_score_and_last_the_newest(tmp_path: Path) -> None:
    train(tmp_path / "run", train__eval_every=1)
    folder = tmp_path / "run" / "checkpoints"
    scores = {r["step"]: r["eval/pass@1"] for r in numbers_of(tmp_path / "run") if r["kind"] == "eval"}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (folder / "best").read_text() == f"step-{best:06d}\n"
    assert (folder / "last").read_text() == "step-000004\n"
    kept = {path.name for path in folder.glob("step-*")}
    assert kept == {f"step-{best:06d}", "step-000003", "step-000004"}


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run", train__steps=1)
    before = numbers_of(tmp_path / "run")
    train(tmp_path / "run", "--resume", train__steps=1)
    assert numbers_of(tmp_path / "run") == before


def test_an_evaluation_scores_the_checkpoint_it_is_given(tmp_path: Path) -> None:
    train(tmp_path / "run", train__eval_every=4)
    words = words_of(run__output_dir=tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000004"
    assert main(["eval", "config.toml", "--checkpoint", str(checkpoint), *words]) == 0
    (alone,) = numbers_of(tmp_path / "run-eval")
    (in_training,) = [record for record in numbers_of(tmp_path / "run") if record["kind"] == "eval"]
    assert alone == {**in_training, "step": 0}
    found = read_jsonl(tmp_path / "run-eval" / "rollouts" / "eval-000000.jsonl")
    assert {line["phase"] for line in found} == {"eval"} and all(line["credit"] == [] for line in found)


def test_a_checkpoint_in_the_published_layout_trains_and_evaluates_with_the_zoom_tool(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    options = {"rollout__max_response_tokens": 12, "eval__max_response_tokens": 12, "train__steps": 2}
    train(tmp_path / "run", **options, model__path=tiny_checkpoint, data__tools='["image_zoom_in"]')
    kinds = [(record["kind"], record["step"]) for record in numbers_of(tmp_path / "run")]
    assert kinds == [("train", 1), ("train", 2), ("eval", 2)]
    assert max(record.get("engine/logprob_gap_mean", 0.0) for record in numbers_of(tmp_path / "run")) < 1e-4


def test_fine_tuning_resumes_bit_for_bit_too(tmp_path: Path) -> None:
    options = words_of(
        data__train="demonstrations.jsonl", data__eval="", train__rows_per_step=12, train__schedule="cosine",
        train__warmup_steps=2, train__steps=4, train__save_every=2,
    )  # fmt: skip
    assert main(["sft", "config.toml", *options, *words_of(run__output_dir=tmp_path / "whole")]) == 0
    # a run that crashed after step 2: later records and checkpoints are gone or were never written
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step-000004")
    assert main(["sft", "config.toml", "--resume", *options, *words_of(run__output_dir=tmp_path / "halves")]) == 0
    assert numbers_of(tmp_path / "halves") == numbers_of(tmp_path / "whole")
    expected, found = weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "halves", 4)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
