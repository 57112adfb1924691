"""Replies of a judge on disk: one JSON line each, only ever appended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import cast

from axpo.codec import to_json
from axpo.errors import ConfigError
from axpo.types import Message

_LINE_START = b'{"key": "'


class JudgeCache:
    """A file of replies that outlives a kill at any time: a line is there whole, or ignored and cut off.

    Several processes may write to one file; each sees what was there when it started and what it added itself.
    Raises `ConfigError` when the file cannot be opened or is none of ours; it is not changed then.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._replies: dict[str, str] = {}
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked_file() as file:
                self._load(file)
        except OSError as error:
            raise ConfigError(f"judge: cache {self.path} cannot be used: {error}. Name another file.") from error

    def get(self, key: str) -> str | None:
        """The stored reply."""
        return self._replies.get(key)

    def put(self, key: str, reply: str, *, prompt_id: str, model_name: str) -> None:
        """Store a reply; it is on the disk when this returns. Raises `OSError` (a full disk)."""
        line = json.dumps({"key": key, "prompt": prompt_id, "model": model_name, "reply": reply}).encode() + b"\n"
        with self._lock, self._locked_file() as file:
            if not _ends_whole(file):  # another process was killed while it wrote
                self._cut_broken_line(file, file.readall())
            file.write(line)
            os.fsync(file.fileno())
            self._replies[key] = reply

    @contextmanager
    def _locked_file(self) -> Generator[FileIO]:
        with FileIO(self.path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            file.seek(0)
            yield file

    def _load(self, file: FileIO) -> None:
        data = file.readall()
        *lines, broken = data.split(b"\n")
        if broken and not (broken.startswith(_LINE_START) or _LINE_START.startswith(broken)):
            raise self._stranger(len(lines) + 1)
        for number, line in enumerate(lines, start=1):
            self._replies.update((self._read(line, number),))
        if broken:
            self._cut_broken_line(file, data)

    def _read(self, line: bytes, number: int) -> tuple[str, str]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise self._stranger(number)
        key, reply = (cast("dict[str, object]", row).get(name) for name in ("key", "reply"))
        if not isinstance(key, str) or not isinstance(reply, str):
            raise self._stranger(number)
        return key, reply

    def _cut_broken_line(self, file: FileIO, data: bytes) -> None:
        file.truncate(data.rfind(b"\n") + 1)

    def _stranger(self, number: int) -> ConfigError:
        return ConfigError(
            f"judge: cache {self.path}, line {number}: expected a reply of a judge, got something else. "
            "Name another file, or remove the line."
        )


def question_key(prompt_id: str, model_name: str, messages: Sequence[Message]) -> str:
    """SHA-256 of everything that a reply depends on; a picture counts by the hash of its bytes."""
    asked = {"prompt": prompt_id, "model": model_name, "messages": to_json(tuple(messages))}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _ends_whole(file: FileIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return True
    file.seek(size - 1)
    is_whole = file.read(1) == b"\n"
    file.seek(0)
    return is_whole
