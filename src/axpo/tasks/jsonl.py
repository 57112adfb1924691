"""Data files, JSONL or Parquet, read row by row into `Problem`s or `Conversation`s. `docs/data.md` has the schema."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from axpo.dialogue import Conversation
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.tasks.fields import ImageSource, Place, Row
from axpo.tasks.schema import build_conversation, build_problem
from axpo.types import Problem

_Item = TypeVar("_Item", Problem, Conversation)
_PARQUET_BATCH_ROWS = 32

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


def load_problems(
    path: str | Path,
    *,
    store: ContentImageStore,
    system_prompt: str | None = None,
    max_rows: int | None = None,
    progress: Progress = lambda num_rows: None,
) -> tuple[Problem, ...]:
    """Questions of a file, their images decoded once. `system_prompt` is put before those that bring no system message.

    Raises `DataError` naming file, row and field at the first row that breaks the schema.
    """

    def build(row: Row, place: Place, images: ImageSource) -> Problem:
        return build_problem(row, place=place, images=images, system_prompt=system_prompt)

    return _load(Path(path), build, store=store, max_rows=max_rows, progress=progress)


def load_conversations(
    path: str | Path,
    *,
    store: ContentImageStore,
    max_rows: int | None = None,
    progress: Progress = lambda num_rows: None,
) -> tuple[Conversation, ...]:
    """Demonstrations of a file. Raises `DataError` naming file, row and field at the first broken row."""

    def build(row: Row, place: Place, images: ImageSource) -> Conversation:
        return build_conversation(row, place=place, images=images)

    return _load(Path(path), build, store=store, max_rows=max_rows, progress=progress)


def _load(
    path: Path,
    build: Callable[[Row, Place, ImageSource], _Item],
    *,
    store: ContentImageStore,
    max_rows: int | None,
    progress: Progress,
) -> tuple[_Item, ...]:
    images = ImageSource(folder=path.parent, store=store)
    items: dict[str, _Item] = {}
    places: dict[str, Place] = {}
    for place, row in itertools.islice(read_rows(path), max_rows):
        item = build(row, place, images)
        if item.id in items:
            raise place.at("id").error(f"used before, in {places[item.id].row}", got=item.id, fix="Ids must be unique.")
        items[item.id], places[item.id] = item, place
        progress(len(items))
    if not items:
        raise DataError(f"{path}: no rows. Expected one JSON object a line, or a Parquet table with rows.")
    return tuple(items.values())


def check_file(path: Path) -> None:
    """Raise `DataError` unless there is a file of a type that can be read: costs nothing, before models are loaded."""
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise DataError(
            f"{path}: unknown file type {path.suffix!r}. Expected .jsonl (one JSON object per line) or .parquet."
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file.{_nearest_file(path)}")


def read_rows(path: Path) -> Iterator[tuple[Place, Row]]:
    """The rows of a `.jsonl` or `.parquet` file, each with its place. Raises `DataError` when it cannot be read."""
    check_file(path)
    return _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_parquet(path)


def _read_jsonl(path: Path) -> Iterator[tuple[Place, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = Place(path=path, row=f"line {number}", default_id=f"{path.stem}-{number}")
            text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place)
            if text:
                yield place, _parse_line(text, place)


def _decode(line: bytes, place: Place) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise place.error("not UTF-8 text", got=line[:40], fix="Save the file as UTF-8.") from error


def _parse_line(text: str, place: Place) -> Row:
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise place.error(
            f"not valid JSON ({error})", got=text, fix="Write one complete JSON object a line (json.dumps does)."
        ) from error
    if not isinstance(row, dict):
        raise place.error("expected a JSON object", got=row, fix='Write {"question": ..., "answer": ...}.')
    return cast("Row", row)


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _read_parquet(path: Path) -> Iterator[tuple[Place, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            batches = table.iter_batches(batch_size=_PARQUET_BATCH_ROWS)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                place = Place(path=path, row=f"row {number}", default_id=f"{path.stem}-{number}")
                yield place, _drop_nulls(row)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a complete Parquet file ({reason}). Write or copy it again.") from error


def _drop_nulls(value: Any) -> Any:
    """Without the null fields of structs: Arrow gives every struct of a column every field that any row has."""
    if isinstance(value, dict):
        return {name: _drop_nulls(item) for name, item in cast("Row", value).items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in cast("list[Any]", value)]
    return value


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / names[0]}?" if names else " Check the path."
