"""Records as plain JSON values and back.

Reading is strict: a value of another type than the field's is refused, never converted. A text is neither a number
nor a list of characters, and `true` is not 1.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from axpo.errors import RecordError
from axpo.types import JsonValue

Record = TypeVar("Record")

_SCALARS: Mapping[Any, str] = {str: "a text", int: "a whole number", bool: "true or false", float: "a number"}


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
    """The record that `to_json` wrote.

    A whole number is accepted where the field is a float. Raises `RecordError` naming the field when one is missing or
    unknown, or when its value has another type.
    """
    return cast("Record", _decode(record_type, value, record_type.__name__))


def _decode(annotation: Any, value: Any, where: str) -> Any:
    if annotation is Any:
        return value
    if annotation in _SCALARS:
        return _decode_scalar(annotation, value, where)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _decode_optional(annotation, value, where)
    if origin is Literal:
        return value if value in get_args(annotation) else _refuse(_choices(get_args(annotation)), value, where)
    if origin is tuple:
        return _decode_tuple(get_args(annotation), value, where)
    if origin is not None and issubclass(origin, Mapping):
        return _decode_mapping(get_args(annotation)[1], value, where)
    if dataclasses.is_dataclass(annotation):
        return _decode_record(cast("type[Any]", annotation), value, where)
    assert issubclass(annotation, StrEnum), f"{where}: no rule to decode {annotation}"
    names = [member.value for member in annotation]
    return annotation(value) if value in names else _refuse(_choices(names), value, where)


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    return _refuse(_SCALARS[kind], value, where)


def _decode_optional(annotation: Any, value: Any, where: str) -> Any:
    """`X | None`, the only union that records have."""
    (option,) = (option for option in get_args(annotation) if option is not type(None))
    return None if value is None else _decode(option, value, where)


def _decode_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        return _refuse("a list", value, where)
    elements = cast("Sequence[Any]", value)
    if items[-1] is Ellipsis:
        if items[0] in _SCALARS and all(type(element) is items[0] for element in elements):
            return tuple(elements)  # tens of thousands of tokens
        items = (items[0],) * len(elements)
    if len(items) != len(elements):
        return _refuse(f"a list of {len(items)}", value, where)
    pairs = enumerate(zip(items, elements, strict=True))
    return tuple(_decode(item, element, f"{where}[{number}]") for number, (item, element) in pairs)


def _decode_mapping(item: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return _refuse("a JSON object", value, where)
    given = cast("Mapping[str, Any]", value)
    return (
        given if item is Any else {key: _decode(item, element, f"{where}[{key!r}]") for key, element in given.items()}
    )


@functools.cache
def _field_types(record_type: type[Any]) -> dict[str, Any]:
    return get_type_hints(record_type)


@functools.cache
def _required_fields(record_type: type[Any]) -> frozenset[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(record_type)
    return frozenset(f.name for f in fields if f.default is missing and f.default_factory is missing)


def _decode_record(record_type: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return _refuse("a JSON object", value, where)
    given = cast("Mapping[str, Any]", value)
    hints = _field_types(record_type)
    for problem, names in (
        ("unknown", set(given) - set(hints)),
        ("missing", _required_fields(record_type) - set(given)),
    ):
        if names:
            raise RecordError(f"{where}: {problem} fields {sorted(names)}")
    return record_type(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in given.items()})


def _refuse(expected: str, value: Any, where: str) -> Any:
    given = repr(value)
    raise RecordError(f"{where}: expected {expected}, got {given if len(given) <= 40 else given[:40] + '...'}")


def _choices(names: Sequence[Any]) -> str:
    return f"one of {', '.join(map(str, names))}"
