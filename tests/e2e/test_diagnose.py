"""`diagnose` on a run that was trained: its numbers are the logged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axpo.cli.diagnose import run_diagnose
from axpo.cli.main import main
from axpo.measures.rates import RATES
from workshop import numbers_of, words_of


def test_a_trained_run_diagnosed_gives_the_numbers_that_were_logged(
    tmp_path: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop)
    words = words_of(train__steps=3, data__eval="", run__output_dir=tmp_path / "run")
    assert main(["train", "config.toml", *words]) == 0
    out = tmp_path / "diagnosis.json"
    assert run_diagnose([tmp_path / "run"], budget_frac=0.5, num_continuations=2, json_path=out) == 0
    [part] = json.loads(out.read_text())["parts"]
    logged = {record["step"]: record for record in numbers_of(tmp_path / "run") if record["kind"] == "train"}
    assert [step["step"] for step in part["steps"]] == [1, 2, 3] == list(logged)
    for step in part["steps"]:
        numbers, record = step["numbers"], logged[step["step"]]
        for name, rule in RATES.items():
            if rule.logged_as:
                estimate = numbers["rates"][name]["estimate"]
                expected = record[rule.logged_as]
                assert estimate == (None if expected is None else pytest.approx(expected)), (step["step"], name)
        assert numbers["counts"]["candidates"] == record["resample/candidates"]
        assert sum(numbers["failures"].values()) == sum(
            value for key, value in record.items() if key.startswith("tools/failures/")
        )
    assert part["recovery"]["num_prefixes"] * 2 == sum(record["resample/planned"] for record in logged.values())
    assert any(record["resample/planned"] for record in logged.values()), "nothing was resampled: nothing is shown"
