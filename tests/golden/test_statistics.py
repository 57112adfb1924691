"""The step's diagnostics against values derived by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axpo.algo import (
    all_wrong_rate,
    post_resampling_all_wrong_rate,
    recovery_probability,
    restore_rate,
    thinking_prefixes,
    tool_use_rate,
)
from axpo.errors import ConfigError, UserError
from records import build_continuations, build_group

RECOVERED = build_group("q0", tool=[0.0, 0.0], no_tool=[1.0])  # triggered; one of two sources recovers
FAILED = build_group("q1", tool=[0.0], no_tool=[0.0, 0.0])  # triggered; resampled in vain
SKIPPED = build_group("q2", tool=[0.0, 0.0, 0.0])  # triggered; beyond the budget
FINE = build_group("q3", tool=[0.0, 1.0], no_tool=[0.0])
WITHOUT_TOOL = build_group("q4", no_tool=[0.0, 1.0])
GROUPS = [RECOVERED, FAILED, SKIPPED, FINE, WITHOUT_TOOL]

BRANCHES = [
    build_continuations(thinking_prefixes(RECOVERED)[0], [0.0, 0.0]),
    build_continuations(thinking_prefixes(RECOVERED)[1], [0.0, 1.0]),
    build_continuations(thinking_prefixes(FAILED)[0], [0.0, 0.0]),
]


def test_tool_use_rate_counts_rollouts():
    assert tool_use_rate(GROUPS) == 8 / 14  # 2 + 1 + 3 + 2 + 0 of 3 + 3 + 3 + 3 + 2


def test_all_wrong_rate_counts_questions_with_such_a_subgroup():
    assert all_wrong_rate(GROUPS) == 3 / 4  # q0 q1 q2 of q0..q3
    assert all_wrong_rate(GROUPS, "no_tool") == 2 / 4  # q1 q3 of q0 q1 q3 q4


def test_post_resampling_a_recovered_subgroup_is_not_all_wrong():
    assert post_resampling_all_wrong_rate(GROUPS, BRANCHES) == 2 / 4
    assert post_resampling_all_wrong_rate(GROUPS, []) == all_wrong_rate(GROUPS)


def test_restore_rate_has_two_denominators():
    assert restore_rate(GROUPS, BRANCHES) == 1 / 2  # q0 of q0 q1
    assert restore_rate(GROUPS, BRANCHES, over="triggered") == 1 / 3  # q0 of q0 q1 q2


def test_a_question_that_lost_its_continuations_was_not_resampled():
    lost = [*BRANCHES[:2], replace(BRANCHES[2], rollouts=())]
    assert restore_rate(GROUPS, lost) == 1.0
    assert restore_rate(GROUPS, lost, over="triggered") == 1 / 3


def test_an_empty_denominator_is_not_zero():
    assert tool_use_rate([]) is None
    assert all_wrong_rate([WITHOUT_TOOL]) is None
    assert all_wrong_rate([SKIPPED], "no_tool") is None
    assert post_resampling_all_wrong_rate([WITHOUT_TOOL], []) is None
    assert restore_rate([SKIPPED], []) is None
    assert restore_rate([SKIPPED], [], over="triggered") == 0.0
    assert restore_rate([FINE], [], over="triggered") is None


@pytest.mark.parametrize(("p", "n", "expected"), [(0.0, 4, 0.0), (1.0, 1, 1.0), (1 / 4, 2, 7 / 16), (1 / 2, 0, 0.0)])
def test_recovery_probability(p, n, expected):
    assert recovery_probability(p, n) == pytest.approx(expected)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"p=1\.5"):
        recovery_probability(1.5, 2)
    with pytest.raises(ConfigError, match="subgroup"):
        all_wrong_rate(GROUPS, "zoom")
    with pytest.raises(ConfigError, match="over"):
        restore_rate(GROUPS, BRANCHES, over="selected")
