"""The words of a command: whose usage a mistake shows, what it may have meant, and what is said first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from axpo.cli.console import RunConsole
from axpo.cli.main import main
from axpo.diagnostics.health import Alarm
from axpo.errors import ConfigError
from axpo.trainer.config import check_option
from synthetic_run import write_run


@pytest.mark.parametrize(
    ("words", "usage", "told"),
    [
        (["doctor", "extra"], "axpo doctor", "unrecognized arguments: extra\n"),
        (["demo", "--minuts", "3"], "axpo demo", "--minuts 3; did you mean --minutes?"),
        (["eval", "compare"], "axpo eval compare", "required: DIR"),
        (["eval", "table", "a", "--ouy", "b"], "axpo eval table", "did you mean --out?"),
        (["train", "c.toml", "--num_generations", "4"], "axpo train", "did you mean --rollout.group_size?"),
        (["train", "c.toml", "--num-generations", "4"], "axpo train", "did you mean --rollout.group_size?"),
    ],
)
def test_a_mistake_shows_the_usage_of_its_own_command(
    words: list[str], usage: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: {usage} [-h]") and f"{usage}: error:" in printed and told in printed


def test_the_help_names_commands_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "eval compare" in printed and "eval-compare" not in printed


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("rollout.num_generations", "rollout.group_size"),
        ("train.beta", "algorithm.kl_coef"),
        ("algorithm.epsilon_high", "algorithm.clip_high"),
        ("train.per_device_train_batch_size", "train.tokens_per_micro_batch"),
    ],
)
def test_names_of_other_trainers_are_translated(name: str, ours: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: unknown option; here that is {ours}$"):
        check_option(name)


def test_every_translation_leads_to_an_option() -> None:
    from axpo.trainer.config import _NAMES_ELSEWHERE, option_names

    assert set(_NAMES_ELSEWHERE.values()) <= set(option_names())
    assert not {name for name in _NAMES_ELSEWHERE if any(own.endswith(f".{name}") for own in option_names())}


def test_an_alarm_is_called_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    alarm = Alarm(name="tool_failures", level="error", step=1, text="Half of the calls failed.", advice="Read some.")
    RunConsole(columns=(), num_steps=2).on_step(1, {}, [alarm])
    assert "alarm tool_failures at step 1: Half of the calls failed. Read some." in capsys.readouterr().out


def test_a_report_is_written_beside_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, num_steps=1, num_questions=1)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "runs/a"]) == 0
    assert main(["report", "runs/a", "runs/b"]) == 0
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html"))
    assert found == ["runs/a/report.html", "runs/report.html"]


def make_evaluation(folder: Path) -> Path:
    """The folder of an evaluation on benchmarks, as far as other commands look at it."""
    folder.mkdir()
    for name in ("eval.json", "config.toml", "report.html"):
        (folder / name).write_text("", encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", ["report", "watch"])
def test_an_evaluation_is_no_run_and_keeps_its_page(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_evaluation(tmp_path / "evaluation")
    (folder / "report.html").write_text("its own page", encoding="utf-8")
    assert main([command, str(folder)]) == 2
    assert "an evaluation on benchmarks, not a run" in capsys.readouterr().err
    assert (folder / "report.html").read_text(encoding="utf-8") == "its own page"


@pytest.mark.parametrize(
    ("target", "code", "told"),
    [("folder", 2, "is a folder. Name a file in it"), ("file/x.html", 1, "cannot be written")],
)
def test_a_report_that_cannot_be_written_is_one_line(
    target: str, code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    run = tmp_path / "run"
    write_run(run, num_steps=1, num_questions=1)
    assert main(["report", str(run), "--out", str(tmp_path / target)]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert told in line and str(tmp_path / target) in line
    assert not list(tmp_path.glob("*.partial"))


def test_a_missing_file_is_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "axpo.cli.build", None)  # importing it would fail
    config = tmp_path / "c.toml"
    config.write_text("[model]\npath = 'mini'\n[data]\ntrain = 'nope.jsonl'\n", encoding="utf-8")
    assert main(["train", str(config), "--run.output_dir", str(tmp_path / "run")]) == 2
    assert f"{tmp_path / 'nope.jsonl'}: no such file" in capsys.readouterr().err
