"""MathVision's published outputs: the authors' verdicts from the raw responses, and their result tables.

Responses are a sample (`tests/fixtures/mathvision`); the tables are of all 3,040 questions.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from axpo.benchmarks.scorers.mathvision import score
from axpo.benchmarks.scorers.mathvision_official import (
    extract_official,
    judge_official,
    official_tables,
    score_official,
)
from axpo.types import Message, Problem

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDS = FIXTURES / "mathvision_golds.jsonl"
OUTPUTS = FIXTURES / "mathvision" / "outputs"
NAMES = ("Qwen-VL-Max-CoT", "Random-Chance")
SAMPLE = {"Qwen-VL-Max-CoT": (251, 99), "Random-Chance": (195, 51)}
"""Rows of the sample, and how many of them the authors judged right."""


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
    return read_lines(OUTPUTS / f"{name}.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_every_official_verdict_comes_out_of_the_raw_response(name: str) -> None:
    rows = outputs(name)
    ours = {row["id"]: score_official(problems()[row["id"]], row["response"]).is_correct for row in rows}
    assert (len(ours), sum(ours.values())) == SAMPLE[name]
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
    published = json.loads((OUTPUTS / f"{name}_result.json").read_text(encoding="utf-8"))
    correct = set(json.loads((OUTPUTS / f"{name}_correct.json").read_text(encoding="utf-8")))
    ours = official_tables(problems(), {problem_id: problem_id in correct for problem_id in problems()})
    assert ours == published
    assert list(ours) == list(published)
    assert ours["-all"] == {"Random-Chance": "218/3040=7.17%", "Qwen-VL-Max-CoT": "384/3040=12.63%"}[name]


def test_our_own_rule_differs_from_the_authors_on_the_known_rows_alone() -> None:
    rows = outputs("Qwen-VL-Max-CoT")
    ours = {row["id"]: score(problems()[row["id"]], row["response"]).is_correct for row in rows}
    stricter = [row["id"] for row in rows if row["correct"] and not ours[row["id"]]]
    milder = [row["id"] for row in rows if ours[row["id"]] and not row["correct"]]
    assert stricter == ["1048", "2827"]  # equal at the authors' two decimals only
    assert len(milder) == 25 and all(problems()[problem_id].metadata["options"] for problem_id in milder)
