"""Which tool calls ask for the same thing: clusters by tool and distance of the arguments, no model involved.

For the diversity of the calls that a policy writes after one and the same thinking (D3 of arXiv:2605.28774, whose
authors let a language model group them). Two calls are alike when they name one tool and all their arguments are alike:

- a box (four numbers x1 < x2, y1 < y2) by intersection over union, `MIN_BOX_IOU`; text beside a box (its label) says
  what is hoped for, not what is asked for, and does not count;
- a number relative to the larger one, `MAX_NUMBER_GAP`;
- code by the multiset of its tokens without comments and white space, Jaccard `MIN_CODE_OVERLAP`;
- any other text by the set of its words without case and function words, Jaccard `MIN_TEXT_OVERLAP`;
- anything else, and the shape of nested arguments, exactly.

Arguments that say how and not what (`HOW_NOT_WHAT`) do not count, and one that is left out has the tool's default.
Clusters are the connected components of that relation (single linkage): a chain of small steps makes one cluster.
Malformed calls are one cluster of their own.

Arguments are what a model wrote: only the first `MAX_CHARS` characters of a text, `MAX_VALUES` values of a call and
`MAX_DEPTH` levels are compared, in time linear in them.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, cast

from axpo.normalization import normalize
from axpo.types import JsonValue, ToolCall, ToolSpec

MIN_BOX_IOU = 0.5
MAX_NUMBER_GAP = 0.05
MIN_CODE_OVERLAP = 0.7
MIN_TEXT_OVERLAP = 0.5

HOW_NOT_WHAT = frozenset({"timeout", "timeout_s", "max_results"})
CODE_ARGUMENTS = frozenset({"code", "script", "source", "program", "command", "cmd"})

MAX_CHARS = 20_000
MAX_VALUES = 500
MAX_DEPTH = 32
_PIECE_CHARS = 500

Box = tuple[float, float, float, float]
Defaults = Mapping[str, Mapping[str, JsonValue]]
"""Tool -> argument -> what it is when it is left out."""
Kind = Literal["box", "number", "code", "text", "exact"]

# Every alternative takes at least what it looked at: an unclosed string is a token to the end of its line, so nothing
# is read twice, whatever the text.
_CODE_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*+)
    |'''(?:[^'\\]|\\.|'(?!''))*+(?:''')? | \"\"\"(?:[^"\\]|\\.|"(?!""))*+(?:\"\"\")?
    |'(?:[^'\\\n]|\\.)*+'? | "(?:[^"\\\n]|\\.)*+"?
    |\w++ | [^\w\s]""",
    re.VERBOSE | re.DOTALL,
)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts that set no spaces between words
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)++")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be by did do does for from how in is it its of on or that the this to was were what when "
        "where which who why will with"
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How different the calls of one prefix are."""

    num_calls: int
    num_clusters: int
    largest_share: float
    """Of the calls, in the largest cluster."""
    entropy: float | None
    """Of the cluster sizes over log(num_calls): 0 all calls alike, 1 all different; None of fewer than two calls."""


def cluster_calls(calls: Sequence[ToolCall], *, defaults: Defaults | None = None) -> tuple[tuple[int, ...], ...]:
    """Positions of calls that are alike, largest cluster first, then by first position.

    >>> calls = [
    ...     ToolCall(id="a", name="zoom", arguments={"bbox_2d": [0, 0, 100, 100], "label": "a card"}),
    ...     ToolCall(id="b", name="search", arguments={"query": "height of the Eiffel Tower"}),
    ...     ToolCall(id="c", name="zoom", arguments={"bbox_2d": [10, 0, 110, 100], "label": "red"}),
    ... ]
    >>> cluster_calls(calls)
    ((0, 2), (1,))
    """
    shapes = [_shape(call, (defaults or {}).get(call.name, {})) for call in calls]
    roots = list(range(len(shapes)))
    for second in range(len(shapes)):
        for first in range(second):
            if _root(roots, first) != _root(roots, second) and _is_alike(shapes[first], shapes[second]):
                roots[_root(roots, second)] = _root(roots, first)
    members: dict[int, list[int]] = {}
    for position in range(len(shapes)):
        members.setdefault(_root(roots, position), []).append(position)
    return tuple(sorted(map(tuple, members.values()), key=lambda cluster: (-len(cluster), cluster[0])))


def is_alike(first: ToolCall, second: ToolCall, *, defaults: Defaults | None = None) -> bool:
    """True when both ask for the same thing; symmetric, and true of a call with itself.

    >>> square = ToolCall(id="a", name="zoom", arguments={"bbox_2d": [0, 0, 100, 100]})
    >>> is_alike(square, ToolCall(id="b", name="zoom", arguments={"bbox_2d": [60, 0, 160, 100]}))
    False
    """
    known = defaults or {}
    return _is_alike(_shape(first, known.get(first.name, {})), _shape(second, known.get(second.name, {})))


def diversity(cluster_sizes: Sequence[int]) -> Diversity | None:
    """Numbers of a partition; None of nothing.

    >>> diversity([2, 1, 1])
    Diversity(num_calls=4, num_clusters=3, largest_share=0.5, entropy=0.75)
    """
    total = sum(cluster_sizes)
    if not total:
        return None
    shares = [size / total for size in cluster_sizes if size]
    entropy = abs(math.fsum(share * math.log(share) for share in shares))
    return Diversity(
        num_calls=total,
        num_clusters=len(shares),
        largest_share=max(shares),
        entropy=min(1.0, entropy / math.log(total)) if total > 1 else None,
    )


def argument_defaults(specs: Iterable[ToolSpec]) -> dict[str, dict[str, JsonValue]]:
    """What the tools' schemas say of arguments that are left out.

    >>> schema = {"type": "object", "properties": {"img_idx": {"type": "number", "default": 0}, "label": {}}}
    >>> argument_defaults([ToolSpec(name="zoom", description="", parameters=schema)])
    {'zoom': {'img_idx': 0}}
    """
    found: dict[str, dict[str, JsonValue]] = {}
    for spec in specs:
        properties = spec.parameters.get("properties", {})
        named = cast("dict[str, Any]", properties).items() if isinstance(properties, dict) else ()
        found[spec.name] = {name: of["default"] for name, of in named if isinstance(of, dict) and "default" in of}
    return found


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union, 0..1; of boxes too small or too large for floating point 1 if equal, else 0.

    >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == 1 / 3
    True
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    if not 0 < union < math.inf or not math.isfinite(shared):
        return float(first == second)
    return min(1.0, shared / union)


def code_tokens(code: str) -> Counter[str]:
    """Tokens of a program without comments and white space, in any language that looks like Python or a shell.

    >>> code_tokens("x = 1  # one") == code_tokens("x=1")
    True
    """
    matches = _CODE_TOKEN.finditer(code[:MAX_CHARS])
    return Counter(match.group() for match in matches if match["comment"] is None)


def text_words(text: str) -> frozenset[str]:
    """Words of a query without case and function words; all its words when it has no others.

    >>> sorted(text_words("How tall is the Eiffel Tower?"))
    ['eiffel', 'tall', 'tower']
    """
    # piece by piece: normalising takes the square of the length of a run of combining marks
    pieces = (text[start : start + _PIECE_CHARS] for start in range(0, min(len(text), MAX_CHARS), _PIECE_CHARS))
    normal = "".join(normalize("NFKC", piece) for piece in pieces).casefold()
    words = frozenset(_WORD.findall(normal))
    return words - _FUNCTION_WORDS or words


# -- one call ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """A call made comparable: its tool, None when it is malformed, and its values by path."""

    name: str | None
    values: Mapping[str, tuple[Kind, Any]]


def _shape(call: ToolCall, defaults: Mapping[str, JsonValue]) -> _Shape:
    if call.parse_error is not None:
        return _Shape(None, {})
    arguments = {**defaults, **call.arguments}
    counted = {name: value for name, value in arguments.items() if name not in HOW_NOT_WHAT}
    values: dict[str, tuple[Kind, Any]] = {}
    for path, value in _walk(counted):
        if len(values) == MAX_VALUES:
            break
        values[path] = value
    if any(kind == "box" for kind, _ in values.values()):
        values = {path: value for path, value in values.items() if value[0] != "text"}
    return _Shape(call.name, values)


def _walk(value: JsonValue, path: str = "", name: str = "", depth: int = 0) -> Iterator[tuple[str, tuple[Kind, Any]]]:
    """Values by path, in an order that does not depend on that of keys; of a container its length too."""
    if depth > MAX_DEPTH:
        yield path, ("exact", "too deep")
    elif _is_box(value):
        yield path, ("box", tuple(float(corner) for corner in value))
    elif isinstance(value, Mapping):
        items = cast("Mapping[str, JsonValue]", value)
        yield f"{path}{{}}", ("exact", len(items) if path else 0)
        for key in heapq.nsmallest(MAX_VALUES, items):
            yield from _walk(items[key], f"{path}.{_cut(key)}", key, depth + 1)
    elif isinstance(value, (list, tuple)):
        entries = cast("Sequence[JsonValue]", value)
        yield f"{path}[]", ("exact", len(entries))
        for index, entry in enumerate(entries[:MAX_VALUES]):
            yield from _walk(entry, f"{path}.{index}", name, depth + 1)
    else:
        yield path, _leaf(value, name)


def _leaf(value: JsonValue, name: str) -> tuple[Kind, Any]:
    if isinstance(value, str):
        if name.lower() in CODE_ARGUMENTS:
            return "code", (value[:MAX_CHARS].strip(), code_tokens(value))
        return "text", (value[:MAX_CHARS].strip(), text_words(value))
    if _is_number(value):
        return "number", float(value)
    return "exact", repr(value) if isinstance(value, float) else value  # a NaN is alike to itself, too


def _is_number(value: object) -> TypeGuard[int | float]:
    """Finite, and not too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_box(value: JsonValue) -> TypeGuard[Sequence[float]]:
    if not isinstance(value, (list, tuple)) or len(cast("Sequence[Any]", value)) != 4:
        return False
    corners = cast("Sequence[Any]", value)
    return all(map(_is_number, corners)) and corners[0] < corners[2] and corners[1] < corners[3]


