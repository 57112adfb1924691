"""Files that are whole whenever the process dies. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

from axpo.errors import StorageError


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Name `path` when the system refuses what the block writes there: raises `StorageError` for an `OSError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Make room or allow writing there, then run the "
            "command again."
        ) from error


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write lines (without their line breaks) beside `path`, then put them in its place, on the disk.

    Raises `StorageError` when the system refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, on the disk. An unfinished last line of a run that died is cut off first.

    Raises `StorageError` when the system refuses.
    """
    with writing(path), path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
