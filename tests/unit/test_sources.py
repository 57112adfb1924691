"""A step's questions: how many there really are decides what resampling can afford."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.main import main
from axpo.errors import ConfigError
from axpo.trainer.config import Config
from axpo.trainer.sources import check_resampling


def config_of(questions_per_step: int, **algorithm: Any) -> Config:
    tables = {"rollout": {"questions_per_step": questions_per_step, "group_size": 8}, "algorithm": algorithm}
    return Config.model_validate({"model": {"path": "x"}, **tables})


# floor(0.25 * 1 * 8) = 2 continuations, one prefix costs 4; floor(0.25 * 2 * 8) = 4.
def test_a_budget_that_never_pays_for_a_prefix_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        check_resampling(config_of(1), num_questions=100)
    assert str(error.value) == (
        "algorithm.resample_budget_frac: a budget of 2 continuations per step (1 questions x 8 rollouts) never pays "
        "for one prefix of num_continuations = 4. Raise it, or set it to 0 for GRPO."
    )
    check_resampling(config_of(2), num_questions=100)
    check_resampling(config_of(1, resample_budget_frac=0.5), num_questions=100)
    check_resampling(config_of(1, resample_budget_frac=0), num_questions=100)


def test_a_small_data_set_counts_not_the_questions_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 2 continuations .*; the data set has only 1 questions\)"):
        check_resampling(config_of(64), num_questions=1)
    check_resampling(config_of(64), num_questions=2)


def test_training_refuses_such_a_budget_before_it_loads_the_model(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("axpo.cli.build.load_model", None)
    monkeypatch.setattr("axpo.cli.build.Policy", None)
    Path("questions.jsonl").write_text(json.dumps({"id": "q", "question": "?", "answer": "A"}) + "\n")
    Path("config.toml").write_text(f'[model]\npath = "{tiny_checkpoint}"\n[data]\ntrain = "questions.jsonl"\n')
    assert main(["train", "config.toml"]) == 2
    assert "the data set has only 1 questions" in capsys.readouterr().err
    assert not Path("runs").exists()
