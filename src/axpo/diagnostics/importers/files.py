"""Which files a path means, and their rows one at a time. Nothing is loaded whole that could be large.

A directory is searched for dumps; links in it are not followed, so that nothing outside is read. Files whose paths
differ only in a number belong together: a trainer that writes one file a step wrote one dump.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from axpo.diagnostics.importers import archives
from axpo.diagnostics.importers.problems import Problems
from axpo.errors import DataError

Row = Mapping[str, Any]

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is skipped; it is never held in memory."""
MAX_JSON_BYTES = 64 * 2**20
"""Of a file that is one JSON value and has to be loaded whole."""
MAX_DEPTH = 12
"""Of folders below a directory that was given."""
RUN_FIELD = "trackio_run"
"""Added to the rows of trackio's tables: the run that logged them."""

_CHUNK_BYTES = 2**20
_MAX_RUNS = 10_000
_TABLE = re.compile(r'\{"_type": ?"trackio\.table"')
_TRACKIO_COLUMNS = {"run_name", "timestamp", "step"}
"""Of an export; its rows without a table are other metrics."""
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
_WHOLE = {".eval", ".db"}
"""Kinds of files that always hold a whole log."""
_STEP_FOLDER = re.compile(r"(?:global_)?step[-_]?\d+|rollout[-_]?\d+")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpFile:
    """A file to read. `dump`: name shared by the files that belong together."""

    path: Path
    dump: str
    step: int | None = None
    """The number in its path that tells it from its siblings: the last one."""


# -- which files ------------------------------------------------------------------------------------------------------


def find_dumps(path: Path, problems: Problems) -> list[DumpFile]:
    """The file itself, or the dumps in a directory in the order of their numbers.

    Raises `DataError` when there is no such path, or it is neither a file nor a directory, or a pickle.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if stat.S_ISREG(mode):
        _check_suffix(path)
        return [DumpFile(path=path, dump=path.name)]
    if not stat.S_ISDIR(mode):
        raise DataError(f"{path}: is neither a file nor a directory (a pipe or a device). Write the dump to a file.")
    root = path / "rollouts" if (path / "rollouts").is_dir() and (path / "metrics.jsonl").is_file() else path
    found = [_as_dump(file, path) for file in _walk(root, problems, MAX_DEPTH)]
    sizes = Counter(file.dump for file in found)
    alone = (file if sizes[file.dump] > 1 else _alone(file.path, path) for file in found)
    return sorted(alone, key=lambda file: (file.dump, _numbers(file.path), str(file.path)))


def _walk(folder: Path, problems: Problems, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        problems.add_skipped(folder, error.strerror)
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            problems.add_skipped(path, "a link; links inside a directory are not followed")
        elif entry.is_dir() and not entry.name.startswith("."):
            if depth > 0:
                yield from _walk(path, problems, depth - 1)
            else:
                problems.add_skipped(path, f"nested more than {MAX_DEPTH} folders deep")
        elif entry.is_file():
            if path.suffix.lower() in _READERS:
                yield path
            elif path.suffix.lower() in _PICKLES:
                problems.add_skipped(path, "a pickle, which runs code when loaded; export it to JSONL")
        elif path.suffix.lower() in _READERS:
            problems.add_skipped(path, "no regular file")


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise DataError(
            f"{path}: torch.save files are pickles, which run code when loaded, so they are not opened. Export it to "
            "JSONL where you trust it; docs/diagnose.md has the four lines for slime."
        )
    if suffix not in _READERS:
        raise DataError(f"{path}: unknown kind of file {suffix!r}. Expected one of {', '.join(_READERS)}.")


def _alone(path: Path, root: Path) -> DumpFile:
    """A file that no other belongs to: its number says nothing."""
    return DumpFile(path=path, dump=path.relative_to(root).as_posix())


def _as_dump(path: Path, root: Path) -> DumpFile:
    inner = path.relative_to(root)
    if path.suffix.lower() in _WHOLE:
        return _alone(path, root)
    folders = ["step_*" if _STEP_FOLDER.fullmatch(name) else name for name in inner.parts[:-1]]
    numbers = _numbers(Path(*inner.parts[len(inner.parts) - 1 - ("step_*" in folders) :]))
    if "step_*" in folders:
        numbers = [int(n) for name in inner.parts[:-1] if _STEP_FOLDER.fullmatch(name) for n in _NUMBER.findall(name)]
    stem = path.name if "step_*" in folders else _NUMBER.sub("*", inner.stem) + inner.suffix
    return DumpFile(path=path, dump="/".join([*folders, stem]), step=numbers[-1] if numbers else None)


def _numbers(path: Path) -> list[int]:
    return [int(number[:18]) for number in _NUMBER.findall(str(path))]


# -- their rows -------------------------------------------------------------------------------------------------------


def read_rows(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    """`(place, row)` of a file; what is no row is counted in `problems`. Raises `DataError` when the file is broken."""
    try:
        yield from _READERS[path.suffix.lower()](path, problems)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    with _open_regular(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                num_bytes = len(line) + _skip_line(file)
                problems.add_malformed(f"{path}:{number}", f"a line of {num_bytes:,} bytes, {MAX_LINE_BYTES:,} allowed")
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.isspace():
                    problems.add_malformed(f"{path}:{number}", _explain(error))
                continue
            if isinstance(row, dict):
                yield f"{path}:{number}", cast("Row", row)
            else:
                problems.add_malformed(f"{path}:{number}", f"expected a JSON object, got {type(row).__name__}")


def _skip_line(file: Any) -> int:
    """Read on to the end of a line without keeping it; returns the bytes passed over."""
    num_bytes = 0
    while piece := file.readline(_CHUNK_BYTES):
        num_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_bytes


def _read_json(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    """A list of rows, or an object with the rows under `samples` (inspect_ai), or one row."""
    with _open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise DataError(
            f"{path}: a JSON file of more than {MAX_JSON_BYTES:,} bytes would have to be loaded whole. Write one "
            "object a line (.jsonl); an inspect_ai log: inspect log convert --to eval."
        )
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {_explain(error)}.") from error
    yield from _rows_of_value(value, str(path), problems)


def _rows_of_value(value: Any, place: str, problems: Problems) -> Iterator[tuple[str, Row]]:
    rows: Any = value
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        table = fields.get("_value") if fields.get("_type") == "trackio.table" else fields.get("samples")
        rows = table if isinstance(table, list) and "rollout_id" not in fields else [fields]
    for number, row in enumerate(cast("list[Any]", rows) if isinstance(rows, list) else [rows], start=1):
        if isinstance(row, dict):
            yield f"{place}:{number}", cast("Row", row)
        else:
            problems.add_malformed(f"{place}:{number}", f"expected a JSON object, got {type(row).__name__}")


def _read_archive(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    with _open_regular(path) as file:
        for name, data in archives.read_samples(file, path, problems, max_bytes=MAX_JSON_BYTES):
            try:
                value = json.loads(data)
            except (ValueError, RecursionError) as error:
                problems.add_malformed(f"{path}:{name}", _explain(error))
                continue
            yield from _rows_of_value(value, f"{path}:{name}", problems)


def _read_parquet(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open_regular(path) as file:
        try:
            table: Any = pq.ParquetFile(file)
            schema = table.schema_arrow
            columns = [name for name in schema.names if name not in ("image", "images")]
            is_trackio = set(schema.names) >= _TRACKIO_COLUMNS
            number, tables = 0, _Tables()
            for batch in table.iter_batches(batch_size=256, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path}:{number}"
                    cells = [cell for cell in row.values() if _is_table(cell)]
                    run = str(row.get("run_id") or row.get("run_name"))
                    for cell in cells:
                        yield from tables.read(cell, run, place, problems)
                    if not cells and not is_trackio:
                        yield place, row
        except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: not readable as Parquet: {_explain(error)}.") from error


def _is_table(cell: Any) -> bool:
    """A table in trackio's export: a struct, or JSON in older versions."""
    if isinstance(cell, dict):
        return cast("dict[str, Any]", cell).get("_type") == "trackio.table"
    return isinstance(cell, str) and _TABLE.match(cell) is not None


