"""Alarms of a whole run: recorded, shown, sent on; one of `train.stop_on` ends it, and it can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.cli.build import open_training
from axpo.cli.console import ROLLOUT_COLUMNS, RunConsole
from axpo.cli.main import main
from axpo.cli.overrides import load_config
from axpo.errors import AlarmError
from axpo.trainer.loop import train
from workshop import numbers_of, words_of


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def run(out: Path, *, resume: bool = False, **options: object) -> None:
    words = iter(words_of(run__output_dir=out, **options))
    overrides = {name.removeprefix("--"): value for name, value in zip(words, words, strict=True)}
    config = load_config(Path("config.toml"), overrides)
    with (
        RunConsole(columns=ROLLOUT_COLUMNS, num_steps=config.train.steps) as console,
        open_training(config, is_demonstration=False, resume=resume, console=console) as training,
    ):
        train(training)


@pytest.fixture
def with_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third step loses a rollout."""
    import axpo.trainer.sources as sources

    collect = sources.RolloutSource.describe

    def describe(self: sources.RolloutSource, data: sources.QuestionBatch, rows: object) -> object:
        metrics, lines = collect(self, data, rows)
        return {**metrics, "rollout/dropped": int(data.step % 3 == 2)}, lines

    monkeypatch.setattr(sources.RolloutSource, "describe", describe)


@pytest.mark.usefixtures("with_faults")
def test_a_fatal_alarm_saves_and_stops_and_the_run_goes_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"train__save_every": 4, "train__eval_every": 3}
    with pytest.raises(AlarmError) as stopped:
        run(tmp_path / "stopped", **options, train__stop_on="canary_failed,rollouts_dropped")
    message = str(stopped.value)
    assert message.startswith("alarm rollouts_dropped at step 2: 1 rollouts of the last 2 steps (")
    assert "raise `rollout.time_limit_s`" in message
    assert "The run stopped with a checkpoint: train.stop_on names rollouts_dropped." in message
    assert "alarm rollouts_dropped at step 2: 1 rollouts of the last 2 steps" in capsys.readouterr().out
    records = numbers_of(tmp_path / "stopped")
    assert [(record["kind"], record["step"]) for record in records] == [("train", 1), ("train", 2)]
    assert "alarm/rollouts_dropped" not in records[0] and records[1]["alarm/rollouts_dropped"] == 1
    assert (tmp_path / "stopped/checkpoints/last").read_text() == "step-000002\n"

    run(tmp_path / "stopped", resume=True, **options, train__stop_on="")
    run(tmp_path / "whole", **options)
    assert numbers_of(tmp_path / "stopped") == numbers_of(tmp_path / "whole")
    assert numbers_of(tmp_path / "whole")[-2]["alarm/rollouts_dropped"] == 1


def test_an_unknown_alarm_or_tracker_is_a_mistake_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, hint in (
        ("train__stop_on", "unknown alarm 'truncaton'; did you mean truncation?"),
        ("run__trackers", "unknown tracker 'truncaton'; there are tensorboard, wandb, trackio, mlflow"),
    ):
        words = words_of(run__output_dir=tmp_path / "run", **{option: "truncaton"})
        assert main(["train", "config.toml", *words]) == 2
        assert hint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_follows_a_run_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    class Recording:
        def start(self, run: object) -> str:
            calls.append(("start", run.known_id, run.first_step))
            return "theirs"

        def log(self, step: int, metrics: dict[str, float]) -> None:
            calls.append(("log", step, "reward/mean" in metrics, "eval/pass@1" in metrics))

        def finish(self, status: str) -> None:
            calls.append((status,))

        def __getattr__(self, name: str) -> object:
            return lambda *_, **__: calls.append((name,))

    monkeypatch.setattr("axpo.cli.build.build_tracker", lambda name: Recording())
    run(tmp_path / "run", train__steps=2, run__trackers="wandb")
    expected = [("start", None, 1), ("log", 1, True, False), ("log", 2, True, False), ("log", 2, False, True)]
    assert [call for call in calls if call[0] != "log_alarm"] == [
        *expected, ("log_table",), ("log_table",), ("log_images",), ("finished",)
    ]  # fmt: skip
    calls.clear()
    run(tmp_path / "run", resume=True, train__steps=3, data__eval="", run__trackers="wandb")
    assert [call for call in calls if call[0] != "log_alarm"] == [
        ("start", "theirs", 3), ("log", 3, True, False), ("finished",)
    ]  # fmt: skip


@pytest.mark.usefixtures("with_faults")
def test_the_command_line_ends_a_run_with_exit_code_4_and_goes_on_without_the_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "config.toml", *words_of(run__output_dir=tmp_path / "run")]
    assert main([*words, "--stop-on", "rollouts_dropped"]) == 4
    said = capsys.readouterr().err
    assert "alarm rollouts_dropped at step 2" in said and "--resume" in said
    assert main([*words, "--resume"]) == 0
    assert main([*words, "--stop-on", "rollouts_droped"]) == 2
    assert "rollouts_dropped" in capsys.readouterr().err
