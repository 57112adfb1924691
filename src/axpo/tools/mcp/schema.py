"""Whether calls can be checked against an argument schema that a server gives."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from axpo.types import JsonValue

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SAME_VALUE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf")
"""Keywords whose schemas judge the same value as the schema around them."""


def schema_problem(schema: Mapping[str, JsonValue]) -> str:
    """What is wrong with an argument schema, or nothing. A schema may refer to its own parts, and to nothing else."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if schema.get("type") != "object":
        return f"is of type {schema.get('type')!r}, not 'object'"
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
