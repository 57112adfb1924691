"""Files in files: inspect_ai's zip logs and trackio's databases.

Sizes are bounded by what is read, not by what a header says.
"""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from axpo.diagnostics.importers.problems import Problems
from axpo.errors import DataError

_ZSTANDARD = 93
_BROKEN_ZIP = (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error)
"""Errors of `zipfile` on a damaged file; the last three come from damaged directories and headers."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_TABLE_MARK = '%"trackio.table"%'


def read_samples(file: IO[bytes], path: Path, problems: Problems, *, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """`(name, JSON)` of every sample of an inspect_ai log. Raises `DataError` when it is no such archive."""
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN_ZIP as error:
        raise DataError(f"{path}: not an inspect_ai log: {error}.") from error
    with archive:
        members = [info for info in archive.infolist() if _is_sample(info.filename)]
        for info in members:
            try:
                data = _read_member(archive, file, info, max_bytes)
            except (*_BROKEN_ZIP, zlib.error, EOFError, OSError, RuntimeError) as error:
                problems.add_malformed(f"{path}:{info.filename}", error)
                continue
            if len(data) > max_bytes:
                problems.add_malformed(f"{path}:{info.filename}", f"a sample of more than {max_bytes:,} bytes")
            else:
                yield info.filename, data


def read_tables(path: Path, problems: Problems, *, max_bytes: int) -> Iterator[tuple[str, str, str]]:
    """`(place, run, JSON)` of every table in the metrics of a trackio database. Opened read-only.

    The metrics of a row are a text or, since trackio writes them with orjson, the bytes of one.
    """
    uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            kinds = connection.execute("SELECT type FROM sqlite_master WHERE name = 'metrics'").fetchall()
            if kinds != [("table",)]:
                raise DataError(f"{path}: no trackio database: it has no table named metrics.")
            columns = {column[1] for column in connection.execute("PRAGMA table_info(metrics)")}
            run = next((name for name in ("run_id", "run_name") if name in columns), "NULL")
            query = (
                f"SELECT id, {run}, metrics FROM metrics WHERE length(metrics) <= ? AND CAST(metrics AS TEXT) LIKE ?"
            )
            for row_id, run_id, metrics in connection.execute(query, (max_bytes, _TABLE_MARK)):
                for table in _tables_in(metrics):
                    yield f"{path}:{row_id}", str(run_id), table
            count = "SELECT count(*) FROM metrics WHERE length(metrics) > ?"
            for _ in range(min(1000, connection.execute(count, (max_bytes,)).fetchone()[0])):
                problems.add_malformed(str(path), f"a row of more than {max_bytes:,} bytes")
    except (sqlite3.Error, ValueError) as error:  # ValueError: a damaged name of a column is not UTF-8
        raise DataError(f"{path}: not readable as a trackio database: {error}.") from error


def _tables_in(metrics: Any) -> Iterator[str]:
    """The tables among the logged values of one step, each as JSON."""
    try:
        value = json.loads(metrics)
    except (ValueError, TypeError, RecursionError):
        yield str(metrics)  # the reader counts it as malformed
        return
    cells: list[Any] = list(value.values()) if isinstance(value, dict) else []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("_type") == "trackio.table":
            yield json.dumps(cell)


def _is_sample(name: str) -> bool:
    return name.startswith("samples/") and name.endswith(".json")


def _read_member(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes`. Python below 3.14 cannot read Zstandard, pyarrow can."""
    if info.compress_type != _ZSTANDARD:
        with archive.open(info) as member:
            return member.read(max_bytes + 1)
    import pyarrow as pa

    file.seek(info.header_offset)
    mark, num_name, num_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if mark != b"PK\x03\x04" or info.compress_size > max_bytes:
        raise ValueError("a broken or too large member of the archive")
    file.seek(num_name + num_extra, io.SEEK_CUR)
    stream: Any = pa.CompressedInputStream(pa.BufferReader(file.read(info.compress_size)), "zstd")
    with stream:
        return stream.read(max_bytes + 1)
