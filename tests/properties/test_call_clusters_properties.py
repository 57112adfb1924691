"""Clusters of calls for whatever a model may write: partitions that do not depend on order, bounded overlaps."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from axpo.diagnostics.call_clusters import box_iou, cluster_calls, diversity, is_alike
from axpo.types import ToolCall

corner = st.integers(min_value=-5, max_value=15) | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(corner, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
boxes = st.tuples(*[st.integers(min_value=0, max_value=9)] * 2, *[st.integers(min_value=10, max_value=20)] * 2)
arguments = st.fixed_dictionaries(
    {}, optional={"bbox_2d": boxes.map(list), "code": st.text("ab#'\" \n", max_size=12), "query": json_values}
)
calls = st.builds(
    lambda name, given, error: ToolCall(id="c", name=name, arguments=given, parse_error=error),
    st.sampled_from(["zoom", "python"]),
    arguments,
    st.sampled_from([None, None, None, "broken"]),
)
finite_boxes = st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(st.lists(calls, max_size=8), st.randoms(use_true_random=False))
def test_the_partition_does_not_depend_on_the_order_of_calls(given_calls: list[ToolCall], rng: random.Random) -> None:
    order = list(range(len(given_calls)))
    rng.shuffle(order)
    clusters = {frozenset(cluster) for cluster in cluster_calls(given_calls)}
    shuffled = cluster_calls([given_calls[position] for position in order])
    assert {frozenset(order[position] for position in cluster) for cluster in shuffled} == clusters


@given(st.lists(calls, max_size=8))
def test_clusters_hold_every_call_once_and_part_what_is_not_alike(given_calls: list[ToolCall]) -> None:
    clusters = cluster_calls(given_calls)
    assert sorted(position for cluster in clusters for position in cluster) == list(range(len(given_calls)))
    assert [len(cluster) for cluster in clusters] == sorted(map(len, clusters), reverse=True)
    label = {position: number for number, cluster in enumerate(clusters) for position in cluster}
    for first in label:
        for second in label:
            assert label[first] == label[second] or not is_alike(given_calls[first], given_calls[second])


@given(calls, calls)
def test_likeness_is_symmetric_and_true_of_a_call_with_itself(first: ToolCall, second: ToolCall) -> None:
    assert is_alike(first, first)
    assert is_alike(first, second) == is_alike(second, first)


@given(finite_boxes, finite_boxes)
def test_iou_is_symmetric_within_bounds_and_one_of_a_box_with_itself(first: Any, second: Any) -> None:
    assert 0 <= box_iou(first, second) <= 1
    assert box_iou(first, second) == box_iou(second, first)
    assert box_iou(first, first) == 1


@given(st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=20))
def test_entropy_is_within_bounds_and_zero_of_one_cluster_only(sizes: list[int]) -> None:
    of = diversity(sizes)
    assert of is not None and of.num_clusters == len(sizes)
    if of.entropy is not None:
        assert 0 <= of.entropy <= 1
        assert (of.entropy == 0) == (len(sizes) == 1)
