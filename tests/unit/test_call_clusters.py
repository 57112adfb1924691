"""Which calls count as the same: every rule at its threshold, and what a hostile model may write."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from axpo.diagnostics.call_clusters import (
    MAX_VALUES,
    argument_defaults,
    box_iou,
    cluster_calls,
    code_tokens,
    diversity,
    is_alike,
    text_words,
)
from axpo.rollout.calls import read_call
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import ToolCall

NAN, INF = math.nan, math.inf


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(id="c", name=name, arguments=arguments)


def zoom(*box: Any, **more: Any) -> ToolCall:
    return call("image_zoom_in", bbox_2d=list(box), **more)


def test_a_hand_made_set_falls_into_the_expected_clusters() -> None:
    calls = [
        zoom(0, 0, 100, 100, label="a card"),
        call("python", code="print(1)"),
        zoom(30, 0, 130, 100, label="the red one"),  # IoU with the first 70/130
        ToolCall(id="m", name="", parse_error="broken"),
        zoom(60, 0, 160, 100, label="a card"),  # 40/160 with the first, 70/130 with the third: a chain
        call("python", code="print( 1 )  # again"),
        zoom(500, 500, 600, 600, label="a card"),
        ToolCall(id="n", name="", parse_error="broken otherwise"),
    ]
    assert cluster_calls(calls) == ((0, 2, 4), (1, 5), (3, 7), (6,))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (zoom(0, 0, 100, 100), zoom(0, 0, 100, 50), True),  # IoU exactly 1/2
        (zoom(0, 0, 100, 100), zoom(0, 0, 100, 49), False),
        (zoom(0, 0, 100, 100), zoom(0, 0, 100, 100, img_idx=1), False),
        (zoom(0, 0, 100, 100, label="x"), zoom(0, 0, 100, 100, label="quite another thing"), True),
        (zoom(0, 0, 0, 0, label="x"), zoom(0, 0, 0, 0, label="quite another thing"), False),  # no box: its label counts
        (zoom(0, 0, 100, 100), zoom(0, 0, 100), False),
        (call("rotate", degrees=100), call("rotate", degrees=95), True),  # 5 % of the larger
        (call("rotate", degrees=100), call("rotate", degrees=94.9), False),
        (call("rotate", degrees=1), call("rotate", degrees=-1), False),
        (call("rotate", degrees=0), call("rotate", degrees=0.0), True),
        (call("rotate", degrees=1), call("rotate", degrees=True), False),
        (call("rotate", degrees=1), call("turn", degrees=1), False),
        (call("rotate", degrees=1), call("rotate", angle=1), False),
        (call("s", query="height of the Eiffel Tower"), call("s", query="Eiffel tower height?"), True),
        (call("s", query="how tall is the eiffel tower"), call("s", query="eiffel tower height"), True),  # 2 of 4
        (call("s", query="eiffel tower opening hours"), call("s", query="eiffel tower height"), False),  # 2 of 5
        (call("s", query="x", max_results=5), call("s", query="x", max_results=50), True),
        (call("s", query="who is it"), call("s", query="what was that"), False),
        (call("s", query="!!!"), call("s", query="!!!"), True),
        (call("s", query="!!!"), call("s", query="???"), False),
        (call("s", query="東京タワーの高さ"), call("s", query="東京タワー 高さ"), True),
        (call("python", code="x = 1\nprint(x)", timeout=5), call("python", code="x=1 ; print(x)  # one"), True),
        (call("python", code="print('# a b')"), call("python", code="print('# c')"), False),  # in a string: 3 of 5
        (call("python", code="a b c d e f g"), call("python", code="a b c d e f g h i j"), True),  # 7 of 10
        (call("python", code="a b c d e f g"), call("python", code="a b c d e f g h i j k"), False),  # 7 of 11
        (call("f", many=[1, 2, 3]), call("f", many=[1, 2, 3]), True),
        (call("f", many=[1, 2, 3]), call("f", many=[1, 2]), False),
        (call("f", at={"x": 1, "y": 2}), call("f", at={"y": 2, "x": 1}), True),
        (call("f", at=None), call("f", at=False), False),
        (call("f"), call("f"), True),
    ],
)
def test_two_calls_are_alike_when_tool_and_arguments_are(first: ToolCall, second: ToolCall, expected: bool) -> None:
    assert is_alike(first, second) is expected
    assert is_alike(second, first) is expected


def test_a_call_between_two_clusters_joins_them_wherever_it_stands() -> None:
    left, bridge, right = zoom(0, 0, 100, 100), zoom(30, 0, 130, 100), zoom(60, 0, 160, 100)
    assert cluster_calls([left, right]) == ((0,), (1,))
    assert cluster_calls([left, right, bridge]) == cluster_calls([bridge, left, right]) == ((0, 1, 2),)


def test_only_the_first_values_count_and_which_they_are_is_not_up_to_the_order() -> None:
    names = [f"{number:04}" for number in range(2 * MAX_VALUES)]
    first, second = ({name: name in chosen for name in names} for chosen in (names[:9], names[:9] + names[-9:]))
    backwards = dict(reversed(first.items()))
    assert is_alike(call("f", **first), call("f", **backwards))
    assert is_alike(call("f", **first), call("f", **second))
    assert not is_alike(call("f", **first), call("f", **{**first, names[10]: True}))


def test_an_argument_that_is_left_out_has_the_default_of_the_schema() -> None:
    defaults = argument_defaults([ImageZoomTool().spec])
    assert defaults == {"image_zoom_in": {"img_idx": 0}}
    first, second = zoom(0, 0, 9, 9), zoom(0, 0, 9, 9, img_idx=0)
    assert not is_alike(first, second)
    assert is_alike(first, second, defaults=defaults)
    assert cluster_calls([first, second], defaults=defaults) == ((0, 1),)


@pytest.mark.parametrize(
    ("sizes", "clusters", "largest", "entropy"),
    [
        ([16], 1, 1.0, 0.0),
        ([1] * 16, 16, 1 / 16, 1.0),
        ([8, 8], 2, 0.5, 0.25),  # log 2 / log 16
        ([8, 4, 4], 3, 0.5, 0.375),  # 1.5 bit of 4
        ([1], 1, 1.0, None),
    ],
)
def test_diversity_of_known_partitions(sizes: list[int], clusters: int, largest: float, entropy: float | None) -> None:
    of = diversity(sizes)
    assert of is not None
    assert (of.num_calls, of.num_clusters, of.largest_share) == (sum(sizes), clusters, largest)
    assert of.entropy == (None if entropy is None else pytest.approx(entropy))
    assert diversity([]) is None


def test_iou_of_known_boxes_and_at_the_ends_of_floating_point() -> None:
    assert box_iou((0, 0, 10, 10), (5, 5, 15, 15)) == 25 / 175
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0
    tiny, huge = (0.0, 0.0, 1e-200, 1e-200), (-1e308, -1e308, 1e308, 1e308)
    assert box_iou(tiny, tiny) == box_iou(huge, huge) == 1
    assert box_iou(huge, (0.0, 0.0, 1e308, 1e308)) == 0


@pytest.mark.parametrize(
    "value",
    [NAN, INF, 10**400, -(10**400), [NAN, 0, 1, 1], [0, 0, INF, INF], [0, 0, 10**400, 1], [[], {}], {"": {"": []}}],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_usable_value_is_alike_to_itself_and_to_no_box(value: Any) -> None:
    assert is_alike(call("f", a=value), call("f", a=value))
    assert not is_alike(call("f", a=value), call("f", a=[0, 0, 10, 10]))


def test_code_is_read_past_strings_comments_and_broken_ends() -> None:
    assert code_tokens('x = "a # b"  # c') == {"x": 1, "=": 1, '"a # b"': 1}
    assert code_tokens('"""doc # \n string""" + y') == {'"""doc # \n string"""': 1, "+": 1, "y": 1}
    assert code_tokens("s = 'open\nnext") == {"s": 1, "=": 1, "'open": 1, "next": 1}
    assert code_tokens("'''never closed # x") == {"'''never closed # x": 1}
    assert code_tokens(r"'it\'s' \ ") == {r"'it\'s'": 1, "\\": 1}


