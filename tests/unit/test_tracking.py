"""Trackers beside a run: whatever they do, the run goes on at its own pace and ends in time."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.build import build_tracker
from axpo.diagnostics.health import Alarm
from axpo.errors import ConfigError, MissingExtraError
from axpo.integrations import tracked_samples
from axpo.integrations.tracked_samples import read_samples
from axpo.integrations.trackers import TRACKERS
from axpo.integrations.tracking import MAX_WAITING, Tracking
from axpo.protocols import TrackedRun, Tracker
from axpo.trainer.config import TRACKERS as TRACKER_NAMES
from axpo.trainer.config import parse_config
from axpo.trainer.loop import Observers
from synthetic_run import write_run

DROPPED = Alarm(name="rollouts_dropped", level="warning", step=1, text="Two.", advice="Look.")


class Recording:
    """A tracker that remembers its calls."""

    own_id: str | None = "theirs"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.runs: list[TrackedRun] = []

    def start(self, run: TrackedRun) -> str | None:
        self.runs.append(run)
        return self.own_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.calls.append(("log", step, metrics))

    def log_table(self, step: int, name: str, columns: Any, rows: Any) -> None:
        assert all(len(row) == len(columns) for row in rows)
        self.calls.append(("table", step, name, len(rows)))

    def log_images(self, step: int, name: str, images: Any) -> None:
        self.calls.append(("images", step, name, [max(image.size) for _, image in images]))

    def log_alarm(self, step: int, *, name: str, level: str, text: str) -> None:
        self.calls.append(("alarm", step, name, level, text))

    def finish(self, status: str) -> None:
        self.calls.append(("finish", status))


class Failing(Recording):
    def log(self, step: int, metrics: dict[str, float]) -> None:
        raise ConnectionError(f"no route to host at step {step}")


class Hanging(Recording):
    """Its first call does not return before `let_go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_in = threading.Event()
        self.let_go = threading.Event()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.is_in.set()
        self.let_go.wait()
        super().log(step, metrics)


def track(folder: Path, *, first_step: int = 1, close_timeout_s: float = 30.0, **trackers: Tracker) -> Tracking:
    return Tracking(
        trackers, folder=folder, config={"run": {"seed": 0}}, first_step=first_step, close_timeout_s=close_timeout_s
    )


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_tracker_gets_finite_numbers_new_alarms_and_the_end(tmp_path: Path) -> None:
    tracker = Recording()
    with track(tmp_path, mine=tracker) as tracking:
        tracking.on_start(1)
        tracking.on_step(1, {"a": 1, "b": None, "c": float("nan")}, [DROPPED])
        tracking.on_step(2, {"a": 2}, [DROPPED])
        tracking.on_step(3, {"a": 3}, [])
        tracking.on_step(4, {"a": 4}, [DROPPED])
    alarm = ("alarm", 1, "rollouts_dropped", "warning", "Two. Look.")
    numbers = [("log", step, {"a": step}) for step in range(1, 5)]
    assert tracker.calls == [numbers[0], alarm, *numbers[1:], alarm, ("finish", "finished")]
    [run] = tracker.runs
    assert (run.known_id, run.folder, run.config, run.first_step) == (None, tmp_path, {"run": {"seed": 0}}, 1)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_a_tracker_is_told_how_a_run_ended(tmp_path: Path, error: type[BaseException], status: str) -> None:
    tracker = Recording()
    with pytest.raises(error), track(tmp_path, mine=tracker):
        raise error
    assert tracker.calls == [("finish", status)]


def test_a_resumed_run_goes_on_under_the_same_ids(tmp_path: Path) -> None:
    first, second = Recording(), Recording()
    with track(tmp_path, mine=first):
        pass
    with track(tmp_path, first_step=7, mine=second):
        pass
    [started], [resumed] = first.runs, second.runs
    assert (resumed.id, resumed.known_id, resumed.first_step) == (started.id, "theirs", 7)
    (tmp_path / "trackers.json").write_text("[broken")
    third = Recording()
    with track(tmp_path, mine=third):
        pass
    assert third.runs[0].known_id is None


def test_a_failing_tracker_is_told_of_once_and_harms_no_other(tmp_path: Path, caplog: Any) -> None:
    failing, healthy = Failing(), Recording()
    with track(tmp_path, bad=failing, good=healthy) as tracking:
        for step in range(5):
            tracking.on_step(step, {"a": step}, [])
    assert failing.calls == [("finish", "finished")]
    assert len(healthy.calls) == 6
    first, last = warnings_of(caplog)
    assert "tracker bad: ConnectionError: no route to host at step 0" in first
    assert "5 calls failed, 0 were left out" in last


def test_a_tracker_that_cannot_start_gets_nothing(tmp_path: Path, caplog: Any) -> None:
    class Refusing(Recording):
        def start(self, run: TrackedRun) -> str | None:
            raise PermissionError("no key")

    tracker = Refusing()
    with track(tmp_path, bad=tracker) as tracking:
        for step in range(2 * MAX_WAITING):
            tracking.on_step(step, {}, [])
    assert tracker.calls == []
    assert "could not start: PermissionError: no key" in warnings_of(caplog)[0]


def test_a_hanging_tracker_neither_slows_a_run_nor_holds_up_its_end(tmp_path: Path, caplog: Any) -> None:
    tracker = Hanging()
    try:
        with track(tmp_path, close_timeout_s=0.05, slow=tracker) as tracking:
            tracking.on_step(0, {"a": 0}, [])
            assert tracker.is_in.wait(10)
            for step in range(1, MAX_WAITING + 11):  # more than may wait: would block for ever if it could
                tracking.on_step(step, {"a": step}, [])
        full, unfinished = warnings_of(caplog)
        assert f"{MAX_WAITING} calls wait for it" in full
        assert "did not finish in time" in unfinished
    finally:
        tracker.let_go.set()


def test_what_waited_for_a_slow_tracker_arrives_and_its_end_too(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, join = Hanging(), threading.Thread.join

    def let_go_and_join(thread: threading.Thread, timeout: float | None = None) -> None:
        tracker.let_go.set()
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", let_go_and_join)
    with track(tmp_path, slow=tracker) as tracking:
        tracking.on_step(0, {}, [])
        assert tracker.is_in.wait(10)
        for step in range(1, MAX_WAITING + 11):
            tracking.on_step(step, {}, [])
    assert len(tracker.calls) == 1 + MAX_WAITING  # one of those that waited made room for the end
    assert tracker.calls[-1] == ("finish", "finished")
    assert "0 calls failed, 11 were left out" in warnings_of(caplog)[-1]


def test_an_evaluation_brings_a_table_dialogues_and_small_pictures(tmp_path: Path) -> None:
    write_run(tmp_path, num_steps=1, num_questions=6, eval_steps=(1,))
    tracker = Recording()
    with track(tmp_path, mine=tracker) as tracking:
        tracking.on_eval(1, {"eval/pass@1": 0.5})
    numbers, questions, samples, (_, _, _, sizes), _ = tracker.calls
    assert numbers == ("log", 1, {"eval/pass@1": 0.5})
    assert questions == ("table", 1, "eval/questions_table", 6)
    assert samples == ("table", 1, "eval/samples_table", 4)
    assert 4 <= len(sizes) <= tracked_samples.MAX_PICTURES and max(sizes) <= tracked_samples.MAX_PICTURE_PX


def test_samples_say_what_the_rollouts_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, num_steps=1, num_questions=4, eval_steps=(1,), question="What?")
    lines = [json.loads(line) for line in (tmp_path / "rollouts/eval-000001.jsonl").read_text().splitlines()]
    of_first = [line for line in lines if line["rollout"]["problem_id"] == "q0"]
    found = read_samples(tmp_path, 1)
    name, asked, answer, num, num_right, num_tool, _ = found.questions[0]
    assert (name, asked, answer, num) == ("q0", "What?", of_first[0]["answer"], len(of_first))
    assert num_right == sum(line["rollout"]["reward"] >= 1 for line in of_first)
    assert num_tool == sum(len(line["rollout"]["tool_results"]) > 0 for line in of_first)
    assert str(found.dialogues[0][3]).startswith("What?") and "<answer>" in str(found.dialogues[0][3])
    assert "<|image_pad|> <|image_pad|> What?" not in str(found.dialogues[0][3]), "the prompt's tokens are shown"
    monkeypatch.setattr(tracked_samples, "MAX_QUESTIONS", 2)
    assert len(read_samples(tmp_path, 1).questions) == 2
    assert read_samples(tmp_path, 99).questions == ()


def test_several_observers_are_told_in_turn() -> None:
    told: list[tuple[str, str]] = []

    class Listener:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_start(self, step: int) -> None:
            told.append((self.name, "start"))

        def on_step(self, *_: object) -> None:
            told.append((self.name, "step"))

        def on_eval(self, *_: object) -> None:
            told.append((self.name, "eval"))

        def on_checkpoint(self, *_: object) -> None:
            told.append((self.name, "checkpoint"))

    both = Observers(Listener("a"), Listener("b"))
    both.on_start(1)
    both.on_step(1, {}, ())
    both.on_eval(1, {})
    both.on_checkpoint(1, Path())
    assert told == [(name, event) for event in ("start", "step", "eval", "checkpoint") for name in "ab"]


def test_every_tracker_of_the_configuration_can_be_made() -> None:
    assert tuple(TRACKERS) == TRACKER_NAMES
    assert all(isinstance(build(), Tracker) for _, build in TRACKERS.values())


def test_a_missing_package_is_answered_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"wandb needs wandb, not installed: pip install 'axpo\[wandb\]'"):
        build_tracker("wandb")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"run": {"trackers": ["wandbb"]}}, "run.trackers: unknown tracker 'wandbb'; did you mean wandb?"),
        (
            {"run": {"trackers": "x"}},
            "run.trackers: unknown tracker 'x'; there are tensorboard, wandb, trackio, mlflow",
        ),
        (
            {"train": {"stop_on": ["kl_runnaway"]}},
            "train.stop_on: unknown alarm 'kl_runnaway'; did you mean kl_runaway?",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(table: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"model": {"path": "x"}, **table}, origin="c.toml")
    assert str(error.value) == f"c.toml: {line}"


def test_names_may_be_written_with_commas() -> None:
    table = {"model": {"path": "x"}, "run": {"trackers": "wandb, mlflow"}, "train": {"stop_on": "truncation"}}
    config = parse_config(table, origin="c.toml")
    assert (config.run.trackers, config.train.stop_on) == (("wandb", "mlflow"), ("truncation",))
