"""Math-VR (arXiv:2510.11718): 2,500 English questions, 1,000 of them without a picture, the others with up to eight.

Read is the hub's Parquet. The paper of AXPO names no subset: both presets are the whole.
"""

from __future__ import annotations

import json
from pathlib import Path

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import BARE_ARROW, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import (
    ANSWER_PARTS,
    NO_INSTRUCTION,
    mentioned_pictures,
    numbered_pictures,
    user_message,
)
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.types import ImageRef, Problem

NAME = "mathvr"
_PICTURES = tuple(f"image{number}" for number in range(1, 9))
_REQUIRED = (
    "question",
    "category",
    "number_of_answers",
    "answers",
    "total_score",
    "scoring_points",
    "scores",
)


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Both presets are all questions."""
    patterns = (*split_patterns("test"), BARE_ARROW)
    files = find_files(folder, patterns)
    if not files:
        raise missing_files(folder, "Math-VR test set", patterns)
    table = Table(files, required=(*_REQUIRED, "image1"), optional=("id", *_PICTURES[1:]), pictures=_PICTURES)
    kept = keep_evenly(list(table.rows()), limit)
    shelf, instruction = PictureShelf(store), NO_INSTRUCTION if is_official else ANSWER_PARTS
    return unique((record.place, _build(record, shelf, instruction)) for record in table.with_pictures(kept))


def _build(record: Record, shelf: PictureShelf, instruction: str) -> Problem:
    question = record.text("question")
    pictures = {number: _picture(record, number, shelf) for number in mentioned_pictures(question)}
    num_answers = record.integer("number_of_answers")
    answers = _parts(record, "answers", num_answers)
    if not answers:
        raise record.place.at("answers").error("expected an answer", got=record.fields.get("answers"), fix="Add one.")
    return build_problem(
        benchmark=NAME,
        problem_id=record.maybe_text("id") or str(record.position),
        message=user_message(numbered_pictures(question, pictures), instruction=instruction),
        answer="; ".join(answers),
        categories={"category": record.text("category")},
        scorer_data={
            "answers": list(answers),
            "number_of_answers": num_answers,
            "total_score": _number(record, "total_score", record.fields.get("total_score")),
            "scoring_points": list(record.texts("scoring_points")),
            "scores": [_number(record, "scores", score) for score in record.texts("scores")],
        },
    )


def _picture(record: Record, number: int, shelf: PictureShelf) -> ImageRef:
    name = f"image{number}"
    place = record.place.at(name)
    picture = shelf.maybe_add_cell(record.fields.get(name), place)
    if picture is None:
        raise place.error(
            f"the question shows <image{number}>, so it must hold a picture",
            got=record.fields.get(name),
            fix="Copy the published file again.",
        )
    return picture


def _parts(record: Record, name: str, num_answers: int) -> tuple[str, ...]:
    """The answers. One alone may itself read like a list: `[3, 5)` is an interval, `[3, 5]` with one answer another."""
    parts = record.texts(name)
    value = record.fields.get(name)
    if num_answers == 1 and len(parts) > 1 and isinstance(value, str):
        return (value.strip(),)
    return parts


def _number(record: Record, name: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError as error:
        raise record.place.at(name).error(
            "expected a number", got=json.dumps(value, default=str), fix="Copy the published file again."
        ) from error
    return number