def test_words_lose_case_and_function_words_only_when_others_remain() -> None:
    assert text_words("The HEIGHT of Ｔｏｗｅｒ") == {"height", "tower"}
    assert text_words("who is it") == {"who", "is", "it"}


def test_malformed_calls_are_one_cluster_whatever_they_say() -> None:
    calls = [read_call(0, raw, is_closed=True) for raw in ("", "{", "[" * 100_000, '{"name": 3}', "x" * 10_000)]
    assert cluster_calls(calls) == ((0, 1, 2, 3, 4),)
    cut_off = read_call(0, '{"name": "f", "arguments": {}}', is_closed=False)
    assert not is_alike(cut_off, call("f"))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: dict[str, dict[str, Any]] = {
    "a text of combining marks": {"query": "a" + "\u0301\u0316" * 500_000},
    "letters that unfold": {"query": "\ufdfa" * 1_000_000},
    "escaped quotes": {"code": '\\"' * 500_000},
    "opened quotes": {"code": "'''\"\"\"\\" * 200_000},
    "comments": {"code": "#" * 1_000_000},
    "one word": {"query": "x" * 1_000_000},
    "many arguments": {str(index): "x y" * 20 for index in range(100_000)},
    "deep JSON": {"at": nested(100_000)},
    "a long list": {"at": list(range(1_000_000))},
    "a huge integer": {"at": 10**100_000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arguments_take_bounded_time(name: str) -> None:
    calls = [call("f", **HOSTILE[name]) for _ in range(16)]
    started_s = time.process_time()
    assert cluster_calls(calls) == (tuple(range(16)),)
    assert time.process_time() - started_s < 5.0
