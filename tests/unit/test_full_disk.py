"""A disk that takes no more: one error that names the file, and what was whole before stays whole.

A file size limit of the process stands for the disk: the system refuses a write beyond it in the same way.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from axpo.diagnostics.recorder import RunRecorder, read_metrics
from axpo.errors import StorageError
from axpo.files import write_atomically
from axpo.images import ContentImageStore
from axpo.trainer.checkpoint import TrainerState, find_model, read_state, recover_checkpoint, save_checkpoint

LIMIT_BYTES = 20_000


@contextlib.contextmanager
def full_disk(limit_bytes: int = LIMIT_BYTES) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class LargePolicy:
    """Weights above the limit, in one of the two files of a checkpoint."""

    def __init__(self, *, fails_in: str) -> None:
        self.fails_in = fails_in
        self.layer = torch.nn.Linear(100, 100 if fails_in == "trainer" else 2)

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.layer.named_parameters())

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if self.fails_in == "model":
            save_file({"weight": torch.zeros(100, 100)}, folder / "model.safetensors")
        elif self.fails_in == "copy":
            (folder / "tokenizer.json").write_bytes(bytes(2 * LIMIT_BYTES))


@pytest.mark.parametrize("part", ["model", "copy", "trainer"])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path, part: str) -> None:
    policy: Any = LargePolicy(fails_in=part)
    optimizer = torch.optim.AdamW(policy.layer.parameters())
    save_checkpoint(tmp_path, policy=policy, optimizer=optimizer, state=TrainerState(step=1))
    with full_disk(), pytest.raises(StorageError) as told:
        save_checkpoint(tmp_path, policy=policy, optimizer=optimizer, state=TrainerState(step=2))
    assert str(told.value).startswith(f"{tmp_path / 'step-000002'}: cannot be written (")
    assert "too large" in str(told.value) and "Make room" in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-000001"], "the rest would fill the disk"
    assert recover_checkpoint(tmp_path) == tmp_path / "step-000001"
    assert read_state(tmp_path / "step-000001") == TrainerState(step=1)
    assert find_model(tmp_path) == tmp_path / "step-000001" / "model"


def test_metrics_rollouts_images_and_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    store = ContentImageStore(tmp_path / "images")
    recorder = RunRecorder(tmp_path, store=store)
    recorder.record_step(1, {"x": 1.0}, [])
    before = read_metrics(tmp_path)
    with full_disk(), pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
        recorder.record_step(2, {f"key {i}": 1.0 for i in range(2000)}, [])
    assert read_metrics(tmp_path) == before, "half a line is no line"
    line: dict[str, Any] = {"rollout": {"tool_results": [], "images": []}, "text": "x" * 2 * LIMIT_BYTES}
    with full_disk(), pytest.raises(StorageError, match=r"train-000002\.jsonl: cannot be written"):
        recorder.record_step(2, {"x": 1.0}, [line])
    assert read_metrics(tmp_path) == before
    image = store.add_image(Image.effect_noise((200, 200), 90))
    with full_disk(), pytest.raises(StorageError, match=rf"{image.sha256}\.png: cannot be written"):
        store.persist(image)
    store.persist(image)
    assert store.load(image).size == (200, 200), "the image was kept in memory until it was on the disk"
    with full_disk(), pytest.raises(StorageError, match=r"config\.toml: cannot be written"):
        write_atomically(tmp_path / "config.toml", ["x" * 2 * LIMIT_BYTES])
    recorder.record_step(2, {"x": 2.0}, [line])
    assert [record["x"] for record in read_metrics(tmp_path)] == [1.0, 2.0]
