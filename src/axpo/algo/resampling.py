"""Which prefixes of a step are worth resampling (arXiv:2605.28774). Decides, never samples."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from fractions import Fraction

from axpo.algo.options import BranchAt, ConfidenceCalls, Rank, check_choice
from axpo.algo.prefixes import is_triggered, thinking_prefixes
from axpo.errors import ConfigError, RecordError
from axpo.types import ResamplePlan, Rollout, RolloutGroup, ThinkingPrefix


def resample_budget(num_rollouts: int, budget_frac: float) -> int:
    """floor(r * B * N): the most continuations that a step of `num_rollouts` = B * N may cost.

    The cap of arXiv:2605.28774. `budget_frac` counts as the decimal number that was written.

    Raises:
        ConfigError: `budget_frac` is outside 0..1.

    >>> resample_budget(100, 0.29), int(100 * 0.29)
    (29, 28)
    """
    if not 0 <= budget_frac <= 1:
        raise ConfigError(f"budget_frac: expected a number in 0..1, got {budget_frac}")
    return int(Fraction(str(float(budget_frac))) * num_rollouts)


def plan_resampling(
    groups: Sequence[RolloutGroup],
    *,
    budget_frac: float = 0.25,
    num_continuations: int = 4,
    rank: Rank = "confidence",
    seed: int = 0,
    branch_at: BranchAt = "first",
    calls: ConfidenceCalls = "first",
    tags: bool = False,
) -> ResamplePlan:
    """Share a step's budget of continuations between its triggered questions, breadth first.

    The allocation of arXiv:2605.28774. Each triggered question gets its first prefix before any gets a second; a
    chosen prefix gets exactly K continuations; what is left over stays unused. Deviation: the paper leaves the order
    between questions open; within a level the least confident prefix comes first, equal ones by problem id, then
    rollout id.
    The plan does not depend on the order of groups or siblings.

    Args:
        groups: All groups of the step; the B * N of the budget are the rollouts they hold.
        budget_frac: r, continuations per rollout; 0 is GRPO.
        num_continuations: K.
        rank: `random` (ablation) puts a random number in the place of the confidence, everything else alike.
        seed: Of `rank="random"`.
        branch_at: See `thinking_prefixes`.
        calls: See `thinking_prefixes`.
        tags: See `thinking_prefixes`.

    Returns:
        The chosen prefixes in the order in which they were chosen.

    Raises:
        ConfigError: An option is unknown or out of range.
        RecordError: Two rollouts share an id.

    >>> from axpo.algo.example import build_group
    >>> groups = [build_group(q, tool=[0.0, 0.0], no_tool=[1.0] * 6) for q in ("q0", "q1")]
    >>> plan = plan_resampling(groups, budget_frac=0.5, num_continuations=2)
    >>> plan.budget, [prefix.source.id for prefix in plan.prefixes]
    (8, ['q0/0', 'q1/0', 'q0/1', 'q1/1'])
    """
    check_choice("rank", rank, Rank)
    if num_continuations < 1:
        raise ConfigError(f"num_continuations: expected at least 1, got {num_continuations}")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    check_unique_ids(rollouts)
    budget = resample_budget(len(rollouts), budget_frac)
    candidates = [thinking_prefixes(group, branch_at=branch_at, calls=calls, tags=tags) for group in groups]
    ordered = _breadth_first(candidates, _scores(candidates, rank=rank, seed=seed))
    return ResamplePlan(
        prefixes=tuple(ordered[: budget // num_continuations]),
        num_continuations=num_continuations,
        budget=budget,
        num_triggered=sum(is_triggered(group) for group in groups),
        num_candidates=len(ordered),
    )


def _scores(candidates: Sequence[Sequence[ThinkingPrefix]], *, rank: Rank, seed: int) -> dict[str, float]:
    """What ranks each source, by id: the lower, the sooner."""
    prefixes = [prefix for of_question in candidates for prefix in of_question]
    if rank == "confidence":
        return {prefix.source.id: prefix.confidence for prefix in prefixes}
    # Drawn over the sorted ids: the order in which groups and siblings arrive must not matter.
    rng = random.Random(seed)
    return {source_id: rng.random() for source_id in sorted(prefix.source.id for prefix in prefixes)}


def _breadth_first(candidates: Sequence[Sequence[ThinkingPrefix]], scores: dict[str, float]) -> list[ThinkingPrefix]:
    """Level j holds the j-th ranked prefix of every question; levels one after the other."""

    def ranking(prefix: ThinkingPrefix) -> tuple[float, str, str]:
        return scores[prefix.source.id], prefix.source.problem_id, prefix.source.id

    leveled = [item for of_question in candidates for item in enumerate(sorted(of_question, key=ranking))]
    return [prefix for _, prefix in sorted(leveled, key=lambda item: (item[0], *ranking(item[1])))]


def check_unique_ids(rollouts: Iterable[Rollout]) -> None:
    """Credit finds a rollout by its id, so an id names one rollout of the whole step.

    Raises:
        RecordError: Two rollouts share an id.

    >>> from axpo.algo.example import build_group
    >>> check_unique_ids(build_group("q0", tool=[0.0, 1.0]).rollouts)
    """
    seen: set[str] = set()
    for rollout in rollouts:
        if rollout.id in seen:
            raise RecordError(f"Rollout {rollout.id}: ids must be unique within a step; put the problem id into them")
        seen.add(rollout.id)
