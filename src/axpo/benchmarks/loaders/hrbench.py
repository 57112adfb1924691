"""HR-Bench (arXiv:2408.15556) at 4K and at 8K: 200 questions each, four times with the options in another order.

Reads the published Parquet and TSV files, whose images are base64, and the hub's converted splits.

The four rotations of a question have the golds A, B, C and D, in the published 4K file always in this order. So a
subset must not take the same rotation of every question: a model that always answers with one letter would then be
always right or always wrong.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from axpo.benchmarks.benchmark import Preset, even_slice
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import find_bare_arrow, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, gold_letter, unique
from axpo.benchmarks.loaders.prompts import ANSWER_LETTER, OFFICIAL_CHOICE, picture_first, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.types import ImageRef, Problem

Resolution = Literal["4k", "8k"]
_LETTERS = ("A", "B", "C", "D")
_REQUIRED = ("index", "question", "answer", "category", *_LETTERS, "cycle_category", "image")


def load_4k(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """HR-Bench-4K, see `load`."""
    return load(folder, resolution="4k", preset=preset, store=store, limit=limit, is_official=is_official)


def load_8k(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """HR-Bench-8K, see `load`."""
    return load(folder, resolution="8k", preset=preset, store=store, limit=limit, is_official=is_official)


def load(
    folder: Path,
    *,
    resolution: Resolution,
    preset: Preset,
    store: ContentImageStore,
    limit: int | None,
    is_official: bool = False,
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Preset `axpo` is one rotation of each question, `full` all four.

    Of the kept questions, the first is asked with its option A right, the second with B, and so on. A limit keeps that
    many different questions as long as there are enough, then further rotations of them.
    """
    table = _open(folder, resolution)
    kept = list(table.rows())
    if preset == "axpo" or limit is not None:
        questions = _by_question(kept, table)
        num_rows = len(questions) if preset == "axpo" else len(kept)
        kept = _take_turns(questions, num_rows if limit is None else min(limit, num_rows))
    shelf, instruction = PictureShelf(store), OFFICIAL_CHOICE if is_official else ANSWER_LETTER
    return unique(
        (record.place, _build(record, resolution, shelf, instruction)) for record in table.with_pictures(kept)
    )


def _open(folder: Path, resolution: Resolution) -> Table:
    split = f"hrbench_{resolution}"
    name = f"hr_bench_{resolution}"
    patterns = (
        f"{name}.parquet",
        f"**/{name}.parquet",
        *split_patterns(split),
        f"{name}.tsv",
        f"**/{name}.tsv",
        f"HRBench{resolution.upper()}.tsv",
    )
    files = find_files(folder, patterns) or find_bare_arrow(folder, split)
    if not files:
        raise missing_files(folder, f"HR-Bench-{resolution.upper()}", patterns)
    return Table(files, required=_REQUIRED, pictures=("image",))


def _by_question(rows: list[Record], table: Table) -> list[list[Record]]:
    """The rotations of each question, in the order of their gold letters: the published order is not relied on.

    A question is a pair of image and text, because one text is asked about several images. Reads the whole file once,
    an image at a time.
    """
    questions: dict[tuple[str, str], list[Record]] = {}
    for record, picture in zip(rows, table.digests("image"), strict=True):
        questions.setdefault((picture, record.text("question")), []).append(record)
    return [sorted(rotations, key=lambda record: record.text("answer")) for rotations in questions.values()]


def _take_turns(questions: list[list[Record]], num_rows: int) -> list[Record]:
    """That many rows: one rotation of each of evenly spaced questions, a different one from question to question.

    Where questions run out, each gives its next rotation.
    """
    kept = [questions[index] for index in even_slice(len(questions), num_rows)]
    turns = [
        (turn, rotations[(rank + turn) % len(rotations)])
        for rank, rotations in enumerate(kept)
        for turn in range(len(rotations))
    ]
    turns.sort(key=lambda pair: pair[0])  # stable: the questions stay in order within a turn
    return [record for _, record in turns[:num_rows]]


def _build(record: Record, resolution: Resolution, shelf: PictureShelf, instruction: str) -> Problem:
    question = record.text("question")
    choices = tuple(record.text(letter) for letter in _LETTERS)
    picture = shelf.add_cell(record.fields.get("image"), record.place.at("image"))
    return build_problem(
        benchmark=f"hrbench_{resolution}",
        problem_id=record.text("index"),
        message=user_message(picture_first(question, picture), options=choices, instruction=instruction),
        answer=gold_letter(record, "answer", choices),
        categories={"category": record.text("category"), "rotation": record.text("cycle_category")},
        cluster=_base_question(picture, question),
        choices=choices,
    )


def _base_question(picture: ImageRef, question: str) -> str:
    return hashlib.sha256(f"{picture.sha256}\n{question}".encode()).hexdigest()[:16]
