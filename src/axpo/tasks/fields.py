"""The fields of a data row: where they stand, how a complaint about one reads, how one becomes a picture."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.types import ImageRef, JsonValue

Row = dict[str, JsonValue]
IMAGE_FIELDS = ("image", "path", "bytes", "url", "base64", "image_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a data file a value stands: every complaint about it starts with this."""

    path: Path
    row: str
    """`line 3` or `row 3`, counted from 1."""
    default_id: str
    field: str = ""

    def at(self, part: str | int) -> Place:
        """The place of a field or of a list item inside this one."""
        inner = f"[{part}]" if isinstance(part, int) else f".{part}" if self.field else part
        return replace(self, field=self.field + inner)

    def __str__(self) -> str:
        return f"{self.path}, {self.row}" + (f", field {self.field}" if self.field else "")

    def error(self, rule: str, *, got: object, fix: str) -> DataError:
        """`PLACE: RULE, got VALUE. FIX`."""
        return DataError(f"{self}: {rule}, got {_show(got)}. {fix}")

    def missing(self, field: str, *, fix: str) -> DataError:
        """A required field is absent."""
        return DataError(f"{self}: field {field} is missing. {fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Turns what a row says about a picture into a stored picture."""

    folder: Path
    """Relative paths start here: the folder of the data file."""
    store: ContentImageStore

    def add(self, value: JsonValue, place: Place) -> ImageRef:
        """Store the picture of a path, a data URL, raw bytes, or an object holding one of these."""
        if isinstance(value, dict):
            return self._add_object(cast("Row", value), place)
        if isinstance(value, bytes):
            return self.store.add_bytes(value, origin=str(place))
        if not isinstance(value, str) or not value:
            raise place.error(
                "expected an image", got=value, fix='Write a path, a data URL, {"path": ...} or {"bytes": ...}.'
            )
        if value.startswith("data:"):
            return self._add_base64(value.partition(",")[2], place)
        if value.startswith(("http://", "https://")):
            raise place.error(
                "a web address", got=value, fix="Nothing is downloaded: save the image and write its path."
            )
        return self.store.add_file(self.folder / value.removeprefix("file://"), origin=str(place))

    def _add_object(self, value: Row, place: Place) -> ImageRef:
        given = {name: item for name, item in value.items() if item is not None and name != "type"}
        if isinstance(given.get("image_url"), dict):
            return self._add_object(given["image_url"], place.at("image_url"))
        for name in ("bytes", "base64"):  # before the path: data sets keep the original's name beside its bytes
            if isinstance(given.get(name), str):
                return self._add_base64(given[name], place.at(name))
        for name in ("bytes", "image", "path", "url", "image_url"):
            if name in given:
                return self.add(given[name], place.at(name))
        raise place.error("expected an image", got=value, fix=f"Give one of: {', '.join(IMAGE_FIELDS)}.")

    def _add_base64(self, text: str, place: Place) -> ImageRef:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise place.error(f"not base64 ({error})", got=text, fix="Write data:image/png;base64,... .") from error
        return self.store.add_bytes(data, origin=str(place))


def known_fields(row: Row, known: Sequence[str], place: Place) -> Row:
    """The fields that are not null."""
    fields = {name: value for name, value in row.items() if value is not None}
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
            extra = " Anything else goes into metadata." if "metadata" in known else ""
            raise DataError(f"{place}: unknown field {name!r}. {hint}{extra}")
    return fields


def check_text(text: str, place: Place) -> str:
    """The text itself; raises when it cannot be written as UTF-8 and so not be tokenised."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.error("half of a surrogate pair", got=ascii(text), fix="Correct the \\u escape.") from error
    return text


def _show(value: object) -> str:
    """A value for a message: its JSON type and its beginning."""
    names: dict[type, str] = {
        bool: "boolean",
        int: "number",
        float: "number",
        str: "text",
        list: "list",
        dict: "object",
    }
    if value is None:
        return "nothing"
    try:
        text = json.dumps(value, ensure_ascii=True, default=_show_opaque)
    except (TypeError, ValueError):
        text = repr(value)
    return f"{names.get(type(value), type(value).__name__)} {text if len(text) <= 80 else text[:77] + '...'}"


def _show_opaque(value: object) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
