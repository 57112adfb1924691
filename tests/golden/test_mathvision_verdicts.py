"""MathVision's published outputs: the authors' verdicts from the raw responses, and their result tables.

All 3,040 questions; the golds lie in `tests/fixtures`, the outputs in the shared data beside the repository.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from axpo.benchmarks.scorers.mathvision_official import (
    extract_official,
    judge_official,
    official_tables,
    score_official,
)
from axpo.types import Message, Problem

GOLDS = Path(__file__).parents[1] / "fixtures" / "mathvision_golds.jsonl"
OUTPUTS = Path(__file__).parents[2].parent / "shared" / "data" / "mathvision" / "outputs"
NAMES = ("Qwen-VL-Max-CoT", "Random-Chance")
pytestmark = pytest.mark.skipif(not OUTPUTS.is_dir(), reason=f"needs the published MathVision outputs in {OUTPUTS}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def problems() -> dict[str, Problem]:
    return {
        row["id"]: Problem(id=row["id"], messages=(Message(role="user"),), answer=row["answer"], metadata=row)
        for row in read_lines(GOLDS)
    }


@cache
def outputs(name: str) -> list[dict[str, Any]]:
    return read_lines(next(OUTPUTS.rglob(f"{name}.jsonl")))


@pytest.mark.parametrize("name", NAMES)
def test_every_official_verdict_comes_out_of_the_raw_response(name: str) -> None:
    rows = outputs(name)
    ours = {row["id"]: score_official(problems()[row["id"]], row["response"]).is_correct for row in rows}
    assert len(ours) == 3040
    assert [row["id"] for row in rows if ours[row["id"]] != row["correct"]] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_official_verdict_comes_out_of_the_published_answer(name: str) -> None:
    rows = outputs(name)
    wrong = [
        row["id"]
        for row in rows
        if judge_official(problems()[row["id"]], row["model_answer"]).is_correct != row["correct"]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_read_from_responses_as_published_but_for_one_that_follows_no_published_rule(name: str) -> None:
    different = [row["id"] for row in outputs(name) if extract_official(row["response"])[0] != row["model_answer"]]
    assert different == (["1787"] if name == "Qwen-VL-Max-CoT" else [])


@pytest.mark.parametrize("name", NAMES)
def test_subject_and_level_tables_equal_the_published_ones(name: str) -> None:
    published = json.loads(next(OUTPUTS.rglob(f"{name}_result.json")).read_text(encoding="utf-8"))
    ours = official_tables(problems(), {row["id"]: row["correct"] for row in outputs(name)})
    assert ours == published
    assert list(ours) == list(published)
    assert ours["-all"] == {"Random-Chance": "218/3040=7.17%", "Qwen-VL-Max-CoT": "384/3040=12.63%"}[name]
