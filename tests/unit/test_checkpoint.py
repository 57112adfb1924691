import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.nn import Linear, Parameter

from axpo.errors import CheckpointError
from axpo.trainer.checkpoint import (
    TrainerState,
    find_model,
    read_state,
    recover_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)


class TinyPolicy:
    """Two weights; enough for Adam to have moments."""

    def __init__(self, seed: int = 0, num_inputs: int = 3) -> None:
        torch.manual_seed(seed)
        self.layer = Linear(num_inputs, 2)

    def trainable_parameters(self) -> Mapping[str, Parameter]:
        return dict(self.layer.named_parameters())

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")


def make(seed: int = 0, num_inputs: int = 3) -> tuple[TinyPolicy, torch.optim.AdamW]:
    policy = TinyPolicy(seed, num_inputs)
    return policy, torch.optim.AdamW(policy.layer.parameters(), lr=0.1)


def advance(policy: TinyPolicy, optimizer: torch.optim.AdamW, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.zero_grad()
        policy.layer(torch.arange(3.0) * step).square().sum().backward()
        optimizer.step()


def save(folder: Path, step: int, best_step: int | None = None) -> Path:
    policy, optimizer = make()
    state = TrainerState(step=step, best_step=best_step, best_score=None if best_step is None else 0.1)
    return save_checkpoint(folder, policy=policy, optimizer=optimizer, state=state)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_continues_bit_for_bit(tmp_path: Path) -> None:
    policy, optimizer = make()
    advance(policy, optimizer, 1, 3)
    state = TrainerState(step=3, best_step=2, best_score=1 / 3)
    path = save_checkpoint(tmp_path, policy=policy, optimizer=optimizer, state=state)
    advance(policy, optimizer, 4, 6)

    resumed, its_optimizer = make(seed=1)
    assert restore_checkpoint(path, policy=resumed, optimizer=its_optimizer) == state
    advance(resumed, its_optimizer, 4, 6)
    for (name, expected), (_, found) in zip(
        policy.layer.named_parameters(), resumed.layer.named_parameters(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, best_step=1)
    assert names(tmp_path) == ["best", "last", "step-000001", "step-000003", "step-000004"]
    assert (tmp_path / "best").read_text() == "step-000001\n"
    assert find_model(tmp_path) == tmp_path / "step-000001" / "model"


def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000002.partial")
    (tmp_path / "step-000002.partial" / "state.json").unlink()
    assert recover_checkpoint(tmp_path) == tmp_path / "step-000001"
    assert names(tmp_path) == ["last", "step-000001"]


def test_a_crash_before_the_pointers_moved_is_finished(tmp_path: Path) -> None:
    save(tmp_path, 1, best_step=1)
    save(tmp_path, 2, best_step=2)
    for pointer in ("last", "best"):
        (tmp_path / pointer).write_text("step-000001\n")
    assert recover_checkpoint(tmp_path) == tmp_path / "step-000002"
    assert [(tmp_path / pointer).read_text() for pointer in ("last", "best")] == ["step-000002\n"] * 2


def test_nothing_saved_yet_is_no_error(tmp_path: Path) -> None:
    assert recover_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("name", ["trainer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_a_damaged_checkpoint_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 1)
    file = path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage == "truncated" else b"\x00garbage")
    policy, optimizer = make()
    with pytest.raises(CheckpointError, match=name):
        restore_checkpoint(path, policy=policy, optimizer=optimizer)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    policy, optimizer = make(num_inputs=4)
    with pytest.raises(CheckpointError, match="holds other weights than this configuration trains, for example weight"):
        restore_checkpoint(save(tmp_path, 1), policy=policy, optimizer=optimizer)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99"):
        read_state(path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder, nor a checkpoint, nor a run"):
        find_model(tmp_path)
