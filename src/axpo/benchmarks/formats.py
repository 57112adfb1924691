"""The containers in which benchmarks are published: JSONL, JSON, TSV, Parquet, Arrow. One interface, row by row.

A format reads only the columns and the rows that it is asked for, as far as its container allows: Parquet and Arrow
skip both without reading them, the text formats parse what they pass over and let go of it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from axpo.errors import DataError
from axpo.tasks.fields import Place, Row
from axpo.tasks.jsonl import read_rows

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAX_CELL_CHARS = 2**29
"""Of a TSV cell, which may hold a picture: Python's own limit is 131,072."""
_BATCH_ROWS = 8
"""Of Parquet, read at a time: a row may hold 30 MB of picture."""


class Format(Protocol):
    """How files with one suffix are read. Both methods raise `DataError` when a file is broken or cut off."""

    def columns(self, path: Path) -> tuple[str, ...]:
        """Names of the columns; of JSON, the fields of the first row. Empty when there is no row."""
        ...

    def rows(
        self, path: Path, *, columns: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Place, Row]]:
        """Position (from 0), place and fields of each row, or of those at `positions` (ascending)."""
        ...


class JsonFormat:
    """JSONL, and JSON files that hold an array of objects or an object of objects (whose keys become `key`).

    These hold paths, not pictures, so that a whole file fits into memory.
    """

    def columns(self, path: Path) -> tuple[str, ...]:
        """Fields of the first row."""
        for _, row in _json_rows(path):
            return tuple(row)
        return ()

    def rows(
        self, path: Path, *, columns: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Place, Row]]:
        """See `Format.rows`."""
        wanted = None if positions is None else frozenset(positions)
        for position, (place, row) in enumerate(_json_rows(path)):
            if wanted is None or position in wanted:
                yield position, place, _project(row, columns)


class TsvFormat:
    """Tab-separated values with a header line; cells may be quoted and then hold tabs and line breaks."""

    def columns(self, path: Path) -> tuple[str, ...]:
        """Names in the header line."""
        with _open_tsv(path) as reader:
            return tuple(next(reader, []))

    def rows(
        self, path: Path, *, columns: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Place, Row]]:
        """See `Format.rows`. Empty cells are absent fields."""
        wanted = None if positions is None else frozenset(positions)
        with _open_tsv(path) as reader:
            header = next(reader, [])
            filled = (cells for cells in reader if cells)
            for position, cells in enumerate(filled):
                if positions is not None and (not positions or position > positions[-1]):
                    return
                if wanted is None or position in wanted:
                    place = _place(path, position)
                    yield position, place, _project(_tsv_row(header, cells, place), columns)


class ParquetFormat:
    """Apache Parquet. Columns that are not asked for are not read, nor are row groups without a wanted row."""

    def columns(self, path: Path) -> tuple[str, ...]:
        """Names of the top-level columns."""
        with _open_parquet(path) as file:
            return tuple(file.schema_arrow.names)

    def rows(
        self, path: Path, *, columns: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Place, Row]]:
        """See `Format.rows`."""
        with _open_parquet(path) as file:
            group_start = 0
            for group in range(file.num_row_groups):
                group_stop = group_start + file.metadata.row_group(group).num_rows
                if positions is None or any(group_start <= position < group_stop for position in positions):
                    batches = file.iter_batches(
                        batch_size=_BATCH_ROWS,
                        row_groups=[group],
                        columns=None if columns is None else list(columns),
                        use_threads=False,
                    )
                    yield from _batch_rows(path, batches, group_start, positions)
                group_start = group_stop


class ArrowFormat:
    """Arrow IPC streams, as `datasets.save_to_disk` writes them; memory-mapped, so that only wanted rows are read."""

    def columns(self, path: Path) -> tuple[str, ...]:
        """Names of the columns."""
        with _open_arrow(path) as reader:
            return tuple(reader.schema.names)

    def rows(
        self, path: Path, *, columns: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Place, Row]]:
        """See `Format.rows`."""
        with _open_arrow(path) as reader:
            wanted = list(reader.schema.names if columns is None else columns)
            yield from _batch_rows(path, (batch.select(wanted) for batch in reader), 0, positions)


FORMATS: dict[str, Format] = {
    ".jsonl": JsonFormat(),
    ".json": JsonFormat(),
    ".tsv": TsvFormat(),
    ".parquet": ParquetFormat(),
    ".arrow": ArrowFormat(),
}


def _place(path: Path, position: int) -> Place:
    return Place(path=path, row=f"row {position + 1}", default_id=f"{path.stem}-{position + 1}")


def _project(row: Row, columns: Sequence[str] | None) -> Row:
    return row if columns is None else {name: row[name] for name in columns if name in row}


def _json_rows(path: Path) -> Iterator[tuple[Place, Row]]:
    if path.suffix == ".jsonl":
        yield from read_rows(path)
        return
    content = _load_json(path)
    if isinstance(content, dict):
        keyed = [{"key": key, **item} if isinstance(item, dict) else item for key, item in content.items()]
    else:
        keyed = content
    for position, row in enumerate(cast("list[Any]", keyed)):
        place = _place(path, position)
        if not isinstance(row, dict):
            raise place.error("expected a JSON object", got=row, fix="Copy the published file again.")
        yield place, cast("Row", row)


def _load_json(path: Path) -> dict[str, Any] | list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a complete JSON file ({error}). Write or copy it again.") from error
    if not isinstance(content, dict | list):
        raise DataError(f"{path}: expected a JSON array or object of rows, got {type(content).__name__}.")
    return cast("dict[str, Any] | list[Any]", content)


@contextmanager
def _open_tsv(path: Path) -> Generator[Iterator[list[str]]]:
    if csv.field_size_limit() < _MAX_CELL_CHARS:  # a setting of the whole process: only ever raised
        csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file, delimiter="\t", strict=True)
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a complete TSV file ({error}). Write or copy it again.") from error


def _tsv_row(header: list[str], cells: list[str], place: Place) -> Row:
    if len(cells) != len(header):
        raise DataError(
            f"{place}: {len(cells)} cells under {len(header)} columns. The file is cut off or not tab-separated: "
            "copy it again."
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


@contextmanager
def _complete(path: Path, kind: str) -> Generator[None]:
    """Turns what pyarrow raises into one error about the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: not a complete {kind} file ({reason}). Write or copy it again.") from error


@contextmanager
def _open_parquet(path: Path) -> Generator[pq.ParquetFile]:
    import pyarrow.parquet as pq

    # A buffer lets pages be read one after the other; without it a whole column chunk, gigabytes, comes into memory.
    with _complete(path, "Parquet"), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        yield file


@contextmanager
def _open_arrow(path: Path) -> Generator[Any]:
    import pyarrow as pa

    with _complete(path, "Arrow"), pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield reader


def _batch_rows(
    path: Path, batches: Iterator[Any], start: int, positions: Sequence[int] | None
) -> Iterator[tuple[int, Place, Row]]:
    """Rows of batches, the first of which begins at position `start`. Only wanted rows become Python objects."""
    wanted = None if positions is None else frozenset(positions)
    for batch in batches:
        for offset in range(batch.num_rows):
            position = start + offset
            if wanted is None or position in wanted:
                yield position, _place(path, position), cast("Row", batch.slice(offset, 1).to_pylist()[0])
        start += batch.num_rows
