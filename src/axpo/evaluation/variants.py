"""Accuracy over variants of a question: average and worst case, as DynaMath (arXiv:2411.00836) reports them.

A row holds the verdicts on the variants of one seed question. Variants are different questions: k of them are not k
samples of one, and `pass_at_k` does not apply to them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from axpo.errors import DataError

Group = TypeVar("Group", bound=Hashable)


def average_case(rows: Sequence[Sequence[bool]]) -> float:
    """Share of right verdicts, in 0..1: DynaMath's average-case accuracy (Eq. 1 of its paper). Deviation: none.

    Args:
        rows: One row a seed question, all of the same length: the verdicts on its variants.

    Raises:
        DataError: when there are no rows, no variants, or rows of different lengths.

    >>> average_case([[True, True], [True, False]])
    0.75
    """
    return sum(map(sum, rows)) / (len(rows) * _num_variants(rows))


def worst_case(rows: Sequence[Sequence[bool]]) -> float:
    """Share of seed questions with all variants right, in 0..1: DynaMath's worst-case accuracy. Deviation: none.

    Arguments and errors as for `average_case`.

    >>> worst_case([[True, True], [True, False]])
    0.5
    """
    _num_variants(rows)
    return sum(map(all, rows)) / len(rows)


def any_case(rows: Sequence[Sequence[bool]]) -> float:
    """Share of seed questions with at least one variant right, in 0..1. Arguments and errors as for `average_case`.

    >>> any_case([[True, False], [False, False]])
    0.5
    """
    _num_variants(rows)
    return sum(map(any, rows)) / len(rows)


def by_group(rows: Sequence[Sequence[bool]], groups: Sequence[Group]) -> dict[Group, tuple[Sequence[bool], ...]]:
    """The rows of each group, such as a topic; groups in the order of their first row.

    Raises:
        DataError: when there is not exactly one group a row.

    >>> {topic: average_case(own) for topic, own in by_group([[True], [False], [True]], ["a", "b", "b"]).items()}
    {'a': 1.0, 'b': 0.5}
    """
    if len(rows) != len(groups):
        raise DataError(f"by_group: need one group a row, got {len(rows)} rows and {len(groups)} groups")
    members = {group: list[Sequence[bool]]() for group in groups}
    for row, group in zip(rows, groups, strict=True):
        members[group].append(row)
    return {group: tuple(own) for group, own in members.items()}


def _num_variants(rows: Sequence[Sequence[bool]]) -> int:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(f"variants: need rows of one length above 0, got lengths {sorted(lengths)} in {len(rows)} rows")
    return lengths.pop()
