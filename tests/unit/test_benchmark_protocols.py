"""Each benchmark asked in our way and in its authors' way: a perfect reply in the asked-for format is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from axpo.benchmarks.registry import BENCHMARKS
from axpo.benchmarks.scorers.mathvision import clean_gold
from axpo.dialogue import Verdict
from axpo.images import ContentImageStore
from axpo.types import Problem
from benchmark_files import (
    write_dynamath,
    write_hrbench,
    write_hrmmsearch,
    write_mathvision,
    write_mathvr,
    write_mmsearch,
    write_visualprobe,
    write_vstar,
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "mathvision": write_mathvision,
    "dynamath": write_dynamath,
    "mathvr": write_mathvr,
    "vstar": write_vstar,
    "visualprobe": write_visualprobe,
    "hrbench_4k": write_hrbench,
    "hrbench_8k": lambda folder: write_hrbench(folder, resolution="8k"),
    "hrmmsearch": write_hrmmsearch,
    "mmsearch": write_mmsearch,
}
JUDGED_RIGHT = {
    "mathvr-1": '{"is_fully_correct": true, "final_score": 1}',
    "visualprobe-1": "Score: 1",
    "hrmmsearch-1": "Yes",
}
UNREADABLE_BY_THE_AUTHORS = {"2830"}  # MathVision: a form feed took the place of `\\f` in the published gold


def load(name: str, folder: Path, *, is_official: bool) -> tuple[Problem, ...]:
    WRITERS[name](folder)
    options = {"preset": "axpo", "store": ContentImageStore(), "limit": None}
    return BENCHMARKS[name].load(folder, **options, is_official=is_official)


def perfect_reply(problem: Problem) -> str:
    """What a model writes that knows the answer and does what the question's last lines ask for."""
    text = problem.messages[-1].text
    gold = clean_gold(problem.answer) if problem.metadata["benchmark"] == "mathvision" else problem.answer
    if '"short answer"' in text:
        return json.dumps({"solution": "I see $x$.", "short answer": gold})
    if "\\boxed{}" in text:
        return f"I see it.\nSo it is $\\boxed{{{gold}}}$."
    if "<answer>" in text:
        return f"I see it.\n<answer>{gold}</answer>"
    return gold


def judged(name: str, problem: Problem, text: str, *, is_official: bool) -> Verdict:
    benchmark = BENCHMARKS[name]
    official = benchmark.official
    assert official is not None
    verdict = (official.score if is_official else benchmark.score)(problem, text)
    if verdict.is_decided:
        return verdict
    assert benchmark.judge is not None and verdict.answer == problem.answer, "the judge is shown the answer"
    found = benchmark.judge.parse(problem, JUDGED_RIGHT[benchmark.judge.id])
    assert found is not None
    return found


@pytest.mark.parametrize("is_official", [False, True], ids=["axpo", "official"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_perfect_reply_in_the_asked_format_is_right(tmp_path: Path, name: str, is_official: bool) -> None:
    problems = load(name, tmp_path, is_official=is_official)
    assert problems
    for problem in problems:
        verdict = judged(name, problem, perfect_reply(problem), is_official=is_official)
        expected = not (is_official and problem.id in UNREADABLE_BY_THE_AUTHORS)
        assert verdict.is_correct is expected, (problem.id, perfect_reply(problem), verdict)


@pytest.mark.parametrize("is_official", [False, True], ids=["axpo", "official"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_wrong_reply_in_the_asked_format_is_not_right_by_a_rule(tmp_path: Path, name: str, is_official: bool) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.official is not None
    score = benchmark.official.score if is_official else benchmark.score
    for problem in load(name, tmp_path, is_official=is_official):
        wrong = "ABCDEF"[("ABCDEF".index(problem.answer) + 1) % 6] if problem.answer in "ABCDEF" else "8765.4321"
        reply = perfect_reply(problem).replace(clean_gold(problem.answer), wrong)
        assert not score(problem, reply).is_correct, (problem.id, reply)


@pytest.mark.parametrize("name", WRITERS)
def test_both_protocols_ask_the_same_questions(tmp_path: Path, name: str) -> None:
    ours = load(name, tmp_path / "ours", is_official=False)
    theirs = load(name, tmp_path / "theirs", is_official=True)
    assert [(p.id, p.answer, p.images, p.metadata) for p in ours] == [
        (p.id, p.answer, p.images, p.metadata) for p in theirs
    ]
    assert all(mine.messages != other.messages for mine, other in zip(ours, theirs, strict=True))
    official = BENCHMARKS[name].official
    assert official is not None and official.leaves_out and not official.leaves_out.endswith(".")
    is_open = {not official.score(problem, perfect_reply(problem)).is_decided for problem in theirs}
    assert is_open == {official.needs_judge} or name == "hrmmsearch"  # whose equal answers need no judge


@pytest.mark.parametrize("name", WRITERS)
def test_the_docs_say_what_the_official_protocol_leaves_out(name: str) -> None:
    official = BENCHMARKS[name].official
    page = (Path(__file__).parents[2] / "docs" / "benchmarks_scoring.md").read_text(encoding="utf-8")
    assert official is not None and f"| {official.leaves_out} |" in page
