"""HR-MMSearch (SenseNova-MARS, arXiv:2512.24330): 305 questions about 4K photographs that need a search.

Read are the hub's Parquet and the project's own evaluation file, `data.jsonl`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import BARE_ARROW, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import ANSWER_SHORT, OFFICIAL_TAG, picture_first, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.tasks.fields import Row
from axpo.types import JsonValue, Message, Problem

NAME = "hrmmsearch"


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Both presets are all questions."""
    table = _open(folder)
    kept = keep_evenly(list(table.rows()), limit)
    shelf = PictureShelf(store)
    build = _build_jsonl if table.files[0].suffix == ".jsonl" else _build
    instruction = OFFICIAL_TAG if is_official else ANSWER_SHORT
    return unique((record.place, build(record, shelf, instruction)) for record in table.with_pictures(kept))


def _open(folder: Path) -> Table:
    patterns = (*split_patterns("train"), BARE_ARROW, "data.jsonl")
    files = find_files(folder, patterns)
    if not files:
        raise missing_files(folder, "HR-MMSearch questions", patterns)
    if files[0].suffix == ".jsonl":
        required = ("prompt", "image", "reward_model")
        return Table(files, required=required, optional=("sample_id", "difficulty", "category"))
    required = ("sample_id", "query", "query_image", "ground_truth", "difficulty", "category")
    return Table(files, required=required, pictures=("query_image",))


def _build(record: Record, shelf: PictureShelf, instruction: str) -> Problem:
    picture = shelf.add_cell(record.fields.get("query_image"), record.place.at("query_image"))
    message = user_message(picture_first(record.text("query"), picture), instruction=instruction)
    return _problem(record, record.text("sample_id"), message, record.texts("ground_truth"))


def _build_jsonl(record: Record, shelf: PictureShelf, instruction: str) -> Problem:
    place = record.place
    paths = record.texts("image")
    if len(paths) != 1:
        raise place.at("image").error("expected one picture", got=record.fields["image"], fix="Write one path.")
    picture = shelf.add_path(paths[0], place.at("image"), roots=(place.path.parent,))
    reward = record.fields["reward_model"]
    golds = cast("Row", reward).get("ground_truth") if isinstance(reward, dict) else None
    answers = tuple(str(gold) for gold in cast("list[JsonValue]", golds)) if isinstance(golds, list) else ()
    problem_id = record.maybe_text("sample_id") or str(record.position)
    message = user_message(picture_first(_last_user_text(record), picture), instruction=instruction)
    return _problem(record, problem_id, message, answers)


def _last_user_text(record: Record) -> str:
    prompt = record.fields["prompt"]
    turns = cast("list[JsonValue]", prompt) if isinstance(prompt, list) else []
    rows = [cast("Row", turn) for turn in turns if isinstance(turn, dict)]
    texts = [row.get("content") for row in rows if row.get("role") == "user"]
    if not texts or not isinstance(texts[-1], str):
        raise record.place.at("prompt").error(
            "expected a list of messages with a user's text", got=prompt, fix="Copy the published file again."
        )
    return texts[-1]


def _problem(record: Record, problem_id: str, message: Message, answers: tuple[str, ...]) -> Problem:
    if not answers:
        raise record.place.error("expected a ground truth", got=record.fields.get("ground_truth"), fix="Add one.")
    labels = {name: record.maybe_text(name) for name in ("category", "difficulty")}
    return build_problem(
        benchmark=NAME,
        problem_id=problem_id,
        message=message,
        answer=answers[0],
        categories={name: label for name, label in labels.items() if label is not None},
        aliases=answers[1:],
    )
