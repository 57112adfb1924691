"""Evaluate a policy: n samples of every question, through the same loop that training uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from axpo.diagnostics.metrics import tool_metrics
from axpo.errors import DataError
from axpo.evaluation.outcomes import QuestionOutcome, outcome_metrics, question_outcome
from axpo.rollout.collect import sample_groups
from axpo.rollout.loop import RolloutSetup
from axpo.types import Problem, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """The dialogues, what became of each question, and the numbers to log."""

    groups: tuple[RolloutGroup, ...]
    outcomes: tuple[QuestionOutcome, ...]
    metrics: dict[str, float | int | None]


def evaluate(
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    num_samples: int,
    seed: int,
    on_rollout: Callable[[Rollout], None] | None = None,
) -> EvalResult:
    """Sample `num_samples` rollouts of every problem and count.

    A rollout dropped for a fault of ours counts as wrong and stays in n, so that Pass@k of two runs is comparable;
    `eval/dropped` says how many. Intervals are clustered by `metadata["cluster"]`, else by question.

    Raises:
        DataError: without problems, or when two problems share an id.
    """
    if len({problem.id for problem in problems}) != len(problems) or not problems:
        raise DataError(f"evaluation: need at least one problem and unique ids, got {len(problems)} problems.")
    sampled = asyncio.run(
        sample_groups(problems, setup=setup, group_size=num_samples, seed=seed, tag="eval", on_rollout=on_rollout)
    )
    rollouts_by_id = {group.problem_id: group.rollouts for group in sampled.groups}
    outcomes = tuple(
        question_outcome(
            problem.id, rollouts_by_id.get(problem.id, ()), metadata=problem.metadata, num_samples=num_samples
        )
        for problem in problems
    )
    rollouts = [rollout for group in sampled.groups for rollout in group.rollouts]
    executor = setup.executor
    tools = {**tool_metrics(rollouts, tools=tuple(executor.tools)), **executor.take_service_numbers()}
    return EvalResult(groups=sampled.groups, outcomes=outcomes, metrics={**outcome_metrics(outcomes), **tools})
