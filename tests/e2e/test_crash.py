"""kill -9 at any moment, then --resume: the numbers of a run that nothing happened to, and no record half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axpo.cli.main import main
from workshop import numbers_of, rollouts_of, words_of

CRASHING = Path(__file__).with_name("crashing.py")


@pytest.fixture(scope="module")
def undisturbed(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as monkey:
        monkey.chdir(workshop)
        assert main(["train", "config.toml", *words_of(run__output_dir=folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def start(out: Path, moment: str = "never", count: int = 0, **options: object) -> subprocess.Popen[bytes]:
    words = ["train", "config.toml", "--resume", *words_of(run__output_dir=out, **options)]
    return subprocess.Popen(
        [sys.executable, str(CRASHING), moment, str(count), "--", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr.decode()


def test_a_run_killed_again_and_again_ends_at_the_same_numbers(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = [
        ("backward", 2),  # in the second backward pass: step 2
        ("fsync", 12),  # somewhere in a checkpoint
        ("rename", 1),  # a complete checkpoint that has not got its name yet
        ("fsync", 4),  # between a step's rollouts and its metrics
    ]
    for moment, count in moments:
        code, stderr = finish(start(run, moment, count))
        assert code == -signal.SIGKILL, f"{moment} {count}: the run was not killed: {stderr}"
    assert finish(start(run)) == (0, "")
    assert numbers_of(run) == numbers_of(undisturbed)
    assert rollouts_of(run) == rollouts_of(undisturbed)
    assert list(run.rglob("*.partial")) == []


def test_a_run_killed_from_outside_during_a_rollout_or_a_checkpoint_ends_at_the_same_numbers(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {"data__tools": '["workshop_parts:watched_look"]'}
    process = start(run, **options)
    wait_for(Path(), "looking", process)  # the tool is running: a rollout is under way
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    process = start(run, **options)
    wait_for(run, "checkpoints/*.partial", process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert finish(start(run, **options)) == (0, "")
    assert numbers_of(run) == numbers_of(undisturbed)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    while not any(folder.glob(pattern)):
        assert process.poll() is None, finish(process)
        time.sleep(0.0005)
