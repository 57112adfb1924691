"""Pictures of published rows on their way into the image store: hashed, probed, written, never decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from axpo.benchmarks.containers import digest, is_absent
from axpo.images import ContentImageStore
from axpo.tasks.fields import Place, Row
from axpo.types import ImageRef, JsonValue


class PictureShelf:
    """Takes pictures in every form in which benchmarks hold them.

    A picture is persisted as soon as it is added: with a store that has a folder, memory holds one at a time. Cells
    that repeat (the four rotations of an HR-Bench question) are stored once and looked at once.
    """

    def __init__(self, store: ContentImageStore) -> None:
        self._store = store
        self._known: dict[str, ImageRef] = {}
        """By digest of the cell."""

    def add_cell(self, value: JsonValue, place: Place) -> ImageRef:
        """A picture inside the table: bytes, base64 with or without `data:` in front, or `{bytes, path}`."""
        key = digest(value)
        if key not in self._known:
            self._known[key] = self._add(value, place)
        return self._known[key]

    def maybe_add_cell(self, value: JsonValue, place: Place) -> ImageRef | None:
        """As `add_cell`; None for an empty cell."""
        is_empty = is_absent(value) or value == ""
        if isinstance(value, dict):
            is_empty = not any(cast("Row", value).values())
        return None if is_empty else self.add_cell(value, place)

    def add_path(self, path: str, place: Place, *, roots: Sequence[Path]) -> ImageRef:
        """A picture file, by a path relative to the first of `roots` below which it exists."""
        for root in roots:
            if (root / path).is_file():
                ref = self._store.add_file(root / path, origin=str(place))
                self._store.persist(ref)
                return ref
        looked = ", ".join(str(root / path) for root in roots)
        raise place.error("no such picture", got=path, fix=f"Looked for {looked}. Put the published pictures there.")

    def _add(self, value: JsonValue, place: Place) -> ImageRef:
        if isinstance(value, dict):
            fields = cast("Row", value)
            if fields.get("bytes"):
                return self._add(fields["bytes"], place)
            if isinstance(fields.get("path"), str):
                return self.add_path(fields["path"], place, roots=(place.path.parent,))
        if isinstance(value, str) and value.strip():
            value = _decode_base64(value, place)
        if not isinstance(value, bytes) or not value:
            raise place.error("expected a picture", got=value, fix="Copy the published file again.")
        ref = self._store.add_bytes(value, origin=str(place))
        self._store.persist(ref)
        return ref


def _decode_base64(text: str, place: Place) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise place.error(
            f"expected a picture in base64 ({error})", got=text, fix="Copy the published file again."
        ) from error
