"""DynaMath (arXiv:2411.00836): 501 seed questions in ten fixed variants each.

Read are the repository's trials (`trial1/dataset.json` and its `image/`) and the hub's Parquet, a split a variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from axpo.benchmarks.benchmark import Preset, even_slice
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, unique
from axpo.benchmarks.loaders.prompts import (
    ANSWER_BOXED,
    ANSWER_DECIMAL,
    ANSWER_LETTER,
    OFFICIAL_JSON,
    inline_options,
    picture_first,
    user_message,
)
from axpo.benchmarks.pictures import PictureShelf
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.tasks.fields import Place
from axpo.types import Problem

NAME = "dynamath"
_NUM_VARIANTS = 10
_INSTRUCTIONS = {"float": ANSWER_DECIMAL, "multiple choice": ANSWER_LETTER, "text": ANSWER_BOXED}
_OFFICIAL_INSTRUCTIONS = {
    "float": OFFICIAL_JSON + "The short answer is a floating-point number with three decimals.",
    "multiple choice": OFFICIAL_JSON + "The short answer is the letter of the right option.",
    "text": OFFICIAL_JSON + "The short answer is as concise as possible.",
}


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Preset `axpo` is variant 1, `full` every variant that is there."""
    tables = _open(folder, preset)
    rows = [(variant, record) for variant, table in tables.items() for record in table.rows()]
    kept = [rows[index] for index in even_slice(len(rows), limit)]
    instructions = _OFFICIAL_INSTRUCTIONS if is_official else _INSTRUCTIONS
    return unique(_build_all(tables, kept, PictureShelf(store), instructions))


def _build_all(
    tables: dict[int, Table], kept: list[tuple[int, Record]], shelf: PictureShelf, instructions: Mapping[str, str]
) -> Iterator[tuple[Place, Problem]]:
    for variant, table in tables.items():
        for record in table.with_pictures([record for number, record in kept if number == variant]):
            yield record.place, _build(record, variant, shelf, instructions)


def _open(folder: Path, preset: Preset) -> dict[int, Table]:
    variants = range(1, 2 if preset == "axpo" else _NUM_VARIANTS + 1)
    files = {variant: find_files(folder, _patterns(variant)) for variant in variants}
    tables = {variant: _table(found) for variant, found in files.items() if found}
    if not tables:
        raise missing_files(folder, f"DynaMath variant 1 (preset {preset})", _patterns(1))
    return tables


def _patterns(variant: int) -> tuple[str, ...]:
    trial = f"trial{variant}/dataset.json"
    return (
        trial,
        f"10trials/{trial}",
        f"samples and result/10trials/{trial}",
        *split_patterns(f"sample_variant{variant}"),
    )


def _table(files: tuple[Path, ...]) -> Table:
    if files[0].suffix == ".json":
        return Table(files, required=("key", "question", "answer", "image", "answer_type", "subject", "level"))
    required = ("id", "question", "ground_truth", "answer_type", "subject", "decoded_image")
    return Table(files, required=required, optional=("knowledge_level", "level"), pictures=("decoded_image",))


def _build(record: Record, variant: int, shelf: PictureShelf, instructions: Mapping[str, str]) -> Problem:
    is_trial = record.place.path.suffix == ".json"
    seed = record.text("key" if is_trial else "id")
    question, kind = record.text("question"), record.text("answer_type")
    if kind not in instructions:
        raise record.place.at("answer_type").error(
            f"expected one of {', '.join(instructions)}", got=kind, fix="Copy the published file again."
        )
    if is_trial:
        roots = (record.place.path.parent,)
        picture = shelf.add_path(record.text("image"), record.place.at("image"), roots=roots)
    else:
        picture = shelf.add_cell(record.fields.get("decoded_image"), record.place.at("decoded_image"))
    return build_problem(
        benchmark=NAME,
        problem_id=f"{seed}-v{variant}",
        message=user_message(picture_first(question, picture), instruction=instructions[kind]),
        answer=record.text("answer" if is_trial else "ground_truth"),
        categories={
            "subject": record.text("subject"),
            "level": _level(record),
            "answer_type": kind,
            "variant": str(variant),
        },
        cluster=seed,
        choices=inline_options(question) if kind == "multiple choice" else (),
        scorer_data={"answer_type": kind, "seed": seed, "variant": variant},
    )


def _level(record: Record) -> str:
    level = record.maybe_text("level") or record.maybe_text("knowledge_level")
    if level is None:
        raise DataError(f"{record.place}: expected a field level or knowledge_level. Copy the published file again.")
    return level
