"""Published files as one table: columns checked once, rows without their pictures first, pictures of kept rows later.

table = Table(files, required=("index", "question", "image"), pictures=("image",))
rows = list(table.rows())                      # no picture has been read
for row in table.with_pictures(rows[:10]):     # those of ten rows, one after the other
    ...
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from axpo.benchmarks.formats import FORMATS
from axpo.errors import DataError
from axpo.tasks.fields import Place, Row, check_text
from axpo.types import JsonValue

_SPACE = " \t\r\n"
"""What is stripped: a form feed stays, it is what is left of the `\\f` of `\\frac` in published answers."""
_MAX_LITERAL_CHARS = 20_000
"""Of a list written as Python: its parser takes memory and stack in proportion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row at its place. Its methods read one field each and raise `DataError` when it is not what it should be."""

    place: Place
    fields: Row
    file_index: int
    position: int
    """In its file, from 0."""

    def text(self, name: str) -> str:
        """A field that must be there: text, or a number written out."""
        value = self.maybe_text(name)
        if value is None:
            raise self.place.at(name).error(
                "expected a text", got=self.fields.get(name), fix="Copy the published file again."
            )
        return value

    def maybe_text(self, name: str) -> str | None:
        """Text without white space around it, a number written out, or None where the field is absent or empty."""
        value = self.fields.get(name)
        if is_absent(value):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.place.at(name).error("expected a text", got=value, fix="Copy the published file again.")
        return check_text(str(value), self.place.at(name)).strip(_SPACE) or None

    def integer(self, name: str) -> int:
        """A whole number, possibly written as text."""
        text = self.text(name)
        try:
            return int(text)
        except ValueError as error:
            raise self.place.at(name).error(
                "expected a whole number", got=self.fields[name], fix="Copy the published file again."
            ) from error

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a list that are not empty, see `all_texts`."""
        return tuple(text for text in self.all_texts(name) if text)

    def all_texts(self, name: str) -> tuple[str, ...]:
        """A list of texts: a list, the same written as JSON or as Python, one text alone, or nothing.

        Items that are empty or null stay, as empty texts: the place of an option is its letter.
        """
        value = self.fields.get(name)
        if isinstance(value, str):
            value = read_list(value)
        if is_absent(value) or value == "":
            return ()
        items = cast("list[JsonValue]", value) if isinstance(value, list) else [value]
        return tuple(self._item(item, name) for item in items)

    def _item(self, item: JsonValue, name: str) -> str:
        if is_absent(item):
            return ""
        if isinstance(item, dict | list):
            item = json.dumps(item, ensure_ascii=False)
        if isinstance(item, bool | bytes):
            raise self.place.at(name).error("expected texts", got=item, fix="Copy the published file again.")
        return check_text(str(item), self.place.at(name)).strip(_SPACE)


class Table:
    """Files of one kind that continue each other (shards), read as one table.

    `required` columns must be in every file, `optional` ones are read where they are, all others are never read.
    `pictures` names those of them that hold pictures: only `with_pictures` and `digests` read them.
    Raises `DataError` naming expected, found and missing columns.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        required: Sequence[str],
        optional: Sequence[str] = (),
        pictures: Sequence[str] = (),
    ) -> None:
        self.files = tuple(files)
        self._columns = tuple(_check_columns(path, required, optional) for path in self.files)
        self._required = tuple(required)
        self._pictures = frozenset(pictures)

    def rows(self) -> Iterator[Record]:
        """All rows, in order, without their pictures."""
        for index, path in enumerate(self.files):
            columns = [name for name in self._columns[index] if name not in self._pictures]
            for position, place, fields in FORMATS[path.suffix].rows(path, columns=columns):
                self._check_fields(place, fields)
                yield Record(place=place, fields=fields, file_index=index, position=position)

    def with_pictures(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records again, in the files' order, each with its pictures: one at a time is in memory."""
        wanted = {(record.file_index, record.position): record for record in records}
        if not self._pictures:
            yield from wanted.values()
            return
        for index in range(len(self.files)):
            positions = sorted(position for file_index, position in wanted if file_index == index)
            for position, fields in self._picture_cells(index, self._pictures, positions):
                record = wanted[index, position]
                yield replace(record, fields=record.fields | fields)

    def digests(self, column: str) -> Iterator[str]:
        """SHA-256 of each row's cell of a picture column: equal cells are equal pictures."""
        for index in range(len(self.files)):
            for _, fields in self._picture_cells(index, {column}, None):
                yield digest(fields.get(column))

    def _picture_cells(
        self, index: int, names: Iterable[str], positions: Sequence[int] | None
    ) -> Iterator[tuple[int, Row]]:
        columns = [name for name in self._columns[index] if name in names]
        path = self.files[index]
        if positions is None or positions:
            for position, _, fields in FORMATS[path.suffix].rows(path, columns=columns, positions=positions):
                yield position, fields

    def _check_fields(self, place: Place, fields: Row) -> None:
        """JSON rows need not have the fields of the first one."""
        if place.path.suffix in (".json", ".jsonl"):
            for name in self._required:
                if name not in fields and name not in self._pictures:
                    raise place.missing(name, fix="Copy the published file again.")


def digest(cell: JsonValue) -> str:
    """SHA-256, in hex digits, of the cell of a picture column: of its bytes where it has some, else of its text."""
    if isinstance(cell, dict):
        fields = cast("Row", cell)
        cell = fields.get("bytes") or fields.get("path")
    data = cell if isinstance(cell, bytes) else str(cell).encode()
    return hashlib.sha256(data).hexdigest()


def read_list(text: str) -> list[JsonValue] | str:
    """A list that a table holds as text, `["a"]` as well as `['a']`; the text itself when it is none.

    >>> read_list("['a', 'b']"), read_list('["a", null]'), read_list("[1, 2) and more"), read_list("(3, 4)")
    (['a', 'b'], ['a', None], '[1, 2) and more', '(3, 4)')
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _read_literal(text)
    return cast("list[JsonValue]", value) if isinstance(value, list) else text


def is_absent(value: JsonValue) -> bool:
    """True for what tables put where there is no value: null, NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_literal(text: str) -> JsonValue:
    if len(text) > _MAX_LITERAL_CHARS:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _check_columns(path: Path, required: Sequence[str], optional: Sequence[str]) -> tuple[str, ...]:
    found = FORMATS[path.suffix].columns(path)
    if not found:
        raise DataError(f"{path}: no rows. Copy the published file again.")
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(
            f"{path}: expected columns {', '.join(required)}; found {', '.join(found)}; missing {', '.join(missing)}. "
            "Copy the published file, or rename the columns."
        )
    return tuple(name for name in (*required, *optional) if name in found)