def _read_trackio(path: Path, problems: Problems) -> Iterator[tuple[str, Row]]:
    """The tables that a trackio database holds; other metrics are passed over."""
    tables = _Tables()
    for place, run, cell in archives.read_tables(path, problems, max_bytes=MAX_JSON_BYTES):
        yield from tables.read(cell, run, place, problems)


class _Tables:
    """The rows of trackio's tables with their run, each table once: TRL logs its last one again when training ends."""

    def __init__(self) -> None:
        self._last: dict[str, bytes] = {}

    def read(self, cell: Any, run: str, place: str, problems: Problems) -> Iterator[tuple[str, Row]]:
        """`cell`: the table, or its JSON."""
        try:
            value = json.loads(cell) if isinstance(cell, str) else cell
            rows = list(_rows_of_value(value, place, problems))
            # a picture is stored anew each time
            content = json.dumps([{**row, "image": None} for _, row in rows], default=str)
        except (ValueError, RecursionError) as error:
            problems.add_malformed(place, _explain(error))
            return
        digest = hashlib.sha256(content.encode()).digest()
        if self._last.get(run) == digest:
            return
        if len(self._last) >= _MAX_RUNS:
            self._last.clear()
        self._last[run] = digest
        for spot, row in rows:
            yield spot, {**row, RUN_FIELD: run}


_READERS: dict[str, Callable[[Path, Problems], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".eval": _read_archive,
    ".db": _read_trackio,
}


@contextlib.contextmanager
def _open_regular(path: Path) -> Generator[Any]:
    """Open without ever waiting: a pipe that took the file's place since it was found is refused."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path}: is no regular file.")
        yield file


def _explain(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return f"{error}"
