"""The token table: every row of the paper's credit assignment, token by token.

Layout of a tool-using rollout:  ppp tt o b c x rr tt aa
(prompt, thinking, opening tag, call body, closing tag, text, result, thinking, answer).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from axpo.algo import assign_credit, plan_resampling, thinking_prefixes
from axpo.errors import RecordError
from axpo.types import ContinuationGroup, RolloutGroup, RowRole
from records import PROMPT, build_continuations, build_group, build_rollout

TOOL_ROW = "pppttobcxrrttaa"
LEARNS = {
    "ordinary": "...tto" + "bcx" + ".." + "ttaa",
    "prefix": "...tto",
    "continuation": "......" + "bcx" + ".." + "ttaa",
    "no tool": "...ttaa",
}


def drawn(row):
    """The row's mask, learning tokens shown by their kind."""
    letters = {len(layout): layout for layout in (TOOL_ROW, TOOL_ROW[:6], "pppttaa")}[len(row.token_ids)]
    return "".join(letter if learns else "." for letter, learns in zip(letters, row.loss_mask, strict=True))


def credit(row):
    """The one advantage of all learning tokens."""
    [value] = {a for a, learns in zip(row.advantages, row.loss_mask, strict=True) if learns}
    return value


def branch(group, rewards, index=0):
    """Continuations of the index-th candidate (`build_group` ranks its siblings in order)."""
    return build_continuations(thinking_prefixes(group)[index], rewards)


# Two tool-using siblings (both wrong), two without a tool (one correct). N = 4.
GROUP = build_group("q0", tool=[0.0, 0.0], no_tool=[1.0, 0.0])
RECOVERED = branch(GROUP, [0.0, 1.0, 0.0, 0.0])


def test_token_table():
    rows = assign_credit([GROUP], [RECOVERED], eps=0.0)
    half, best = -1 / 2, 3 / 2  # one of four correct, sample std 1/2
    recovered = sqrt(3) / 2  # rewards with the source's replaced: [1, 0, 1, 0], sample std 1/sqrt(3)
    expected = [
        ("q0/0", RowRole.PREFIX, LEARNS["prefix"], recovered, 4, None),
        ("q0/1", RowRole.ROLLOUT, LEARNS["ordinary"], half, 4, None),
        ("q0/2", RowRole.ROLLOUT, LEARNS["no tool"], best, 4, None),
        ("q0/3", RowRole.ROLLOUT, LEARNS["no tool"], half, 4, None),
        ("q0/0+0", RowRole.CONTINUATION, LEARNS["continuation"], half, 4, "q0/0"),
        ("q0/0+1", RowRole.CONTINUATION, LEARNS["continuation"], best, 4, "q0/0"),
        ("q0/0+2", RowRole.CONTINUATION, LEARNS["continuation"], half, 4, "q0/0"),
        ("q0/0+3", RowRole.CONTINUATION, LEARNS["continuation"], half, 4, "q0/0"),
    ]
    seen = [(row.id, row.role, drawn(row), credit(row), row.group_size, row.parent) for row in rows]
    assert [item[:3] + item[4:] for item in seen] == [item[:3] + item[4:] for item in expected]
    assert [item[3] for item in seen] == pytest.approx([item[3] for item in expected], abs=1e-12)


def test_the_opening_tag_learns_from_the_prefix_not_from_the_continuations():
    rows = assign_credit([GROUP], [RECOVERED])
    tag = 5
    assert [row.id for row in rows if row.parent == "q0/0" and row.loss_mask[tag]] == []
    assert rows[0].advantages[tag] == pytest.approx(sqrt(3) / 2, abs=1e-5)


def test_rows_carry_the_tokens_and_logprobs_of_their_rollout():
    for row, rollout in zip(assign_credit([GROUP], [RECOVERED]), (*GROUP.rollouts, *RECOVERED.rollouts), strict=True):
        stop = RECOVERED.prefix.num_tokens if row.role is RowRole.PREFIX else len(rollout.token_ids)
        assert (row.token_ids, row.behavior_logprobs) == (rollout.token_ids[:stop], rollout.behavior_logprobs[:stop])


def test_without_continuations_it_is_grpo():
    rows = assign_credit([GROUP], [], eps=0.0)
    assert {row.role for row in rows} == {RowRole.ROLLOUT}
    assert [credit(row) for row in rows] == pytest.approx([-1 / 2, -1 / 2, 3 / 2, -1 / 2])
    assert [drawn(row) for row in rows] == [LEARNS["ordinary"]] * 2 + [LEARNS["no tool"]] * 2


def test_an_unrecovered_source_is_masked_after_its_prefix_too():
    rows = assign_credit([GROUP], [branch(GROUP, [0.0, 0.0])], eps=0.0)
    assert (drawn(rows[0]), credit(rows[0])) == (LEARNS["prefix"], pytest.approx(-1 / 2))
    assert [credit(row) for row in rows[4:]] == [0.0, 0.0]  # rows without advantage stay: they have a KL term


def test_when_every_continuation_is_right_only_the_prefix_is_credited():
    rows = assign_credit([GROUP], [branch(GROUP, [1.0, 1.0])], eps=0.0)
    assert [credit(row) for row in (rows[0], *rows[4:])] == pytest.approx([sqrt(3) / 2, 0.0, 0.0])


