"""HR-Bench (arXiv:2408.15556) at 4K and at 8K: 200 questions each, four times with the options in another order.

Read are the published Parquet and TSV files, whose pictures are base64, and the hub's converted splits.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import find_bare_arrow, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, gold_letter, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import ANSWER_LETTER, picture_first, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.types import ImageRef, Problem

Resolution = Literal["4k", "8k"]
_LETTERS = ("A", "B", "C", "D")
_REQUIRED = ("index", "question", "answer", "category", *_LETTERS, "cycle_category", "image")


def load_4k(folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None) -> tuple[Problem, ...]:
    """HR-Bench-4K, see `load`."""
    return load(folder, resolution="4k", preset=preset, store=store, limit=limit)


def load_8k(folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None) -> tuple[Problem, ...]:
    """HR-Bench-8K, see `load`."""
    return load(folder, resolution="8k", preset=preset, store=store, limit=limit)


def load(
    folder: Path, *, resolution: Resolution, preset: Preset, store: ContentImageStore, limit: int | None
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Preset `axpo` is the first row of each question, `full` all four."""
    table = _open(folder, resolution)
    rows = list(table.rows())
    if preset == "axpo":
        rows = _first_rotations(rows, table)
    kept = keep_evenly(rows, limit)
    shelf = PictureShelf(store)
    return unique((record.place, _build(record, resolution, shelf)) for record in table.with_pictures(kept))


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


def _first_rotations(rows: list[Record], table: Table) -> list[Record]:
    """The first row of each pair of picture and question: one question is asked about several pictures.

    Reads the whole file once, a picture at a time.
    """
    first: dict[tuple[str, str], Record] = {}
    for record, picture in zip(rows, table.digests("image"), strict=True):
        first.setdefault((picture, record.text("question")), record)
    return list(first.values())


def _build(record: Record, resolution: Resolution, shelf: PictureShelf) -> Problem:
    question = record.text("question")
    choices = tuple(record.text(letter) for letter in _LETTERS)
    picture = shelf.add_cell(record.fields.get("image"), record.place.at("image"))
    return build_problem(
        benchmark=f"hrbench_{resolution}",
        problem_id=record.text("index"),
        message=user_message(picture_first(question, picture), options=choices, instruction=ANSWER_LETTER),
        answer=gold_letter(record, "answer", choices),
        categories={"category": record.text("category"), "rotation": record.text("cycle_category")},
        cluster=_base_question(picture, question),
        choices=choices,
    )


def _base_question(picture: ImageRef, question: str) -> str:
    return hashlib.sha256(f"{picture.sha256}\n{question}".encode()).hexdigest()[:16]
