"""V* (V*Bench, arXiv:2312.14135): 191 questions with two or four options about small things in large pictures.

Read are the authors' `test_questions.jsonl` with its folders, the Parquet re-upload and VLMEvalKit's TSV. The original
folders of one JSON a picture are refused: there the first option is always the right one.
"""

from __future__ import annotations

from pathlib import Path

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import BARE_ARROW, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, gold_letter, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import ANSWER_LETTER, OFFICIAL_LETTER, picture_first, split_options, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.types import ImageRef, Problem

NAME = "vstar"
_JSONL = "test_questions.jsonl"
_TSV = ("VStarBench.tsv", "VStar_Bench.tsv", "*.tsv")
_ORIGINAL = ("direct_attributes/*.json", "relative_position/*.json")
_LETTERS = ("A", "B", "C", "D")


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Both presets are all 191 questions."""
    table = _open(folder)
    kept = keep_evenly(list(table.rows()), limit)
    shelf, instruction = PictureShelf(store), OFFICIAL_LETTER if is_official else ANSWER_LETTER
    return unique((record.place, _build(record, shelf, instruction)) for record in table.with_pictures(kept))


def _open(folder: Path) -> Table:
    patterns = (_JSONL, *split_patterns("test"), BARE_ARROW, *_TSV)
    files = find_files(folder, patterns)
    if not files and find_files(folder, _ORIGINAL):
        raise DataError(
            f"{folder}: V* in its original layout, one JSON file a picture. There the first option is always the right "
            f"one, which inflates scores by about 5 points. Add {_JSONL} of the data set craigwu/vstar_bench: its "
            "options are shuffled."
        )
    if not files:
        raise missing_files(folder, "V* questions", patterns)
    columns = ("question_id", "category", "text", "label", "image")
    if files[0].suffix == ".jsonl":
        return Table(files, required=columns)
    if files[0].suffix == ".tsv":
        required = ("index", "category", "question", "A", "B", "answer", "image")
        return Table(files, required=required, optional=("C", "D"), pictures=("image",))
    return Table(files, required=columns, pictures=("image",))


def _build(record: Record, shelf: PictureShelf, instruction: str) -> Problem:
    is_tsv = record.place.path.suffix == ".tsv"
    if is_tsv:
        question = record.text("question")
        choices = tuple(option for letter in _LETTERS if (option := record.maybe_text(letter)) is not None)
    else:
        question, choices = split_options(record.text("text"))
    if len(choices) < 2:
        field = "A" if is_tsv else "text"
        raise record.place.at(field).error(
            "expected two options or more, a line each", got=record.fields.get(field), fix="Correct the question."
        )
    category = record.text("category")
    return build_problem(
        benchmark=NAME,
        problem_id=f"{category}-{record.text('index' if is_tsv else 'question_id')}",
        message=user_message(
            picture_first(question, _picture(record, shelf)), options=choices, instruction=instruction
        ),
        answer=gold_letter(record, "answer" if is_tsv else "label", choices),
        categories={"category": category},
        choices=choices,
    )


def _picture(record: Record, shelf: PictureShelf) -> ImageRef:
    place = record.place.at("image")
    if record.place.path.suffix == ".jsonl":
        return shelf.add_path(record.text("image"), place, roots=(record.place.path.parent,))
    return shelf.add_cell(record.fields.get("image"), place)
