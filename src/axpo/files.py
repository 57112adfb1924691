"""Files that are whole whenever the process dies. Standard library only."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, BinaryIO

from axpo.errors import StorageError


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names `path`."""
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
    """Write lines (without their line breaks) next to `path`, then replace it. Returns when they are on the disk.

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
    """Append a line in one write; returns when it is on the disk. An unfinished last line is cut off first.

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


def temporary_folder(prefix: str) -> Path:
    """A folder that is removed when the program ends. Those that killed programs left under `prefix` are removed now.

    A lock on a file inside marks a folder in use. The kernel releases it however the program ends, in any container.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (left / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    lock = (folder / f"{_LOCK}.new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # locked before anyone can find it
    atexit.register(_remove_locked, folder, lock)
    return folder


def _remove_locked(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


_LOCK = "in-use.lock"
