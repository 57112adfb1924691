"""MMSearch (arXiv:2409.12959), its end-to-end questions: 300, of which 171 show a picture.

Read is the hub's Parquet, configuration `end2end`.
"""

from __future__ import annotations

from pathlib import Path

from axpo.benchmarks.benchmark import Preset
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import BARE_ARROW, find_files, missing_files, split_patterns
from axpo.benchmarks.loaders.assembly import build_problem, keep_evenly, unique
from axpo.benchmarks.loaders.prompts import ANSWER_SHORT, OFFICIAL_WORDS, picture_first, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.types import Problem

NAME = "mmsearch"
_CONVENTIONS = (
    "Write a date as yyyy-mm-dd. Where the question rests on something untrue, the answer is: invalid question.\n"
)
_REQUIRED = ("sample_id", "query", "query_image", "area", "subfield", "gt_answer", "alternative_gt_answers")


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Both presets are all 300; `has_image` tells the 171 of other papers."""
    patterns = (*split_patterns("end2end"), BARE_ARROW)
    files = find_files(folder, patterns)
    if not files:
        raise missing_files(folder, "MMSearch end-to-end questions", patterns)
    table = Table(files, required=_REQUIRED, optional=("timestamp", "gt_requery"), pictures=("query_image",))
    kept = keep_evenly(list(table.rows()), limit)
    shelf, instruction = PictureShelf(store), _CONVENTIONS + (OFFICIAL_WORDS if is_official else ANSWER_SHORT)
    return unique((record.place, _build(record, shelf, instruction)) for record in table.with_pictures(kept))


def _build(record: Record, shelf: PictureShelf, instruction: str) -> Problem:
    picture = shelf.maybe_add_cell(record.fields.get("query_image"), record.place.at("query_image"))
    extra = {name: record.maybe_text(name) for name in ("timestamp", "gt_requery")}
    return build_problem(
        benchmark=NAME,
        problem_id=record.text("sample_id"),
        message=user_message(picture_first(record.text("query"), picture), instruction=instruction),
        answer=record.text("gt_answer"),
        categories={
            "area": record.text("area"),
            "subfield": record.text("subfield"),
            "has_image": "no" if picture is None else "yes",
        },
        aliases=record.texts("alternative_gt_answers"),
        scorer_data=extra,
    )
