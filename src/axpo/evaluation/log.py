"""`rollouts/BENCHMARK.jsonl`: one line for each try that has ended, appended and never changed.

A line is on the disk before its try counts as done. Whenever the process dies, only the last line can be broken; it is
cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axpo.codec import from_json, to_json
from axpo.errors import DataError, RecordError
from axpo.evaluation.records import SampledRollout
from axpo.files import write_atomically

Key = tuple[str, int]
"""Problem id and number of the sample."""


class RolloutLog:
    """The tries at one benchmark's questions that are done."""

    def __init__(self, path: Path) -> None:
        """Open for appending; what an interrupted write left is cut off. Raises `DataError` on a broken line."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lost: set[Key] = set()
        """Tries that ended in a fault of ours."""
        self.done: set[Key] = set()
        """All that are on the disk, lost ones included."""
        _cut_broken_end(path)
        for record in read_log(path):
            self._note(record)
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def append(self, record: SampledRollout) -> None:
        """Write a try, from any thread. Returns when it is on the disk."""
        line = f"{_to_line(record)}\n".encode("utf-8", "replace")
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._note(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _note(self, record: SampledRollout) -> None:
        key = (record.problem_id, record.sample)
        self.done.add(key)
        if record.transcript is None:
            self.lost.add(key)


def read_log(path: Path) -> Iterator[SampledRollout]:
    """The records of a file, one at a time; nothing when there is no file. An unfinished last line is left out.

    Raises `DataError` on a line that is no such record, and on a try that is there twice.
    """
    if not path.exists():
        return
    seen: set[Key] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            record = _read_line(line, f"{path}:{number}")
            key = (record.problem_id, record.sample)
            if key in seen:
                raise DataError(
                    f"{path}:{number}: sample {key[1]} of {key[0]} is there twice. Remove one of the lines."
                )
            seen.add(key)
            yield record


def drop_lost(path: Path) -> int:
    """Take the lost tries out of a file, so that they are tried again; returns how many."""
    records = list(read_log(path))
    kept = [record for record in records if record.transcript is not None]
    if len(kept) < len(records):
        write_atomically(path, map(_to_line, kept))
    return len(records) - len(kept)


def _to_line(record: SampledRollout) -> str:
    return json.dumps(to_json(record), ensure_ascii=False)


def _read_line(line: bytes, place: str) -> SampledRollout:
    try:
        value: Any = json.loads(line)
        return from_json(SampledRollout, value)
    except (RecordError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{place}: not a rollout of an evaluation: {error}. Remove the line.") from error


def _cut_broken_end(path: Path) -> None:
    """Remove what follows the last line break."""
    if not path.exists() or not (size := path.stat().st_size):
        return
    with path.open("rb+") as file:
        position, block = size, 1 << 16
        while position:
            start = max(0, position - block)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            position = start
        file.truncate(0)
