"""What a chat service answered, on disk before anything is made of it: after a crash nothing is asked again.

    {"rollout": "m1/0", "turn": 0, "request": "<sha-256>", "charged_s": 1.2, "reply": {...}}
    {"rollout": "m1/0", "turn": 0, "request": "<sha-256>", "charged_s": 1.9, "results": [...]}
    {"rollout": "m1/0", "is_done": true}

A turn has a line once its reply is here and another once its calls have run. A reply belongs to its request: another
prompt, seed or limit is asked anew. Pictures that tools made lie beside it by the hash of their bytes. Memory holds the
places of the lines of unfinished rollouts and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from axpo.codec import from_json, to_json
from axpo.errors import DataError, RecordError
from axpo.protocols import ChatReply, ChatRequest, ImageStore
from axpo.threads import run_in_daemon_thread
from axpo.types import ImageRef, JsonValue, ToolResult


class PictureStore(ImageStore, Protocol):
    """A store that takes encoded pictures back; see `axpo.images.ContentImageStore`."""

    def add_bytes(self, data: bytes, *, origin: str = ...) -> ImageRef:
        """Store an encoded picture."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledTurn:
    """A turn that was answered."""

    reply: ChatReply
    results: tuple[ToolResult, ...] | None
    """Of its calls; None: they have not run, or not to the end."""
    charged_s: float
    """Time of the dialogue that was used at the last of its lines."""


class TurnJournal:
    """The file at `path`. One process at a time writes it; it belongs to one event loop.

    `pictures`: a folder for what tools made; `<sha-256>.<suffix>`, as `axpo.images.ContentImageStore` names its own.
    Raises `DataError` when a line before the last cannot be read.
    """

    def __init__(self, path: Path, *, store: PictureStore, pictures: Path) -> None:
        self._path = path
        self._store = store
        self._pictures = pictures
        path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, list[tuple[int, int]]] = {}
        _compact(path)
        for place, line in _read_lines(path):
            self._places.setdefault(line["rollout"], []).append(place)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size
        self._num_written = self._num_synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._lock = threading.Lock()

    def find(self, rollout_id: str, turn: int, request: ChatRequest) -> JournaledTurn | None:
        """What was answered to this very request. The pictures of its results are in the store again.

        Raises `DataError` when one of them is gone.
        """
        if rollout_id not in self._places:
            return None
        key = _key(request)
        found: dict[str, Any] = {}
        for start, size in self._places[rollout_id]:
            line = json.loads(os.pread(self._file, size, start))
            if line.get("turn") == turn and line.get("request") == key:
                found |= line
        if "reply" not in found:
            return None
        listed = found.get("results")
        results = None if listed is None else tuple(from_json(ToolResult, item) for item in listed)
        for image in _images(results or ()):
            self._restore(image)
        return JournaledTurn(
            reply=_read_reply(found["reply"]),
            results=results,
            charged_s=found["charged_s"],
        )

    async def add_reply(
        self, rollout_id: str, turn: int, request: ChatRequest, reply: ChatReply, *, charged_s: float
    ) -> None:
        """Returns once the reply would survive a power cut."""
        await self._add(rollout_id, turn, request, charged_s=charged_s, reply=to_json(reply))

    async def add_results(
        self,
        rollout_id: str,
        turn: int,
        request: ChatRequest,
        results: Sequence[ToolResult],
        *,
        charged_s: float,
    ) -> None:
        """Returns once the results and their pictures would survive a power cut."""
        images = [image for image in _images(results) if not self._picture_path(image).exists()]
        if images:
            await run_in_daemon_thread(self._keep, images)
        await self._add(rollout_id, turn, request, charged_s=charged_s, results=[to_json(r) for r in results])

    def forget(self, rollout_id: str) -> None:
        """The rollout has a record of its own, or is given up: its turns are not needed any more."""
        if self._places.pop(rollout_id, None) is not None:
            self._write({"rollout": rollout_id, "is_done": True})

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if self._file >= 0:
            with self._lock:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _add(self, rollout_id: str, turn: int, request: ChatRequest, **fields: JsonValue) -> None:
        line = {"rollout": rollout_id, "turn": turn, "request": _key(request), **fields}
        self._places.setdefault(rollout_id, []).append(self._write(line))
        await self._synced(self._num_written)

    def _write(self, line: JsonValue) -> tuple[int, int]:
        """Append; returns where. What is written survives this process from now on."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        start = self._size
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._size += len(data)
        self._num_written += 1
        return start, len(data)

    async def _synced(self, number: int) -> None:
        """Wait until line `number` is on disk. Lines written meanwhile share one fsync."""
        while self._num_synced < number:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        number = self._num_written
        try:
            await run_in_daemon_thread(self._fsync)
            self._num_synced = number
        finally:
            self._syncing = None

    def _fsync(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.fsync(self._file)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def _picture_path(self, image: ImageRef) -> Path:
        found = self._store.encoded(image)[1]
        return self._pictures / f"{image.sha256}.{found}"

    def _keep(self, images: Sequence[ImageRef]) -> None:
        self._pictures.mkdir(parents=True, exist_ok=True)
        for image in images:
            data, suffix = self._store.encoded(image)
            path = self._pictures / f"{image.sha256}.{suffix}"
            partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)

    def _restore(self, image: ImageRef) -> None:
        try:
            self._store.encoded(image)
            return
        except (KeyError, OSError):
            pass
        paths = sorted(p for p in self._pictures.glob(f"{image.sha256}.*") if p.suffix != ".partial")
        if not paths:
            raise DataError(
                f"{self._path}: the picture {image.sha256[:12]} of a tool's result is not in {self._pictures}. Put it "
                "back, or delete the journal: its turns are asked again then."
            )
        self._store.add_bytes(paths[0].read_bytes(), origin=str(paths[0]))


def _key(request: ChatRequest) -> str:
    text = json.dumps(to_json(request), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_reply(value: JsonValue) -> ChatReply:
    return from_json(ChatReply, value)


def _images(results: Sequence[ToolResult]) -> list[ImageRef]:
    images = {b.image.sha256: b.image for result in results for b in result.content if b.image is not None}
    return list(images.values())


# -- reading ----------------------------------------------------------------------------------------------------------


def _read_lines(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Place and fields of every line. Whatever follows the last line end was never finished."""
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if not data.endswith(b"\n"):
                return
            try:
                line = json.loads(data)
                if not isinstance(line, dict) or not isinstance(line.get("rollout"), str):
                    raise RecordError("expected an object with the name of a rollout")
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}: line {number} cannot be read ({error}). Delete the journal; unfinished rollouts are "
                    "asked again then."
                ) from error
            yield (start, len(data)), cast("dict[str, Any]", line)
            start += len(data)


def _compact(path: Path) -> None:
    """Drop what an interrupted write left, and the lines of finished rollouts."""
    if not path.exists():
        return
    done: dict[str, int] = {}
    """Where the last line stands that says so; a rollout that was given up may have begun anew behind it."""
    size = 0
    for (start, length), line in _read_lines(path):
        size = start + length
        if line.get("is_done"):
            done[line["rollout"]] = start
    if not done and size == path.stat().st_size:
        return
    partial = path.with_name(f"{path.name}.partial")
    with path.open("rb") as source, partial.open("wb") as target:
        for (start, length), line in _read_lines(path):
            if start > done.get(line["rollout"], -1):
                source.seek(start)
                target.write(source.read(length))
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)
