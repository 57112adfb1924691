"""VisualProbe (Mini-o3, arXiv:2509.07969): 106 hard, 268 medium and 141 easy questions about large pictures.

Read are the published `val.json` arrays, one data set a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from axpo.benchmarks.benchmark import Preset, even_slice
from axpo.benchmarks.containers import Record, Table
from axpo.benchmarks.layouts import find_files, missing_files
from axpo.benchmarks.loaders.assembly import build_problem, unique
from axpo.benchmarks.loaders.prompts import ANSWER_SHORT, OFFICIAL_TAG, picture_first, user_message
from axpo.benchmarks.pictures import PictureShelf
from axpo.images import ContentImageStore
from axpo.tasks.fields import Place
from axpo.types import ImageRef, Problem

NAME = "visualprobe"
_LEVELS: dict[Preset, tuple[str, ...]] = {"axpo": ("hard",), "full": ("hard", "medium", "easy")}
_COLUMNS = ("doc_id", "problem", "solution", "images", "data_source")


def load(
    folder: Path, *, preset: Preset, store: ContentImageStore, limit: int | None, is_official: bool = False
) -> tuple[Problem, ...]:
    """See `axpo.benchmarks.benchmark.Load`. Preset `axpo` is the hard level, `full` all three."""
    rows = [(level, record) for level in _LEVELS[preset] for record in _read_level(folder, level, preset)]
    shelf, instruction = PictureShelf(store), OFFICIAL_TAG if is_official else ANSWER_SHORT
    return unique(_build_all([rows[index] for index in even_slice(len(rows), limit)], shelf, instruction))


def _read_level(folder: Path, level: str, preset: Preset) -> list[Record]:
    patterns = (f"VisualProbe_{level.title()}/val.json", f"{level}/val.json", "val.json")
    files = find_files(folder, patterns)
    records = list(Table(files, required=_COLUMNS).rows()) if files else []
    records = [record for record in records if record.text("data_source") == f"visual_probe_{level}"]
    if not records:
        raise missing_files(folder, f"VisualProbe {level} rows (preset {preset})", patterns)
    return records


def _build_all(
    rows: list[tuple[str, Record]], shelf: PictureShelf, instruction: str
) -> Iterator[tuple[Place, Problem]]:
    for level, record in rows:
        yield record.place, _build(record, level, shelf, instruction)


def _build(record: Record, level: str, shelf: PictureShelf, instruction: str) -> Problem:
    return build_problem(
        benchmark=NAME,
        problem_id=f"{level}-{record.text('doc_id')}",
        message=user_message(picture_first(record.text("problem"), _picture(record, shelf)), instruction=instruction),
        answer=record.text("solution"),
        categories={"difficulty": level},
    )


def _picture(record: Record, shelf: PictureShelf) -> ImageRef:
    """The picture. Its path begins with the name of the data set, which need not be the name of the folder."""
    place = record.place.at("images")
    paths = record.texts("images")
    if len(paths) != 1:
        raise place.error("expected one picture", got=record.fields["images"], fix="Copy the published file again.")
    folder = record.place.path.parent
    below = PurePosixPath(paths[0]).parts[1:]
    inside = str(PurePosixPath(*below)) if below else paths[0]
    path = inside if (folder / inside).is_file() else paths[0]
    return shelf.add_path(path, place, roots=(folder, folder.parent))
