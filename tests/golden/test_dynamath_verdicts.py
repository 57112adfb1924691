"""DynaMath: average and worst case of the published verdicts, and the scorers on a sample of gold answers.

The verdicts are of all 501 seeds; the gold answers are those of 188 questions of variant 1 (`tests/fixtures/dynamath`).
"""

from __future__ import annotations

import csv
import json
import random
from functools import cache
from pathlib import Path

import pytest

from axpo.benchmarks.scorers.dynamath import read_options, score, score_official
from axpo.evaluation.variants import any_case, average_case, by_group, worst_case
from axpo.types import Content, Message, Problem

DATA = Path(__file__).parents[1] / "fixtures" / "dynamath"
VERDICTS = DATA / "verdicts" / "GPT4o-result.csv"
GOLDS = DATA / "golds.jsonl"


@cache
def verdict_rows() -> tuple[list[list[str]], list[str]]:
    """Rows of the 501 seed questions, and the file's own line of percentages."""
    with VERDICTS.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    seeds = [row for row in rows if row[0].startswith("Q") and row[0][1:].isdigit()]
    return seeds, next(row for row in rows if row[0] == "A_avg")


@cache
def problems() -> tuple[Problem, ...]:
    rows = [json.loads(line) for line in GOLDS.read_text(encoding="utf-8").splitlines()]
    return tuple(
        Problem(
            id=row["id"],
            messages=(Message(role="user", content=(Content(text=row["question"]),)),),
            answer=row["answer"],
            metadata={"answer_type": row["answer_type"]},
        )
        for row in rows
    )


def test_average_and_worst_case_of_gpt_4o_are_the_published_ones() -> None:
    rows = [[cell == "correct" for cell in row[1:11]] for row in verdict_rows()[0]]
    assert len(rows) == 501
    assert round(100 * average_case(rows), 1) == 63.3
    assert round(100 * worst_case(rows), 1) == 34.7
    assert round(100 * any_case(rows), 1) == 90.2


def test_every_variant_has_its_published_accuracy() -> None:
    seeds, percentages = verdict_rows()
    for index in range(1, 11):
        ours = average_case([[row[index] == "correct"] for row in seeds])
        assert f"{100 * ours:.2f}" == percentages[index].strip()


def test_topics_share_the_questions_out_and_add_up_to_the_average() -> None:
    seeds = verdict_rows()[0]
    rows = [[cell == "correct" for cell in row[1:11]] for row in seeds]
    topics = by_group(rows, [row[12] for row in seeds])
    sizes = {topic: len(own) for topic, own in topics.items()}
    assert sizes["statistics"] == 125 and sizes["solid geometry"] == 15 and sum(sizes.values()) == 501
    total = sum(average_case(own) * len(own) for own in topics.values())
    assert total / 501 == pytest.approx(average_case(rows), abs=1e-12)
    assert sum(worst_case(own) * len(own) for own in topics.values()) == pytest.approx(174)


@pytest.mark.parametrize(
    "final_text",
    ["So it is $\\boxed{%s}$.", '{"solution": "first \\\\boxed{7}", "short answer": "%s"}', "<answer>%s</answer>"],
)
def test_every_gold_answer_is_right(final_text: str) -> None:
    wrong = [(p.id, p.answer) for p in problems() if not score(p, final_text.replace("%s", p.answer)).is_correct]
    assert wrong == []


def test_every_gold_answer_is_right_by_the_authors_rule() -> None:
    replies = [(p, json.dumps({"solution": "", "short answer": p.answer})) for p in problems()]
    assert [p.id for p, reply in replies if not score_official(p, reply).is_correct] == []


def test_the_gold_answer_of_another_question_is_wrong_unless_it_is_the_same_number_or_option() -> None:
    draw = random.Random(0)
    golds = [problem.answer for problem in problems()]
    for problem in problems():
        for other in draw.sample(golds, 25):
            if score(problem, f"\\boxed{{{other}}}").is_correct:
                assert is_same(problem, other), (problem.id, problem.answer, other)


def is_same(problem: Problem, other: str) -> bool:
    if problem.metadata["answer_type"] == "multiple choice":
        index = ord(problem.answer) - ord("A")
        return other in (problem.answer, *read_options(problem.messages[0].text)[index : index + 1])
    try:
        return abs(float(problem.answer) - float(other.rpartition("=")[2])) <= 0.001
    except ValueError:
        return problem.answer == other
