"""The command line as a stranger meets it: what works, and one clear sentence for everything that does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import axpo.cli.folders
from axpo import __version__
from axpo.cli.folders import check_folder
from axpo.cli.main import main
from axpo.cli.overrides import load_config
from axpo.errors import ConfigError, WeightSyncError
from workshop import numbers_of, read_jsonl, words_of

QUESTION: dict[str, Any] = {"id": "q", "question": "0?", "answer": "B"}


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_ten_questions_with_two_pictures_and_an_own_reward_train_and_evaluate(tmp_path: Path, workshop: Path) -> None:
    (tmp_path / "noise.png").write_bytes((workshop / "noise.png").read_bytes())
    rows = [{**QUESTION, "id": f"q{i}", "images": ["noise.png"] if i < 2 else []} for i in range(10)]
    data = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = words_of(
        data__train=data, data__eval=data, data__max_eval_rows=3, data__reward="workshop_parts:is_vowel",
        rollout__questions_per_step=64, rollout__group_size=2, train__steps=2, run__output_dir=tmp_path / "run",
    )  # fmt: skip
    assert main(["train", "config.toml", *words]) == 0
    kinds = [(record["kind"], record["step"]) for record in numbers_of(tmp_path / "run")]
    assert kinds == [("train", 1), ("train", 2), ("eval", 2)]
    lines = read_jsonl(tmp_path / "run" / "rollouts" / "train-000001.jsonl")
    assert len({line["rollout"]["problem_id"] for line in lines}) == 10, "all questions when there are fewer than B"
    for line in lines:  # the user's own reward judged, not the answer B
        assert line["rollout"]["reward"] == float("A" in line["rollout"]["final_text"])
    assert len(list((tmp_path / "run" / "images").iterdir())) == 1, "two equal pictures are one"

    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert "<html" in (tmp_path / "report.html").read_text()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown option": ({"train__learning_rat": 1}, "did you mean train.learning_rate?"),
    "a number out of range": ({"algorithm__clip_low": -1}, "algorithm.clip_low: expected a number >= 0, got -1"),
    "a device that is not here": ({"run__device": "cuda:9"}, "cuda:9"),
    "a missing model": ({"model__path": "./nowhere"}, "nowhere"),
    "a folder that is no model": ({"model__path": "."}, "config.json"),
    "a model that is not cached": ({"model__path": "nobody/nothing"}, "nobody/nothing"),
    "a missing data file": ({"data__train": "nowhere.jsonl"}, "nowhere.jsonl"),
    "no data": ({"data__train": ""}, "data.train: required here"),
    "an unknown split": ({"data__train": "mini:test"}, "there are train, eval"),
    "an unknown tool": ({"data__tools": '["zoom"]'}, "image_zoom_in"),
    "a missing tool module": ({"data__tools": '["nowhere:look"]'}, "there is no module nowhere"),
    "a missing tool": ({"data__tools": '["workshop_parts:lok"]'}, "did you mean look?"),
    "a tool that cannot be called": ({"data__tools": '["workshop_parts:NOT_CALLABLE"]'}, "is of type int"),
    "two tools of one name": (
        {"data__tools": '["workshop_parts:look", "workshop_parts:watched_look"]'},
        "two tools are called 'look'",
    ),
    "an option the tool does not take": (
        {"data__tools": '["image_zoom_in"]', "data__tool_options": "{image_zoom_in = {min_px = 3}}"},
        "min_pixels",
    ),
    "options of a tool that is not there": ({"data__tool_options": "{look = {}}"}, "is not in data.tools"),
    "a missing reward": ({"data__reward": "workshop_parts:nothing"}, "has no 'nothing'"),
    "a reward without module": ({"data__reward": "is_vowel"}, "is not of the form module:attribute"),
    "adapters and a learning vision tower": (
        {"model__lora_rank": 4, "model__freeze_vision": "false"},
        "model.freeze_vision",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_gives_one_clear_error_and_exit_code_2(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, told = BROKEN[mistake]
    assert main(["train", "config.toml", *words_of(run__output_dir=tmp_path / "run", **options)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and told in printed and "Traceback" not in printed
    assert printed.count("\n") == 1, "one line for one mistake"
    assert not (tmp_path / "run" / "config.toml").exists(), "a run that never started must not block its folder"


def test_only_training_needs_a_budget_that_pays_for_a_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(algorithm__resample_budget_frac=0.1, data__max_eval_rows=1)  # floor(0.1 * 2 * 4) = 0
    assert main(["train", "config.toml", *words, *words_of(run__output_dir=tmp_path / "run")]) == 2
    told = "error: algorithm.resample_budget_frac: a budget of 0 continuations per step (2 questions x 4 rollouts)"
    assert capsys.readouterr().err.startswith(told)
    assert not (tmp_path / "run").exists()
    assert main(["eval", "config.toml", *words, "--out", str(tmp_path / "eval")]) == 0
    options = words_of(data__train="demonstrations.jsonl", data__eval="", train__steps=1)
    assert main(["sft", "config.toml", *words, *options, *words_of(run__output_dir=tmp_path / "sft")]) == 0


def test_the_bar_of_a_step_is_told_of_its_continuations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[int] = []
    monkeypatch.setattr("axpo.cli.console.RunConsole.on_total", lambda _, total: totals.append(total))
    assert main(["train", "config.toml", *words_of(run__output_dir=tmp_path / "run", data__eval="")]) == 0
    planned = [record["resample/planned"] for record in numbers_of(tmp_path / "run")]
    assert totals == [total for num in planned for total in (8, 8 + num)]
    assert any(planned), "nothing was resampled: the test is too easy"


BROKEN_ROWS: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "line 2"),
    "no answer": (json.dumps({"id": "b", "question": "?"}), "answer"),
    "an unknown field": (json.dumps({**QUESTION, "id": "b", "anwser": "B"}), "anwser"),
    "a missing picture": (json.dumps({**QUESTION, "id": "b", "images": ["gone.png"]}), "gone.png"),
    "an id used twice": (json.dumps(QUESTION), "used before"),
    "an unknown answer kind": (json.dumps({**QUESTION, "id": "b", "answer_kind": "poem"}), "poem"),
    "a tool that is not offered": (
        json.dumps({**QUESTION, "id": "b", "tools": ["search"]}),
        "asks for the tool 'search'",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN_ROWS)
def test_a_broken_row_gives_one_clear_error_and_exit_code_2(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, told = BROKEN_ROWS[mistake]
    data = write(tmp_path / "rows.jsonl", json.dumps(QUESTION) + "\n" + row + "\n")
    assert main(["train", "config.toml", *words_of(data__train=data, run__output_dir=tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and told in printed and "Traceback" not in printed


@pytest.mark.parametrize("command", ["train", "sft", "eval"])
def test_one_truncated_photograph_among_a_thousand_gives_one_line_before_the_first_step(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    for index in range(1000 if command == "train" else 20):
        shade = Image.new("RGB", (40, 30), (index % 256, index // 256, 0))
        shade.save(tmp_path / f"{index}.jpg", quality=95)
        asked: dict[str, Any] = {"question": "0?", "answer": "B"}
        if command == "sft":
            said = [{"role": "user", "content": "<image>0?"}, {"role": "assistant", "content": "B"}]
            asked = {"messages": said}
        rows.append({**asked, "id": f"q{index}", "images": [f"{index}.jpg"]})
    broken = tmp_path / f"{len(rows) - 10}.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(0.8 * len(whole))] + whole[-40:-2])
    data = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    options = {"data__eval" if command == "eval" else "data__train": data, "data__max_eval_rows": len(rows)}
    words = words_of(run__output_dir=tmp_path / "run", **options)
    assert main([command, "config.toml", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {data}, line {len(rows) - 9}, field images[0]: ") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_picture_no_model_can_take_is_refused_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (2, 500)).save(tmp_path / "stripe.png")
    data = write(tmp_path / "rows.jsonl", json.dumps({**QUESTION, "images": ["stripe.png"]}) + "\n")
    assert main(["train", "config.toml", *words_of(data__train=data, run__output_dir=tmp_path / "run")]) == 2
    assert "question q: image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("command", "data"), [("train", "questions"), ("sft", "demonstrations")])
def test_a_row_longer_than_the_models_context_is_refused_before_anything_is_sampled(
    command: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads(Path(f"{data}.jsonl").read_text().splitlines()[0])
    if command == "train":
        row["question"] = "?" * 5000
    else:
        row["messages"][0]["content"] = "?" * 5000
    file = write(tmp_path / "rows.jsonl", json.dumps({**row, "images": []}) + "\n")
    words = words_of(data__train=file, data__eval="", run__output_dir=tmp_path / "run")
    assert main([command, "config.toml", *words]) == 2
    assert f"{row['id']}: has " in (told := capsys.readouterr().err) and "fit the model" in told
    assert not (tmp_path / "run").exists()


def test_a_start_killed_before_its_configuration_was_saved_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "images").mkdir(parents=True)
    partial = write(tmp_path / "run" / "config.toml.partial", "[run")
    config = load_config(Path("config.toml"))
    check_folder(tmp_path / "run", config, resume=False)  # raises where the folder is refused, as it is below
    partial.rename(tmp_path / "run" / "config.toml")
    with pytest.raises(ConfigError, match="--resume"):
        check_folder(tmp_path / "run", config, resume=False)


def test_a_missing_extra_is_answered_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["train", "config.toml", *words_of(run__output_dir=tmp_path / "run", model__lora_rank=4)]) == 2
    assert "pip install 'axpo[lora]'" in capsys.readouterr().err


def test_the_folder_of_another_run_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "run" / "notes.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    words = words_of(run__output_dir=tmp_path / "run")
    assert main(["train", "config.toml", *words]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["train", "config.toml", "--resume", *words]) == 2
    assert "no run to resume" in capsys.readouterr().err
    assert main(["eval", "config.toml", "--out", str(tmp_path / "run")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in precious.parent.iterdir()] == ["notes.txt"] and precious.read_text() == "precious"


@pytest.mark.parametrize("command", ["train", "sft", "eval", "diagnose --probe", "eval --benchmarks"])
def test_a_folder_that_cannot_be_one_is_refused_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cases = [(tmp_path / "file", "it is a file"), (tmp_path / ("x" * 256), "File name too long")]
    for folder, told in cases[: 1 if command == "eval --benchmarks" else 2]:
        words = [*command.split(), "config.toml", "--out", str(folder)]
        if command in ("train", "sft"):
            words = [command, "config.toml", *words_of(run__output_dir=folder)]
        elif command == "eval --benchmarks":
            words = ["eval", "--benchmarks", "vstar", "--model", "mini", "--out", str(folder)]
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert f"{folder} cannot be the folder of a run ({told})" in printed and printed.count("\n") == 1
    assert main(["report", ".", "--out", str(tmp_path / ("x" * 256))]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_not_resumed_with_other_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(run__output_dir=tmp_path / "run", data__eval="")
    assert main(["train", "config.toml", *words, *words_of(train__steps=1)]) == 0
    assert main(["train", "config.toml", "--resume", *words, *words_of(algorithm__clip_low=0.1)]) == 2
    assert "algorithm.clip_low was 0.2, now 0.1" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(run__output_dir=tmp_path / "run", data__eval="")
    assert main(["train", "config.toml", *words, *words_of(train__steps=1)]) == 0
    damaged = tmp_path / "run" / "checkpoints" / "step-000001" / "trainer.safetensors"
    damaged.write_bytes(b"garbage")
    assert main(["train", "config.toml", "--resume", *words]) == 2
    assert str(damaged) in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("axpo.trainer.loop.train_step", interrupt)
    assert main(["train", "config.toml", *words_of(run__output_dir=tmp_path / "a run")]) == 130
    expected = f"axpo train config.toml --resume --run.output_dir '{tmp_path / 'a run'}'"
    assert expected in capsys.readouterr().err


def test_an_engine_that_keeps_old_weights_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StaleEngine(axpo.cli.build.HfEngine):
        def update_weights(self, weights: Any, version: int) -> None:
            if version < 2:
                super().update_weights(weights, version)
            self._policy_version = version

    monkeypatch.setattr(axpo.cli.build, "HfEngine", StaleEngine)
    words = words_of(run__output_dir=tmp_path / "run", train__learning_rate=1e-2, data__eval="")
    assert main(["train", "config.toml", *words]) == 1
    printed = capsys.readouterr().err
    assert "after update 2 the engine's log-probs of the probe differ from the trainer's" in printed
    assert f"run folder: {tmp_path / 'run'}" in printed and "Traceback" not in printed
    assert issubclass(WeightSyncError, RuntimeError)
    healthy, stale = numbers_of(tmp_path / "run")
    assert (healthy["sync/failed"], stale["sync/failed"], stale["alarm/canary_failed"]) == (0, 1, 1)
    assert stale["sync/canary_gap"] > 1e-3


@pytest.mark.parametrize("command", ["train", "sft", "eval", "report", "doctor", "demo"])
def test_help_names_what_a_command_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: axpo {command} [-h]")


def test_the_installed_command_prints_its_version_and_a_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "axpo.cli.main", "--version"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"axpo {__version__}\n"
    assert main(["doctor"]) == 0
    findings = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert findings["axpo"] == __version__ and findings["python"].startswith("3.") and "GiB free" in findings["disk"]


def test_options_are_for_commands_that_read_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--train.steps", "3"]) == 2
    assert capsys.readouterr().err == "error: axpo report: takes no --train.steps\n"


def test_a_run_that_another_process_writes_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with axpo.cli.folders.hold_folder(tmp_path / "run"):
        assert main(["train", "config.toml", *words_of(run__output_dir=tmp_path / "run")]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").rglob("*")} == {"run.lock"}