def _cut(key: str) -> str:
    return key[:200]


# -- two calls --------------------------------------------------------------------------------------------------------


def _is_alike(first: _Shape, second: _Shape) -> bool:
    if first.name != second.name or first.values.keys() != second.values.keys():
        return False
    return all(_is_value_alike(value, second.values[path]) for path, value in first.values.items())


def _is_value_alike(first: tuple[Kind, Any], second: tuple[Kind, Any]) -> bool:
    (kind, a), (other_kind, b) = first, second
    if kind != other_kind:
        return False
    if kind == "box":
        return box_iou(a, b) >= MIN_BOX_IOU
    if kind == "number":
        return a == b or abs(a - b) <= MAX_NUMBER_GAP * max(abs(a), abs(b))
    if kind == "code":
        return a[0] == b[0] or _overlap((a[1] & b[1]).total(), (a[1] | b[1]).total()) >= MIN_CODE_OVERLAP
    if kind == "text":
        return a[0] == b[0] or _overlap(len(a[1] & b[1]), len(a[1] | b[1])) >= MIN_TEXT_OVERLAP
    return type(a) is type(b) and a == b


def _overlap(shared: int, together: int) -> float:
    return shared / together if together else 0.0


def _root(roots: list[int], position: int) -> int:
    while roots[position] != position:
        roots[position] = roots[roots[position]]
        position = roots[position]
    return position
