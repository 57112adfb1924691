"""Questions that are not of a published benchmark: the mini family that ships, and files of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from axpo.benchmarks.benchmark import Area, Benchmark, Preset, even_slice
from axpo.benchmarks.scorers.letters import option_texts
from axpo.dialogue import Verdict
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.rewards import REWARDS
from axpo.rewards.answers import extract_answer
from axpo.rewards.choice import extract_choice, read_letter
from axpo.tasks import mini
from axpo.tasks.jsonl import load_problems
from axpo.tasks.mini.questions import SPLIT_SIZES, parse_split
from axpo.types import Problem

SUFFIXES = (".jsonl", ".parquet")


def mini_benchmark(name: str, title: str, area: Area, split: str) -> Benchmark:
    """A held-out split of the mini family (`docs/mini_task.md`)."""
    return Benchmark(
        name=name,
        title=title,
        area=area,
        hub_id="",
        licence="Apache-2.0",
        load=functools.partial(_load_mini, name=name, split=split),
        score=score_by_kind,
        sizes={"axpo": 256, "full": 256},
        needs_tool="search" if area == "Search" else None,
    )


def own_benchmark(path: Path) -> Benchmark:
    """The questions of a JSONL or Parquet file in the format of `docs/data.md`, as a column of its own.

    Raises `DataError` when there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a JSONL or Parquet file of questions, or a benchmark's name.")
    return Benchmark(
        name=path.stem,
        title=path.stem,
        area="Own",
        hub_id="",
        licence="",
        load=functools.partial(_load_file, path=path),
        score=score_by_kind,
        breakdowns=("category",),
    )


def score_by_kind(problem: Problem, final_text: str) -> Verdict:
    """The reward of the question's `answer_kind`, as a verdict."""
    kind = problem.answer_kind
    is_choice = kind == "choice"
    answer, extraction = extract_choice(final_text, option_texts(problem)) if is_choice else extract_answer(final_text)
    if answer is None:
        return Verdict(is_correct=False, rule="no_answer")
    is_correct = REWARDS[kind](final_text, problem) >= 1
    letter = read_letter(answer, option_texts(problem)) if is_choice else None
    return Verdict(is_correct=is_correct, rule=kind, answer=answer, extraction=extraction, letter=letter)


def _load_mini(
    folder: Path,
    *,
    name: str,
    split: str,
    preset: Preset,
    store: ContentImageStore,
    limit: int | None,
    is_official: bool = False,
) -> tuple[Problem, ...]:
    _, part = parse_split(split)
    problems = mini.problems(split, store=store, indices=even_slice(SPLIT_SIZES[part], limit))
    return _keep(problems, name, store)


def _load_file(
    folder: Path, *, path: Path, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    problems = load_problems(path, store=store)
    unknown = [problem for problem in problems if problem.answer_kind not in REWARDS]
    if unknown:
        raise DataError(f"{path}: question {unknown[0].id}: answer_kind {unknown[0].answer_kind!r} has no rule.")
    return _keep([problems[index] for index in even_slice(len(problems), limit)], path.stem, store)


def _keep(problems: Sequence[Problem], name: str, store: ContentImageStore) -> tuple[Problem, ...]:
    kept = tuple(_labelled(problem, name) for problem in problems)
    for image in (image for problem in kept for image in problem.images):
        store.persist(image)
    return kept


def _labelled(problem: Problem, name: str) -> Problem:
    given: Mapping[str, object] = problem.metadata
    category = given.get("category")
    return replace(
        problem,
        metadata={
            **given,
            "benchmark": name,
            "cluster": str(given.get("cluster", problem.id)),
            "categories": {} if category is None else {"category": str(category)},
        },
    )
