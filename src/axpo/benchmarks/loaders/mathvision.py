"""MathVision (MATH-V, arXiv:2402.14804): 3,040 questions, 304 in `testmini`, each with one picture.

Read are the repository's JSONL with its `images/`, the hub's Parquet and VLMEvalKit's TSV. The two sets are published
apart; neither can be cut out of the other's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import find_bare_arrow, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import (
    ANSWER_BOXED,
    ANSWER_LETTER,
    OFFICIAL_BOXED,
    one_picture,
    strip_placeholders,
    user_message,
)
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.tasks.fields import Place
from axpo.types import ImageRef, Problem

NAME = "mathvision"
_SPLITS: dict[Preset, str] = {"axpo": "testmini", "full": "test"}
_TSV_NAMES: dict[Preset, str] = {"axpo": "MathVision_MINI.tsv", "full": "MathVision.tsv"}
_LETTERS = ("A", "B", "C", "D", "E")


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Preset `axpo` is testmini, `full` the test set."""
    table = _open(folder, preset)
    kept = keep_evenly(list(table.rows()), limit)
    shelf = PictureShelf(store)
    return unique(
        (record.place, _build(record, shelf, folder, is_official=is_official)) for record in table.with_pictures(kept)
    )


def _open(folder: Path, preset: Preset) -> Table:
    split = _SPLITS[preset]
    patterns = (f"{split}.jsonl", f"data/{split}.jsonl", *split_patterns(split), _TSV_NAMES[preset])
    files = find_files(folder, patterns) or find_bare_arrow(folder, split)
    if not files:
        raise missing_files(folder, f"MathVision {split} (preset {preset})", patterns)
    if files[0].suffix == ".jsonl":
        return Table(files, required=("id", "question", "options", "answer", "level", "subject", "image"))
    if files[0].suffix == ".tsv":
        required = ("index", "question", "choices", "answer", "category", "image")
        return Table(files, required=required, optional=("id", "level"), pictures=("image",))
    required = ("id", "question", "options", "answer", "level", "subject", "decoded_image")
    return Table(files, required=required, pictures=("decoded_image",))


def _build(record: Record, shelf: PictureShelf, folder: Path, *, is_official: bool) -> Problem:
    options = record.all_texts("options" if "options" in record.fields else "choices")
    choices = _choices(options)
    has_texts = choices != _LETTERS[: len(choices)]
    labels = dict(_labels(record))
    problem_id = record.maybe_text("id") or record.text("index")
    message = user_message(
        one_picture(record.text("question"), _picture(record, shelf, folder)),
        options=choices if has_texts else (),
        instruction=OFFICIAL_BOXED if is_official else ANSWER_LETTER if options else ANSWER_BOXED,
    )
    return build_problem(
        benchmark=NAME,
        problem_id=problem_id,
        message=message,
        answer=record.text("answer"),
        categories={name: str(value) for name, value in labels.items()},
        choices=choices,
        scorer_data={"options": list(options), **labels},
    )


def _choices(options: tuple[str, ...]) -> tuple[str, ...]:
    """Texts of the options; the letters where all of them are shown in the picture."""
    texts = tuple(strip_placeholders(option).strip() for option in options)
    return texts if any(texts) else _LETTERS[: len(options)]


def _labels(record: Record) -> Iterator[tuple[str, str | int]]:
    yield "subject", record.text("subject" if "subject" in record.fields else "category")
    if record.maybe_text("level") is not None:
        yield "level", record.integer("level")


def _picture(record: Record, shelf: PictureShelf, folder: Path) -> ImageRef:
    place: Place = record.place
    if "decoded_image" in record.fields:
        return shelf.add_cell(record.fields["decoded_image"], place.at("decoded_image"))
    if place.path.suffix == ".tsv":
        return shelf.add_cell(record.fields.get("image"), place.at("image"))
    return shelf.add_path(record.text("image"), place.at("image"), roots=(place.path.parent, folder))
