"""A step's questions are a function of seed and step, and every option of the algorithm reaches plan and credit."""

from __future__ import annotations

from typing import Any, cast

import pytest

from axpo.algo import assign_credit, plan_resampling
from axpo.rollout.collect import StepRollouts
from axpo.trainer.config import Config
from axpo.trainer.sources import QuestionBatch, RolloutSource, select_items
from axpo.types import RolloutGroup
from records import build_continuations, build_rollout

# Two questions; by first or last call, by one or all calls, with or without tags, another sibling is least confident.
GROUPS = tuple(
    RolloutGroup(
        problem_id=name,
        rollouts=(
            build_rollout(f"{name}/0", calls=[(0.38,), (0.9,)], problem_id=name),
            build_rollout(f"{name}/1", calls=[(0.4,) * 4], problem_id=name),
            build_rollout(f"{name}/2", calls=[(0.6,), (0.2,)], problem_id=name),
            build_rollout(f"{name}/3", reward=1.0, problem_id=name),
        ),
    )
    for name in ("q0", "q1")
)
PLAN = {
    "resample_budget_frac": ("budget_frac", 0.5, 0.75),
    "num_continuations": ("num_continuations", 2, 3),
    "rank": ("rank", "confidence", "random"),
    "branch_at": ("branch_at", "first", "last"),
    "confidence_calls": ("calls", "first", "all"),
    "confidence_tags": ("tags", False, True),
}
CREDIT = {
    "advantage_std": ("std", "sample", "population"),
    "advantage_eps": ("eps", 1e-6, 0.1),
    "prefix_credit": ("prefix_credit", True, False),
    "separate_groups": ("separate_groups", True, False),
}


def source_of(**algorithm: Any) -> RolloutSource:
    tables = {"model": {"path": "x"}, "algorithm": {option: usual for option, (_, usual, _) in PLAN.items()}}
    tables["algorithm"] |= algorithm
    return RolloutSource([], setup=cast("Any", None), config=Config.model_validate(tables))


@pytest.mark.parametrize("option", PLAN)
def test_an_option_of_the_plan_reaches_it(option: str) -> None:
    usual = {name: value for name, value, _ in PLAN.values()}
    name, _, other = PLAN[option]
    expected = plan_resampling(GROUPS, **{**usual, name: other}, seed=5)
    assert source_of(**{option: other})._plan(GROUPS, seed=5) == expected
    assert expected != plan_resampling(GROUPS, **usual, seed=5), "the option changes nothing here: too easy"


@pytest.mark.parametrize("option", CREDIT)
def test_an_option_of_credit_reaches_it(option: str) -> None:
    source = source_of(**{option: CREDIT[option][2]})
    plan = source._plan(GROUPS, seed=5)
    branches = tuple(build_continuations(prefix, [0.0, 1.0]) for prefix in plan.prefixes)
    rollouts = StepRollouts(
        groups=GROUPS, plan=plan, continuations=branches, num_dropped=0, rollout_s=0.0, resample_s=0.0
    )
    rows = source.assign_credit(QuestionBatch(step=1, problems=(), rollouts=rollouts))
    name, _, other = CREDIT[option]
    assert rows == assign_credit(GROUPS, branches, **{name: other})
    assert rows != assign_credit(GROUPS, branches), "the option changes nothing here: too easy"


def test_every_epoch_asks_all_questions_in_an_order_of_its_own() -> None:
    steps = [select_items("abcdef", step=step, num_items=2, seed=0) for step in range(1, 7)]
    first, second = sum(steps[:3], ()), sum(steps[3:], ())
    assert sorted(first) == sorted(second) == list("abcdef")
    assert first != second


def test_a_step_that_wants_more_questions_than_there_are_takes_all() -> None:
    assert sorted(select_items("abc", step=4, num_items=5, seed=0)) == list("abc")
