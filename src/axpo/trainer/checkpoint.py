"""Resumable checkpoints that survive `kill -9` at any moment.

checkpoints/
  step-000060/         complete, because the rename that gives it this name comes after everything in it is on disk
    model/             Hugging Face layout, loads with transformers
    trainer.safetensors  float32 master weights of what learns, and Adam's moments
    state.json         the step and the best evaluation so far
  step-000070.partial/ being written, or left behind by a crash: removed at the next start
  last  best           text files that name a folder; replaced by a rename
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from axpo.errors import CheckpointError
from axpo.files import write_atomically, writing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

FORMAT_VERSION = 1
NUM_KEPT = 2
"""Resumable checkpoints kept beside the best one."""


class Checkpointable(Protocol):
    """What a checkpoint needs of a policy."""

    def trainable_parameters(self) -> Mapping[str, Parameter]:
        """Float32 master weights by name, in the order the optimiser holds them."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the model in the Hugging Face layout."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Where training stands. Everything else of a step is a function of the seed and the step number."""

    step: int = 0
    """Optimiser steps done."""
    best_step: int | None = None
    best_score: float | None = None
    """Highest evaluation score so far and the step that reached it."""
    is_eval_pending: bool = False
    """The evaluation after `step` is due but not finished: a resumed run begins with it."""


def save_checkpoint(folder: Path, *, policy: Checkpointable, optimizer: Optimizer, state: TrainerState) -> Path:
    """Write the checkpoint of `state.step`, then point `last` (and `best`) at it, then prune older ones.

    Where that checkpoint exists, its weights are the same, and only its state is written. Raises `StorageError`; the
    checkpoints before are left as they were.
    """
    target = folder / f"step-{state.step:06d}"
    partial = target.with_suffix(".partial")
    with writing(target):
        if target.exists():
            _write_state(target, state)
        else:
            try:
                _write_checkpoint(partial, policy=policy, optimizer=optimizer, state=state)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # what was written of it may be what filled the disk
                raise
            partial.rename(target)
        _fsync(folder)
        _point_at(target, state)
        _prune(folder)
    return target


def _write_checkpoint(folder: Path, *, policy: Checkpointable, optimizer: Optimizer, state: TrainerState) -> None:
    """Write everything of a checkpoint and wait until it is on the disk."""
    from safetensors import SafetensorError

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        policy.save_pretrained(folder / "model")
        _save_tensors(folder / "trainer.safetensors", _training_tensors(policy, optimizer))
    except SafetensorError as error:  # how its Rust code reports a full disk, among other things
        raise OSError(str(error)) from error
    _write_state(folder, state)
    for path in sorted(folder.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(folder)


def _write_state(folder: Path, state: TrainerState) -> None:
    description = {"format": FORMAT_VERSION, **dataclasses.asdict(state)}
    write_atomically(folder / "state.json", [json.dumps(description)])


def recover_checkpoint(folder: Path) -> Path | None:
    """Finish or undo what a crash interrupted; returns the newest complete checkpoint, None when there is none yet."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    complete = _complete_checkpoints(folder)
    if not complete:
        return None
    _point_at(complete[-1], read_state(complete[-1]))
    _prune(folder)
    return complete[-1]


def restore_checkpoint(path: Path, *, policy: Checkpointable, optimizer: Optimizer) -> TrainerState:
    """Put weights and moments back, exactly. Raises `CheckpointError` naming the file that cannot be used."""
    state = read_state(path)
    tensors = _load_tensors(path / "trainer.safetensors")
    parameters = policy.trainable_parameters()
    expected = {f"master.{name}": parameter.shape for name, parameter in parameters.items()}
    found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("master.")}
    if expected != found:
        names = sorted({name for name in expected | found if expected.get(name) != found.get(name)})
        raise CheckpointError(
            f"{path / 'trainer.safetensors'}: holds other weights than this configuration trains, for example "
            f"{names[0].removeprefix('master.')}. Resume with the [model] table of the run's config.toml."
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"master.{name}"])
    _restore_moments(optimizer, tuple(parameters), tensors)
    return state


def read_state(path: Path) -> TrainerState:
    """The state a checkpoint was written at. Raises `CheckpointError`."""
    try:
        fields = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version = fields.pop("format")
        state = TrainerState(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / 'state.json'}: not the state of a checkpoint ({error}). "
            "Remove this checkpoint's folder to resume from the one before it."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: checkpoint format {version}, this version reads format {FORMAT_VERSION}")
    return state


def find_model(path: Path) -> Path:
    """The model folder that `path` means: itself, a checkpoint's `model/`, or a run's best, else last, checkpoint.

    Raises `CheckpointError` when there is none.
    """
    if (path / "config.json").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for pointer in ("best", "last"):
        if (folder / pointer).is_file():
            model = folder / (folder / pointer).read_text(encoding="utf-8").strip() / "model"
            if (model / "config.json").is_file():
                return model
    raise CheckpointError(f"{path}: neither a model folder, nor a checkpoint, nor a run with a checkpoint")


def _training_tensors(policy: Checkpointable, optimizer: Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.trainable_parameters().items():
        tensors[f"master.{name}"] = parameter.data
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _restore_moments(optimizer: Optimizer, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(names))}
    index_of = {name: index for index, name in enumerate(names)}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind != "master":
            moments[index_of[name]][kind] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {i: m for i, m in moments.items() if m}, "param_groups": groups})


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Remove this checkpoint's folder to resume from the one before it."
        ) from error


def _complete_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*[0-9]"))


def _point_at(checkpoint: Path, state: TrainerState) -> None:
    _write_pointer(checkpoint.with_name("last"), checkpoint.name)
    if state.best_step == state.step:
        _write_pointer(checkpoint.with_name("best"), checkpoint.name)


def _write_pointer(pointer: Path, name: str) -> None:
    partial = pointer.with_suffix(".partial")
    partial.write_text(name + "\n", encoding="utf-8")
    _fsync(partial)
    partial.replace(pointer)
    _fsync(pointer.parent)


def _prune(folder: Path) -> None:
    complete = _complete_checkpoints(folder)
    best = folder / "best"
    kept = {path.name for path in complete[-NUM_KEPT:]}
    if best.is_file():
        kept.add(best.read_text(encoding="utf-8").strip())
    for path in complete:
        if path.name not in kept:
            # Renamed first: a crash in the middle of the removal must not leave half a checkpoint with a whole name.
            doomed = path.rename(path.with_suffix(".partial"))
            shutil.rmtree(doomed)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
