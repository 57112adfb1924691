"""Arguments of a call against the tool's JSON schema, explained to the model."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from axpo.errors import ConfigError
from axpo.types import JsonValue, ToolSpec

_MAX_SHOWN_CHARS = 80
_VALIDATORS = 256


def explain_misfit(arguments: Mapping[str, JsonValue], spec: ToolSpec) -> str | None:
    """What is wrong with the arguments and what would be right, or None. `check_schema` has seen the schema."""
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    known = ", ".join(properties) or "none"
    is_closed = spec.parameters.get("additionalProperties", "properties" not in spec.parameters) is False
    if is_closed:
        for name in arguments:
            if name not in properties:
                nearest = difflib.get_close_matches(name[:64], list(properties), n=1)
                hint = f" Did you mean {nearest[0]}?" if nearest else ""
                return f"there is no argument {_show(name)}; the arguments are: {known}.{hint}"
    for name in spec.parameters.get("required", ()):
        if name not in arguments:
            return f"the argument {name} is missing; the arguments are: {known}."
    validator = _validator(spec.name, json.dumps(spec.parameters, sort_keys=True))
    error = min(validator.iter_errors(dict(arguments)), key=lambda error: len(error.absolute_path), default=None)
    return None if error is None else _explain(error)


def check_schema(spec: ToolSpec) -> None:
    """Raise `ConfigError` for parameters that are no object schema, or that refer to what is not there."""
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    if spec.parameters.get("type") != "object":
        raise ConfigError(f"tool {spec.name}: its parameters must be an object schema, got {spec.parameters!r:.80}.")
    validator = _validator(spec.name, json.dumps(spec.parameters, sort_keys=True))
    resolver = Registry().with_resource("", DRAFT202012.create_resource(dict(spec.parameters))).resolver()
    try:
        for reference in _references(spec.parameters):  # a validator follows one only when a value gets there
            resolver.lookup(reference)
        list(validator.iter_errors({}))
    except Exception as error:
        raise ConfigError(
            f"tool {spec.name}: its parameters cannot be checked: {error!r:.200}. Correct its schema."
        ) from error


def _references(schema: JsonValue) -> Iterator[str]:
    if isinstance(schema, Mapping):
        for key, value in cast("Mapping[str, JsonValue]", schema).items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, (list, tuple)):
        for value in cast("Sequence[JsonValue]", schema):
            yield from _references(value)


@functools.lru_cache(_VALIDATORS)
def _validator(name: str, schema: str) -> Any:
    from jsonschema import SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    loaded = json.loads(schema)
    kind = validator_for(loaded)
    try:
        kind.check_schema(loaded)
    except SchemaError as error:
        raise ConfigError(
            f"tool {name}: its parameters are no valid JSON schema: {error.message}. Correct the schema."
        ) from error
    # Patterns are left to the tool: one that backtracks would hold up every rollout. References stay within the schema.
    return extend(kind, dict.fromkeys(("pattern", "patternProperties"), _accept))(loaded, registry=Registry())


def _accept(*_: Any) -> None:
    """A rule that nothing breaks."""


def _explain(error: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    got, wanted = _show(error.instance), error.validator_value
    expected = {
        "type": lambda: f"expected {_or(wanted)}",
        "enum": lambda: f"expected one of {', '.join(_show(value) for value in wanted)}",
        "const": lambda: f"expected {_show(wanted)}",
        "minItems": lambda: f"expected at least {wanted} items",
        "maxItems": lambda: f"expected at most {wanted} items",
        "minLength": lambda: f"expected at least {wanted} characters",
        "maxLength": lambda: f"expected at most {wanted} characters",
        "minimum": lambda: f"expected a number >= {wanted}",
        "maximum": lambda: f"expected a number <= {wanted}",
        "exclusiveMinimum": lambda: f"expected a number > {wanted}",
        "exclusiveMaximum": lambda: f"expected a number < {wanted}",
        "required": lambda: f"expected an object with {', '.join(wanted)}",
    }.get(error.validator)
    reason = expected() if expected is not None else f"expected what the rule {error.validator} says"
    return f"{place or 'the arguments'}: {reason}, got {got}."


def _or(names: Any) -> str:
    return names if isinstance(names, str) else " or ".join(names)


def _show(value: JsonValue) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number beyond all bounds"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 3]}..."
