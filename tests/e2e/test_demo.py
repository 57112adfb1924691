"""The demo, small: two real trainings side by side from the shipped checkpoint, the table, the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from axpo.cli import demo
from axpo.cli.main import main
from workshop import read_jsonl

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


FAKE_RUN = """
import json, signal, sys, time
from pathlib import Path
folder, num_steps, claimed_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
metrics = folder / "metrics.jsonl"
with metrics.open("a") as file:
    for step in range(metrics.read_text().count("\\n") + 1, num_steps + 1):
        time.sleep(0.1)
        file.write(json.dumps({"kind": "train", "step": step, "seconds/step": claimed_s}) + "\\n")
        file.flush()
with (folder / "starts").open("a") as file:
    file.write(f"{num_steps}\\n")
"""


def test_on_a_machine_that_becomes_slower_both_runs_end_at_the_same_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten minutes promised, 40 steps of 2 s planned; then a step takes 60 s, or so it says."""

    def command(name: str, recipe: Path, options: dict[str, Any], words: list[str]) -> list[str]:
        run = [sys.executable, "-c", FAKE_RUN]
        if name == "eval":
            record = {"kind": "eval", "step": 0, "seconds/eval": 4.0}
            return [sys.executable, "-c", "", name, *write_metrics(Path(words[1]), record)]
        return [*run, str(options["run.output_dir"]), str(options["train.steps"]), "60"]

    def write_metrics(folder: Path, record: dict[str, Any]) -> list[str]:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return []

    monkeypatch.setattr(demo, "_command", command)
    monkeypatch.setattr(demo, "_show", lambda *_: None)
    monkeypatch.setattr(demo, "POLL_S", 0.01)
    demo.run_demo(minutes=10, out=tmp_path / "demo", seed=0)
    printed = capsys.readouterr().out
    told = re.findall(r"The steps take 60 s here now: to end in time, both runs continue to step (\d+)\.", printed)
    assert told and 5 <= int(told[0]) < 40, printed
    last = int(told[-1])  # the clock of this test stands still, so there turns out to be time for more
    for name in ("grpo", "axpo"):
        steps = [record["step"] for record in read_jsonl(tmp_path / "demo" / name / "metrics.jsonl")]
        assert steps == list(range(1, last + 1))
        assert (tmp_path / "demo" / name / "starts").read_text() == f"{last}\n", "the first start was interrupted"


def test_the_recipes_of_the_demo_are_in_the_wheel_and_work_from_there(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    shutil.copytree(root / "src", tmp_path / "tree" / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(root / "recipes" / "mini_cpu", tmp_path / "tree" / "recipes" / "mini_cpu")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / "tree")
    subprocess.run([sys.executable, "-m", *build, ".", "-w", ".."], check=True, cwd=tmp_path / "tree", timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shutil.rmtree(tmp_path / "tree")
    code = (
        "import axpo; from axpo.cli.demo import RECIPES; from axpo.cli.overrides import load_config\n"
        "steps = [load_config(RECIPES / f'{name}.toml').train.steps for name in ('grpo', 'axpo')]\n"
        "print(axpo.__file__, *steps)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert printed == f"{tmp_path / 'site' / 'axpo' / '__init__.py'} 40 40\n"


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
