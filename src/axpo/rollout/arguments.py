"""Arguments of a call against the tool's JSON schema, explained to the model."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from axpo.errors import ConfigError
from axpo.threads import run_in_daemon_thread
from axpo.types import JsonValue, ToolSpec
from axpo.workers import WorkError, text_workers

CHECK_CPU_S = 2.0
"""Processor time that one check may take in a worker process."""
MAX_QUICK_COMPARISONS = 5000
"""Values times rules of a check that is done at once, which saves a millisecond and keeps runs repeatable."""
_REPEATING = ("$ref", "$dynamicRef", "$recursiveRef", "uniqueItems", "unevaluatedItems", "unevaluatedProperties")
"""Keywords by which a check visits a value more than once: small schemas with them can take forever."""
_MAX_SHOWN_CHARS = 80
_VALIDATORS = 256


async def find_misfit(arguments: Mapping[str, JsonValue], spec: ToolSpec) -> str | None:
    """`explain_misfit`, in a worker process when the check could take long.

    A check that fails or exceeds its limits is the model's mistake: `check_schema` has seen the schema, so the
    arguments are the reason.
    """
    try:
        if _is_quick(arguments, spec.parameters):
            return explain_misfit(arguments, spec)
        job = functools.partial(text_workers.run, cpu_s=CHECK_CPU_S)
        return await run_in_daemon_thread(job, f"{__name__}:explain_in_worker", arguments, spec.name, spec.parameters)
    except (WorkError, ArithmeticError, RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, WorkError) else type(error).__name__
        return f"the arguments cannot be checked against the tool's schema: {reason}."


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
    validator = _validator(spec.name, _canonical(spec.parameters))
    error = min(validator.iter_errors(dict(arguments)), key=lambda error: len(error.absolute_path), default=None)
    return None if error is None else _explain(error)


def explain_in_worker(arguments: Mapping[str, JsonValue], name: str, parameters: dict[str, JsonValue]) -> str | None:
    """The job of `find_misfit`."""
    return explain_misfit(arguments, ToolSpec(name=name, description="", parameters=parameters))


def check_schema(spec: ToolSpec) -> None:
    """Raise `ConfigError` for parameters that are no object schema, or that refer to what is not there."""
    if spec.parameters.get("type") != "object":
        raise ConfigError(f"tool {spec.name}: its parameters must be an object schema, got {spec.parameters!r:.80}.")
    if _is_quick({}, spec.parameters):
        check_in_worker(spec.name, spec.parameters)
        return
    try:
        text_workers.run(f"{__name__}:check_in_worker", spec.name, spec.parameters, cpu_s=CHECK_CPU_S)
    except WorkError as error:
        raise ConfigError(
            f"tool {spec.name}: its parameters cannot be checked: {error}. Correct its schema."
        ) from error


def check_in_worker(name: str, parameters: Mapping[str, JsonValue]) -> None:
    """The job of `check_schema`."""
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    validator = _validator(name, _canonical(parameters))
    resolver = Registry().with_resource("", DRAFT202012.create_resource(dict(parameters))).resolver()
    try:
        for reference in _references(parameters):  # a validator follows one only when a value gets there
            resolver.lookup(reference)
        list(validator.iter_errors({}))
    except Exception as error:
        raise ConfigError(
            f"tool {name}: its parameters cannot be checked: {error!r:.200}. Correct its schema."
        ) from error


def _is_quick(arguments: Mapping[str, JsonValue], parameters: Mapping[str, JsonValue]) -> bool:
    """True when a check takes milliseconds: it compares each value with each rule at most once."""
    return _num_values(arguments) * _num_rules(_canonical(parameters)) <= MAX_QUICK_COMPARISONS


@functools.lru_cache(_VALIDATORS)
def _num_rules(schema: str) -> float:
    loaded = json.loads(schema)
    return math.inf if any(f'"{keyword}"' in schema for keyword in _REPEATING) else _num_values(loaded)


def _num_values(value: JsonValue) -> int:
    """Number of values in a JSON value, itself included."""
    pending, num_values = [value], 0
    while pending:
        part = pending.pop()
        num_values += 1
        if isinstance(part, Mapping):
            pending += cast("Mapping[str, JsonValue]", part).values()
        elif isinstance(part, (list, tuple)):
            pending += cast("Sequence[JsonValue]", part)
    return num_values


def _canonical(schema: Mapping[str, JsonValue]) -> str:
    return json.dumps(schema, sort_keys=True)


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
