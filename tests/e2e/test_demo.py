"""The demo, small: two real trainings side by side from the shipped checkpoint, the table, the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.cli import demo
from axpo.cli.main import main

SMALLER = {
    "questions_per_step = 16": "questions_per_step = 2",
    "group_size = 8": "group_size = 4",
    "resample_budget_frac = 0.25": "resample_budget_frac = 0.5",
    'train = "mini:train"': 'train = "mini:train"\nmax_train_rows = 4',
    "num_samples = 4": "num_samples = 2",
}


@pytest.fixture
def small_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("axpo.toml", "grpo.toml"):
        text = (demo.RECIPES / name).read_text(encoding="utf-8")
        for old, new in SMALLER.items():
            assert old in text or name == "grpo.toml"
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(demo, "RECIPES", folder)
    monkeypatch.setattr(demo, "FULL_STEPS", 2)
    monkeypatch.setattr(demo, "EVAL_QUESTIONS", 4)
    monkeypatch.setattr(demo, "MIN_EVAL_QUESTIONS", 4)
    return folder


def test_the_demo_prints_the_table_and_writes_the_report(
    small_recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--minutes", "5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Pass@1" in printed and "Pass@2" in printed
    assert "GRPO" in printed and "AXPO" in printed
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image" in report
    assert main(["demo", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_impossible_minutes_are_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--minutes", minutes]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_a_run_that_fails_shows_its_log_and_leaves_no_process(
    small_recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = (small_recipes / "grpo.toml").read_text(encoding="utf-8").replace("kl_coef", "kl_cof")
    (small_recipes / "grpo.toml").write_text(broken, encoding="utf-8")
    assert main(["demo", "--minutes", "5", "--out", str(tmp_path / "demo")]) == 1
    assert "did you mean algorithm.kl_coef" in capsys.readouterr().err
