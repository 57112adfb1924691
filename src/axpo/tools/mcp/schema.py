"""Schemas that a server gives: whether they can be used, and whether a result fits.

A schema of a third party can take forever to apply (patterns that backtrack, references to references), so all but its
size is checked in a worker process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from axpo.types import JsonValue
from axpo.workers import WorkError, text_workers

MAX_SCHEMA_BYTES = 100_000
"""Limit of a schema as JSON. The model reads the schema of arguments: this is about 25,000 tokens."""
MAX_SCHEMA_DEPTH = 64
CHECK_CPU_S = 5.0
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SAME_VALUE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf")
"""Keywords whose schemas judge the same value as the schema around them."""


def unusable_reason(schema: Mapping[str, JsonValue]) -> str:
    """The reason why a schema cannot be used; empty when it can. Blocks while a worker process checks it."""
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        return f"is nested more than {MAX_SCHEMA_DEPTH} levels deep"
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > MAX_SCHEMA_BYTES:
        return f"has {size} characters, more than {MAX_SCHEMA_BYTES}"
    try:
        return text_workers.run(f"{__name__}:schema_problem", schema, cpu_s=CHECK_CPU_S)
    except WorkError as error:
        return f"cannot be checked: {error}"


def misfit_of_result(schema: Mapping[str, JsonValue], content: JsonValue) -> str:
    """The first violation of the schema in a structured result; empty without one. Raises `WorkError`. Blocks."""
    return text_workers.run(f"{__name__}:structured_problem", schema, content, cpu_s=CHECK_CPU_S)


def structured_problem(schema: dict[str, Any], content: Any) -> str:
    """The job of `misfit_of_result`."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    # an empty registry: references lead to the schema's own parts only
    errors = validator_for(schema)(schema, registry=Registry()).iter_errors(content)
    error = best_match(errors)
    return "" if error is None else error.message[:200]


def _depth(value: JsonValue) -> int:
    """Levels of nesting, counted up to one more than is allowed."""
    depth, level = 0, [value]
    while level and depth <= MAX_SCHEMA_DEPTH:
        depth += 1
        level = [
            inner
            for part in level
            if isinstance(part, (dict, list))
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return depth


def schema_problem(schema: Mapping[str, JsonValue]) -> str:
    """The error in a schema; empty without one. A schema may refer to its own parts and to nothing else."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(cast("dict[str, Any]", schema))
        return _reference_problem(schema)
    except SchemaError as error:
        return f"is no JSON schema: {error.message[:200]}"
    except Exception as error:  # a hostile one breaks the validator itself
        return f"is no JSON schema: {type(error).__name__}: {str(error)[:200]}"


def _reference_problem(schema: Mapping[str, JsonValue]) -> str:
    """A tree may refer to itself for its children; a schema that leads back to itself for the same value has no end."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    kind = specification_with(str(schema.get("$schema", "")), default=DRAFT202012)
    registry: Registry[Any] = Registry()
    waiting: list[tuple[Any, Any]] = [(schema, registry.resolver_with_root(Resource(cast("Any", schema), kind)))]
    for_same_value: dict[int, list[int]] = {}
    while waiting:
        part, resolver = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in for_same_value:
            continue
        contents = cast("Mapping[str, Any]", part)
        resource = Resource(cast("Any", contents), kind)
        resolver = resolver.in_subresource(resource)
        targets: list[Any] = []
        for reference in (contents[key] for key in _REFERENCES if key in contents):
            try:
                targets.append(resolver.lookup(reference))
            except Unresolvable:
                return f"refers to {reference[:200]!r}, which is not in it"
        waiting += [(target.contents, target.resolver) for target in targets]
        waiting += [(inner.contents, resolver) for inner in resource.subresources()]
        for_same_value[id(part)] = [id(target.contents) for target in targets] + [
            id(inner)
            for key in _SAME_VALUE
            if key in contents
            for inner in (contents[key] if isinstance(contents[key], list) else [contents[key]])
        ]
    try:
        TopologicalSorter(for_same_value).prepare()
    except CycleError:
        return "refers to itself without end"
    return ""
