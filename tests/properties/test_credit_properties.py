from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from axpo.algo import assign_credit
from axpo.types import RowRole
from records import steps

options = st.fixed_dictionaries(
    {
        "std": st.sampled_from(["sample", "population", "none"]),
        "prefix_credit": st.booleans(),
        "separate_groups": st.booleans(),
    }
)


@given(steps(), options)
def test_every_sampled_token_learns_in_at_most_one_row(step, options):
    """An inherited token belongs to the source that sampled it."""
    learned: Counter[tuple[str, int]] = Counter()
    rollouts = {rollout.id: rollout for rollout in step.rollouts}
    for row in assign_credit(step.groups, step.continuation_groups, **options):
        rollout = rollouts[row.id]
        for position, learns in enumerate(row.loss_mask):
            is_inherited = rollout.prefix is not None and position < rollout.prefix.num_tokens
            learned[rollout.prefix.source_id if is_inherited else row.id, position] += learns
    assert max(learned.values(), default=0) <= 1


@given(steps(), options)
def test_only_sampled_tokens_learn(step, options):
    rollouts = {rollout.id: rollout for rollout in step.rollouts}
    for row in assign_credit(step.groups, step.continuation_groups, **options):
        sampled = [segment.kind.is_sampled for segment in rollouts[row.id].segments for _ in range(len(segment))]
        assert len(row.loss_mask) <= len(sampled)
        assert all(can_learn or not learns for can_learn, learns in zip(sampled, row.loss_mask, strict=False))


@given(steps(), options)
def test_what_does_not_learn_is_prompts_results_and_what_follows_a_resampled_prefix(step, options):
    rows = assign_credit(step.groups, step.continuation_groups, **options)
    branches = {branch.prefix.source.id: branch for branch in step.continuation_groups if branch.rollouts}
    expected = 0
    for rollout in step.rollouts:
        if rollout.id in branches:
            cut = branches[rollout.id].prefix.num_tokens
            expected += sum(len(s) for s in rollout.segments if s.kind.is_sampled and s.stop <= cut)
        else:
            expected += rollout.num_sampled_tokens
    assert sum(row.num_learning_tokens for row in rows) == expected


@given(steps(), options)
def test_siblings_that_were_not_resampled_are_rows_of_plain_grpo(step, options):
    rows = assign_credit(step.groups, step.continuation_groups, **options)
    grpo = {row.id: row for row in assign_credit(step.groups, [], **options)}
    assert all(row == grpo[row.id] for row in rows if row.role is RowRole.ROLLOUT)


@given(steps(), st.sampled_from(["sample", "population", "none"]))
def test_the_continuations_of_a_prefix_sum_to_zero(step, std):
    rows = assign_credit(step.groups, step.continuation_groups, std=std)
    total: Counter[str] = Counter()
    for row in rows:
        if row.role is RowRole.CONTINUATION:
            total[row.parent] += next(a for a, learns in zip(row.advantages, row.loss_mask, strict=True) if learns)
    assert all(abs(value) < 1e-9 for value in total.values())


@given(steps(), options)
def test_the_order_of_continuation_groups_does_not_matter(step, options):
    rows = assign_credit(step.groups, step.continuation_groups, **options)
    assert assign_credit(step.groups, step.continuation_groups[::-1], **options) == rows
