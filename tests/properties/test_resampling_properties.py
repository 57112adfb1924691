from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from axpo.algo import plan_resampling, thinking_prefixes
from axpo.types import RolloutGroup
from records import rollout_groups

options = st.fixed_dictionaries(
    {
        "budget_frac": st.sampled_from([0.0, 0.1, 0.25, 0.29, 0.5, 1.0]),
        "num_continuations": st.integers(1, 4),
        "rank": st.sampled_from(["confidence", "random"]),
        "seed": st.integers(0, 3),
        "branch_at": st.sampled_from(["first", "last"]),
        "calls": st.sampled_from(["first", "all"]),
        "tags": st.booleans(),
    }
)


@given(rollout_groups(), options)
def test_the_budget_is_never_exceeded_and_used_up_while_there_are_candidates(groups, options):
    plan = plan_resampling(groups, **options)
    num_rollouts = sum(len(group.rollouts) for group in groups)
    unused = Fraction(str(options["budget_frac"])) * num_rollouts - plan.num_planned
    assert unused >= 0
    assert unused < plan.num_continuations or len(plan.prefixes) == plan.num_candidates


@given(rollout_groups(), options)
def test_no_question_is_two_prefixes_ahead_of_one_that_still_has_candidates(groups, options):
    plan = plan_resampling(groups, **options)
    num_candidates = {group.problem_id: len(thinking_prefixes(group)) for group in groups}
    seen: Counter[str] = Counter()
    for prefix in plan.prefixes:
        level = seen[prefix.source.problem_id]
        assert all(seen[other] >= min(level, available) for other, available in num_candidates.items())
        seen[prefix.source.problem_id] += 1


@given(rollout_groups(), options)
def test_confidence_ascends_within_a_question_and_within_a_level(groups, options):
    plan = plan_resampling(groups, **{**options, "rank": "confidence"})
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, float]] = []
    last: dict[str, float] = {}
    for prefix in plan.prefixes:
        question = prefix.source.problem_id
        assert last.get(question, 0.0) <= prefix.confidence
        last[question] = prefix.confidence
        ranked.append((seen[question], prefix.confidence))
        seen[question] += 1
    assert ranked == sorted(ranked)


@given(rollout_groups(), options)
def test_only_wrong_tool_using_siblings_of_triggered_questions_are_chosen_and_each_once(groups, options):
    plan = plan_resampling(groups, **options)
    eligible = {r.id for group in groups if group.is_triggered for r in group.tool_using}
    chosen = [prefix.source.id for prefix in plan.prefixes]
    assert set(chosen) <= eligible
    assert len(set(chosen)) == len(chosen)


@given(rollout_groups(), options, st.randoms(use_true_random=False))
def test_the_order_of_groups_and_siblings_does_not_matter(groups, options, rng: random.Random):
    shuffled = [
        RolloutGroup(problem_id=group.problem_id, rollouts=tuple(rng.sample(group.rollouts, len(group.rollouts))))
        for group in rng.sample(groups, len(groups))
    ]
    assert plan_resampling(shuffled, **options) == plan_resampling(groups, **options)


@given(rollout_groups(), options)
def test_a_smaller_budget_chooses_a_beginning_of_the_same_order(groups, options):
    everything = plan_resampling(groups, **{**options, "budget_frac": 1.0}).prefixes
    chosen = plan_resampling(groups, **options).prefixes
    assert chosen == everything[: len(chosen)]
