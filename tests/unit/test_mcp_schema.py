"""Argument schemas of MCP servers."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from axpo.tools.mcp.schema import schema_problem


def has(argument: Any, **definitions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": argument}, "$defs": definitions}


def to(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


TREE = {"type": "object", "properties": {"left": to("tree"), "leaves": {"type": "array", "items": to("tree")}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        has(to("b"), b={"type": "string"}),
        has({"anyOf": [to("b"), to("c")]}, b=to("c"), c={"type": "string"}),
        has(to("tree"), tree=TREE),
        has({"allOf": [to("tree")]}, tree=TREE),
        has({"type": "string", "default": to("nowhere")}),
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        {"type": "object", "properties": {"child": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/definitions/b"}}, "definitions": {"b": {"type": "string"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://h/s"}
        | {"type": "object", "properties": {"a": {"$ref": "#/definitions/b"}}, "definitions": {"b": True}},
        {"type": "object", "properties": {"a": {"$ref": "#b"}}, "$defs": {"c": {"$anchor": "b"}}},
    ],
)
def test_a_schema_that_calls_can_be_checked_against(schema: dict[str, Any]) -> None:
    assert schema_problem(schema) == ""
    Draft202012Validator(schema).is_valid({"a": "x"})  # comes to an end


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (has(to("b")), "refers to '#/$defs/b', which is not in it"),
        (has({"$ref": "http://h/s"}), "refers to 'http://h/s', which is not in it"),
        (has({"$ref": "#b"}), "refers to '#b', which is not in it"),
        (has({"anyOf": [{"items": to("b")}]}), "refers to '#/$defs/b', which is not in it"),
        (has("x"), "is no JSON schema: 'x' is not of type"),
        (has(to("b"), b=to("b")), "refers to itself without end"),
        (has(to("b"), b=to("c"), c={"anyOf": [{"not": to("b")}]}), "refers to itself without end"),
        ({"type": "object", "$ref": "#"}, "refers to itself without end"),
        ({"type": "object", "$schema": [3]}, "is no JSON schema"),
    ],
)
def test_a_schema_that_calls_cannot_be_checked_against(schema: dict[str, Any], problem: str) -> None:
    assert schema_problem(schema).startswith(problem)