def test_sources_of_one_group_do_not_see_each_others_recovery():
    # Each source alone turns [0, 0, 1, 0] into two of four correct.
    rows = assign_credit([GROUP], [branch(GROUP, [1.0, 0.0], index=1), branch(GROUP, [0.0, 1.0])], eps=0.0)
    assert [row.id for row in rows] == ["q0/0", "q0/1", "q0/2", "q0/3", "q0/0+0", "q0/0+1", "q0/1+0", "q0/1+1"]
    assert [credit(row) for row in rows[:4]] == pytest.approx([sqrt(3) / 2, sqrt(3) / 2, 3 / 2, -1 / 2])
    assert [drawn(row) for row in rows[:2]] == [LEARNS["prefix"]] * 2


def test_groups_do_not_see_each_other():
    other = build_group("q1", tool=[1.0], no_tool=[0.0])
    rows = assign_credit([other, GROUP], [RECOVERED], eps=0.0)
    assert [row.id for row in rows[:3]] == ["q1/0", "q1/1", "q0/0"]
    assert [credit(row) for row in rows[:2]] == pytest.approx([1 / sqrt(2), -1 / sqrt(2)])


def test_without_prefix_credit_the_prefix_keeps_its_grpo_advantage():
    rows = assign_credit([GROUP], [RECOVERED], prefix_credit=False, eps=0.0)
    assert (rows[0].role, drawn(rows[0]), credit(rows[0])) == (RowRole.PREFIX, LEARNS["prefix"], pytest.approx(-1 / 2))
    assert [credit(row) for row in rows[4:]] == pytest.approx([-1 / 2, 3 / 2, -1 / 2, -1 / 2])


def test_merged_groups_change_only_the_continuations():
    # Siblings 0 0 1 0 and continuations 0 1 0 0: two of eight. Population A+ = sqrt(6/2), A- = -sqrt(2/6).
    rows = assign_credit([GROUP], [RECOVERED], separate_groups=False, std="population", eps=0.0)
    assert [credit(row) for row in rows[4:]] == pytest.approx([-1 / sqrt(3), sqrt(3), -1 / sqrt(3), -1 / sqrt(3)])
    assert [row.group_size for row in rows] == [4] * 4 + [8] * 4
    separate = assign_credit([GROUP], [RECOVERED], std="population", eps=0.0)
    assert rows[:4] == separate[:4]
    assert [drawn(row) for row in rows] == [drawn(row) for row in separate]


def test_a_source_that_lost_all_continuations_is_an_ordinary_rollout_again():
    assert assign_credit([GROUP], [replace(RECOVERED, rollouts=())]) == assign_credit([GROUP], [])


def test_survivors_of_a_partial_loss_are_the_group():
    rows = assign_credit([GROUP], [replace(RECOVERED, rollouts=RECOVERED.rollouts[:3])], eps=0.0)
    # one of three correct: mean 1/3, sample std sqrt(1/3)
    assert [credit(row) for row in rows[4:]] == pytest.approx([-1 / sqrt(3), 2 / sqrt(3), -1 / sqrt(3)])
    assert [row.group_size for row in rows[4:]] == [3, 3, 3]


def test_a_branch_at_the_last_call_keeps_tool_results_masked():
    group = RolloutGroup(
        problem_id="q0", rollouts=(build_rollout("a", calls=[(0.5,), (0.5,)]), build_rollout("b", reward=1.0))
    )
    plan = plan_resampling([group], budget_frac=1.0, num_continuations=2, branch_at="last")
    rows = assign_credit([group], [build_continuations(plan.prefixes[0], [0.0, 1.0])])
    # ppp tt o b c x rr tt o | b c x rr tt aa
    learning = ["".join("#" if learns else "." for learns in row.loss_mask) for row in (rows[0], rows[2])]
    assert learning == ["...######..###", ".............." + "###..####"]


def test_rows_in_which_nothing_learns_are_left_out():
    prompt_only = build_rollout("a", layout=[PROMPT])
    assert assign_credit([RolloutGroup(problem_id="q0", rollouts=(prompt_only,))], []) == ()
    assert assign_credit([RolloutGroup(problem_id="q0", rollouts=())], []) == ()


def test_contradicting_records_are_refused():
    with pytest.raises(RecordError, match=r"ContinuationGroup of q0/0: its source is not among"):
        assign_credit([build_group("q1", tool=[0.0])], [RECOVERED])
    with pytest.raises(RecordError, match=r"ids must be unique"):
        assign_credit([GROUP], [RECOVERED, RECOVERED])
    with pytest.raises(RecordError, match=r"ContinuationGroup of q0/0: the source comes twice"):
        assign_credit([GROUP], [RECOVERED, replace(RECOVERED, rollouts=())])
    stolen = tuple(
        replace(r, prefix=replace(r.prefix, source_id="q0/1"), token_ids=r.token_ids) for r in RECOVERED.rollouts
    )
    with pytest.raises(RecordError, match=r"inherit from another rollout"):
        assign_credit([GROUP], [ContinuationGroup(prefix=RECOVERED.prefix, rollouts=stolen)])
