"""One step's rollouts: B questions x N siblings, then the plan's continuations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.errors import RolloutFault
from axpo.rollout.loop import RolloutSetup, run_rollout
from axpo.rollout.seeding import derive_seed
from axpo.types import ContinuationGroup, Problem, ResamplePlan, Rollout, RolloutGroup, ThinkingPrefix

OnRollout = Callable[[Rollout], None]
OnTotal = Callable[[int], None]
"""Told of how many rollouts a step consists, as far as is known: at first its siblings, then its continuations too."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroups:
    """Siblings of several problems."""

    groups: tuple[RolloutGroup, ...]
    num_dropped: int
    """Rollouts lost to faults of ours at every try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRollouts:
    """Everything a training step sampled."""

    groups: tuple[RolloutGroup, ...]
    plan: ResamplePlan
    continuations: tuple[ContinuationGroup, ...]
    num_dropped: int
    rollout_s: float
    resample_s: float


async def collect_step(
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    group_size: int,
    seed: int,
    step: int,
    plan: Callable[[tuple[RolloutGroup, ...]], ResamplePlan],
    on_rollout: OnRollout | None = None,
    on_total: OnTotal | None = None,
) -> StepRollouts:
    """(1) sample the siblings, (2) let `plan` decide over the whole step, (3) sample its continuations."""
    started_s = time.monotonic()
    num_siblings = len(problems) * group_size
    if on_total is not None:
        on_total(num_siblings)
    sampled = await sample_groups(
        problems, setup=setup, group_size=group_size, seed=seed, tag=f"step-{step}", on_rollout=on_rollout
    )
    planned_s = time.monotonic()
    resample_plan = plan(sampled.groups)
    if on_total is not None:
        on_total(num_siblings + resample_plan.num_planned)
    by_id = {problem.id: problem for problem in problems}
    continuations, num_dropped = await _sample_continuations(
        resample_plan, by_id, setup=setup, seed=seed, on_rollout=on_rollout
    )
    return StepRollouts(
        groups=sampled.groups,
        plan=resample_plan,
        continuations=continuations,
        num_dropped=sampled.num_dropped + num_dropped,
        rollout_s=planned_s - started_s,
        resample_s=time.monotonic() - planned_s,
    )


async def sample_groups(
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    group_size: int,
    seed: int,
    tag: str,
    on_rollout: OnRollout | None = None,
) -> SampledGroups:
    """`group_size` rollouts of every problem, all at once. `tag` goes into the rollouts' ids and seeds.

    A rollout lost to a fault of ours is retried, then left out of its group. Raises `RolloutFault` when not a single
    one survives: then the fault is no accident.
    """

    async def sibling(problem: Problem, index: int) -> Rollout | None:
        rollout_id = f"{tag}/{problem.id}/{index}"
        return await _retry(
            rollout_id,
            lambda attempt: run_rollout(
                problem, setup=setup, rollout_id=rollout_id, seed=derive_seed(seed, rollout_id, attempt)
            ),
            setup,
            faults,
            on_rollout,
            gate,
        )

    gate = asyncio.Semaphore(setup.max_running)
    faults: list[RolloutFault] = []
    outcomes = await _gather([sibling(problem, index) for problem in problems for index in range(group_size)])
    if outcomes and all(outcome is None for outcome in outcomes):
        raise RolloutFault(
            f"all {len(outcomes)} rollouts of {tag} were lost; the last fault was: {faults[-1]}"
        ) from faults[-1]
    groups = tuple(
        RolloutGroup(
            problem_id=problem.id,
            rollouts=tuple(o for o in outcomes[i * group_size : (i + 1) * group_size] if o is not None),
        )
        for i, problem in enumerate(problems)
    )
    return SampledGroups(groups=groups, num_dropped=sum(outcome is None for outcome in outcomes))


async def _sample_continuations(
    plan: ResamplePlan,
    problems: dict[str, Problem],
    *,
    setup: RolloutSetup,
    seed: int,
    on_rollout: OnRollout | None,
) -> tuple[tuple[ContinuationGroup, ...], int]:
    async def continuation(prefix: ThinkingPrefix, index: int) -> Rollout | None:
        rollout_id = f"{prefix.source.id}+{index}"
        return await _retry(
            rollout_id,
            lambda attempt: run_rollout(
                problems[prefix.source.problem_id],
                setup=setup,
                rollout_id=rollout_id,
                seed=derive_seed(seed, rollout_id, attempt),
                prefix=prefix,
            ),
            setup,
            [],
            on_rollout,
            gate,
        )

    gate = asyncio.Semaphore(setup.max_running)
    num = plan.num_continuations
    outcomes = await _gather([continuation(prefix, index) for prefix in plan.prefixes for index in range(num)])
    groups = tuple(
        ContinuationGroup(prefix=prefix, rollouts=tuple(o for o in outcomes[i * num : (i + 1) * num] if o is not None))
        for i, prefix in enumerate(plan.prefixes)
    )
    return groups, sum(outcome is None for outcome in outcomes)


async def _retry(
    rollout_id: str,
    attempt_rollout: Callable[[int], Awaitable[Rollout]],
    setup: RolloutSetup,
    faults: list[RolloutFault],
    on_rollout: OnRollout | None,
    gate: asyncio.Semaphore,
) -> Rollout | None:
    """The rollout, or None when every attempt ended in a fault of ours. Each fault is logged.

    An attempt starts, and its clock with it, when `gate` lets it in: time spent waiting for others costs it nothing.
    """
    max_retries = setup.max_fault_retries
    for attempt in range(max_retries + 1):
        try:
            async with gate:
                rollout = setup.known.get(rollout_id) or await attempt_rollout(attempt)
        except RolloutFault as fault:
            faults.append(fault)
            outcome = "tried again" if attempt < max_retries else "dropped"
            _log.warning("rollout %s: try %d of %d: %s; %s", rollout_id, attempt + 1, max_retries + 1, fault, outcome)
        else:
            if on_rollout is not None:
                on_rollout(rollout)
            return rollout
    return None


async def _gather(rollouts: Sequence[Coroutine[Any, Any, Rollout | None]]) -> list[Rollout | None]:
    """All results in order. The first error that is no `RolloutFault` cancels the rest and is raised."""
    tasks = [asyncio.create_task(rollout) for rollout in rollouts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
