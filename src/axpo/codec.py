"""Records as plain JSON values and back."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from axpo.errors import RecordError
from axpo.types import JsonValue

Record = TypeVar("Record")


def to_json(record: Any) -> JsonValue:
    """A record as plain JSON values (dicts, lists, strings, numbers)."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in cast("Mapping[Any, Any]", record).items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in cast("Sequence[Any]", record)]
    if isinstance(record, StrEnum):
        return record.value
    return record


def from_json(record_type: type[Record], value: JsonValue) -> Record:
    """The record that `to_json` wrote. Raises `RecordError` on missing or unknown fields."""
    return cast("Record", _decode(record_type, value))


def _decode(annotation: Any, value: Any) -> Any:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return None if value is None else _decode(options[0], value)
    if origin is tuple:
        item = get_args(annotation)[0]
        return tuple(_decode(item, element) for element in value)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _decode_record(annotation, value)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation(value)
    return value


@functools.cache
def _field_types(record_type: type[Any]) -> dict[str, Any]:
    return get_type_hints(record_type)


def _decode_record(record_type: type[Any], value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise RecordError(f"{record_type.__name__}: expected a JSON object, got {type(value).__name__}")
    given = cast("Mapping[str, Any]", value)
    hints = _field_types(record_type)
    unknown = set(given) - set(hints)
    if unknown:
        raise RecordError(f"{record_type.__name__}: unknown fields {sorted(unknown)}")
    try:
        return record_type(**{name: _decode(hints[name], item) for name, item in given.items()})
    except TypeError as error:
        raise RecordError(f"{record_type.__name__}: {error}") from error
