"""Ctrl-C, SIGTERM, SIGHUP: the last finished step is kept, and --resume ends at the numbers of a run left alone."""

from __future__ import annotations

import importlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import axpo.trainer.loop
from axpo.cli.main import main
from axpo.trainer.checkpoint import TrainerState
from axpo.trainer.interrupts import Interrupts
from workshop import numbers_of, read_jsonl, rollouts_of, words_of

OPTIONS: dict[str, Any] = {"train__steps": 6, "train__save_every": 10, "train__eval_every": 0}
"""Options of the runs in this file: the only checkpoint before the last step is the one that an interrupt makes."""


@pytest.fixture(scope="module")
def undisturbed(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as monkey:
        monkey.chdir(workshop)
        assert train(folder) == 0
    return folder


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(workshop)


def train(out: Path, *words: str, **options: Any) -> int:
    return main(["train", "config.toml", *words, *words_of(run__output_dir=out, **{**OPTIONS, **options})])


def start(command: str, out: Path, **options: Any) -> subprocess.Popen[str]:
    words = words_of(run__output_dir=out, **options)
    return subprocess.Popen(
        [sys.executable, "-m", "axpo.cli.main", command, "config.toml", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the record of `step` is complete."""
    path = run / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def check_equal(found: Path, expected: Path, step: int) -> None:
    assert numbers_of(found) == numbers_of(expected)
    assert rollouts_of(found) == rollouts_of(expected)
    tensors = [load_file(run / "checkpoints" / f"step-{step:06d}" / "trainer.safetensors") for run in (found, expected)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_run_that_a_signal_ends_keeps_its_last_step_and_resumes_to_the_same_numbers(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("train", run, **{**OPTIONS, "train__steps": 30})
    wait_for_step(run, 3, process)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, told
    step = int((run / "checkpoints" / "last").read_text().strip().removeprefix("step-"))
    assert step in (3, 4), "the step that was under way is left out or, where its update had begun, finished"
    assert f"interrupted; checkpoint: {run}/checkpoints/step-{step:06d}; continue with: axpo train config.toml" in told
    assert told.count("\n") == 3 and "Traceback" not in told, "one line at the signal, one at the end"
    assert train(run, "--resume") == 0
    check_equal(run, undisturbed, 6)


HOLDING = """
import time
from axpo.trainer.interrupts import Interrupts
with Interrupts().listen() as interrupts, interrupts.hold():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_stops_at_once_whatever_is_being_finished() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=5)[1]
    assert process.returncode == 143 and told.endswith(b"stopped at once\n")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, count: int) -> None:
    """Send this process SIGTERM at the `count`-th call."""
    function: Callable[..., Any] = getattr(target, name)
    calls = iter(range(1, 1000))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return function(*args, **kwargs)

    monkeypatch.setattr(target, name, interrupted)


def test_an_update_that_has_begun_is_finished_and_recorded(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, axpo.trainer.loop, "train_step", 3)
        assert train(tmp_path / "run") == 143
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-000003\n"
    assert [record["step"] for record in numbers_of(tmp_path / "run")] == [1, 2, 3]
    assert train(tmp_path / "run", "--resume") == 0
    check_equal(tmp_path / "run", undisturbed, 6)


def test_an_evaluation_that_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"train__eval_every": 2, "train__steps": 3}
    assert train(tmp_path / "whole", **options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, axpo.evaluation.run, "sample_groups", 1)
        assert train(tmp_path / "run", **options) == 143
    assert [(record["kind"], record["step"]) for record in numbers_of(tmp_path / "run")] == [("train", 1), ("train", 2)]
    assert train(tmp_path / "run", "--resume", **options) == 0
    check_equal(tmp_path / "run", tmp_path / "whole", 3)
    for name in ("best", "last"):
        assert (tmp_path / "run" / "checkpoints" / name).read_text() == (
            tmp_path / "whole" / "checkpoints" / name
        ).read_text()


def test_a_run_that_an_error_ends_keeps_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = iter(range(24))

    def breaks_late(final_text: str, problem: object) -> bool:
        if next(calls, None) is None:
            raise RuntimeError("late")
        return False

    monkeypatch.setattr(importlib.import_module("workshop_parts"), "is_vowel", breaks_late)
    assert train(tmp_path / "run", data__reward="workshop_parts:is_vowel") == 2
    assert "raised RuntimeError" in capsys.readouterr().err
    last = len(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert last and (tmp_path / "run" / "checkpoints" / "last").read_text() == f"step-{last:06d}\n"


def test_a_disk_that_is_full_at_a_checkpoint_gives_one_line_and_the_run_continues_after_the_one_before(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save = tmp_path / "run", axpo.trainer.loop.save_checkpoint

    def save_on_a_full_disk(folder: Path, *, state: TrainerState, **parts: Any) -> Path:
        known = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000 if state.step == 4 else known[0], known[1]))
        try:
            return save(folder, state=state, **parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, known)

    with monkeypatch.context() as patch:
        patch.setattr(axpo.trainer.loop, "save_checkpoint", save_on_a_full_disk)
        assert train(run, train__save_every=2) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {run}/checkpoints/step-000004: cannot be written (") and "Traceback" not in told
    options = words_of(run__output_dir=run, **{**OPTIONS, "train__save_every": 2})
    assert told.endswith(f"continue with: axpo train config.toml --resume {shlex.join(options)}\n")
    assert (run / "checkpoints" / "last").read_text() == "step-000002\n"
    assert train(run, "--resume") == 0
    check_equal(run, undisturbed, 6)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """nohup ignores SIGHUP before it starts a command."""
    known = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts().listen():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, known)


def test_a_library_user_keeps_the_signals() -> None:
    known = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts().hold():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == known


def test_an_interrupted_evaluation_starts_again_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "config.toml", "--out", str(tmp_path / "eval")]
    with monkeypatch.context() as patch:
        interrupt_at(patch, axpo.evaluation.run, "sample_groups", 1)
        assert main(words) == 143
    assert main(words) == 0
    assert [record["kind"] for record in numbers_of(tmp_path / "eval")] == ["eval"]
