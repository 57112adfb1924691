"""What a step says about the thinking-acting gap (arXiv:2605.28774, section 2 and Proposition 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from axpo.algo.options import RestoreDenominator, Subgroup, check_choice
from axpo.algo.prefixes import is_triggered
from axpo.errors import UserError
from axpo.types import ContinuationGroup, RolloutGroup


def tool_use_rate(groups: Sequence[RolloutGroup]) -> float | None:
    """Share of rollouts that opened at least one tool call. Continuations do not count: they all do.

    Returns:
        None without rollouts.

    >>> from axpo.algo.example import build_group
    >>> tool_use_rate([build_group("q0", tool=[0.0], no_tool=[1.0, 0.0, 0.0])])
    0.25
    """
    return _share(rollout.uses_tool for group in groups for rollout in group.rollouts)


def all_wrong_rate(groups: Sequence[RolloutGroup], subgroup: Subgroup = "tool") -> float | None:
    """Share of questions whose subgroup has no correct rollout, before resampling.

    Args:
        groups: The siblings of each question.
        subgroup: `tool` or `no_tool`. What the other subgroup does is not looked at.

    Returns:
        Over the questions whose subgroup is not empty; None when there is none.

    Raises:
        ConfigError: Unknown `subgroup`.

    >>> from axpo.algo.example import build_group
    >>> groups = [build_group("q0", tool=[0.0], no_tool=[1.0]), build_group("q1", tool=[1.0]), build_group("q2")]
    >>> all_wrong_rate(groups), all_wrong_rate(groups, "no_tool")
    (0.5, 0.0)
    """
    check_choice("subgroup", subgroup, Subgroup)
    subgroups = [group.tool_using if subgroup == "tool" else group.no_tool for group in groups]
    return _share(not any(rollout.is_correct for rollout in members) for members in subgroups if members)


def post_resampling_all_wrong_rate(
    groups: Sequence[RolloutGroup], continuation_groups: Sequence[ContinuationGroup]
) -> float | None:
    """Share of questions whose tool-using subgroup has no correct rollout, its continuations included.

    Returns:
        Over the questions whose tool-using subgroup is not empty; None when there is none.

    >>> from axpo.algo.example import build_continuations, build_group
    >>> from axpo.algo.prefixes import thinking_prefixes
    >>> groups = [build_group("q0", tool=[0.0]), build_group("q1", tool=[0.0])]
    >>> [prefix] = thinking_prefixes(groups[0])
    >>> post_resampling_all_wrong_rate(groups, [build_continuations(prefix, [0.0, 1.0])])
    0.5
    """
    outcomes = _outcomes_by_source(continuation_groups)
    return _share(
        is_triggered(group) and not any(_branch_outcomes(group, outcomes)) for group in groups if group.tool_using
    )


def restore_rate(
    groups: Sequence[RolloutGroup],
    continuation_groups: Sequence[ContinuationGroup],
    *,
    over: RestoreDenominator = "resampled",
) -> float | None:
    """Share of triggered questions in which at least one continuation is correct.

    Args:
        groups: The siblings of each question.
        continuation_groups: The continuations of the step; one that lost all its rollouts does not count.
        over: `resampled`: the triggered questions with at least one continuation, what resampling achieves where it
            is tried. `triggered`: all triggered questions, those beyond the budget included, what it achieves for the
            step. The paper does not say which it plots.

    Returns:
        None when the denominator is empty.

    Raises:
        ConfigError: Unknown `over`.

    >>> from axpo.algo.example import build_continuations, build_group
    >>> from axpo.algo.prefixes import thinking_prefixes
    >>> groups = [build_group("q0", tool=[0.0]), build_group("q1", tool=[0.0])]
    >>> [prefix] = thinking_prefixes(groups[0])
    >>> branches = [build_continuations(prefix, [0.0, 1.0])]
    >>> restore_rate(groups, branches), restore_rate(groups, branches, over="triggered")
    (1.0, 0.5)
    """
    check_choice("over", over, RestoreDenominator)
    outcomes = _outcomes_by_source(continuation_groups)
    per_question = [_branch_outcomes(group, outcomes) for group in groups if is_triggered(group)]
    return _share(any(recovered) for recovered in per_question if recovered or over == "triggered")


def recovery_probability(success_rate: float, num_samples: int) -> float:
    """Chance of at least one success in independent samples: 1 - (1 - p)^n.

    Both sides of Proposition 1: resampling a prefix beats fresh rollouts whenever its success rate exceeds the rate of
    tool use times the success rate of tool use.

    Args:
        success_rate: p, in 0..1.
        num_samples: n >= 0.

    Raises:
        UserError: An argument is out of range.

    >>> recovery_probability(0.5, 2)
    0.75
    """
    if not 0 <= success_rate <= 1 or num_samples < 0:
        raise UserError(f"recovery_probability: need 0 <= p <= 1 and n >= 0, got p={success_rate}, n={num_samples}")
    return 1.0 - (1.0 - success_rate) ** num_samples


def _outcomes_by_source(continuation_groups: Sequence[ContinuationGroup]) -> dict[str, bool]:
    return {branch.prefix.source.id: branch.is_recovered for branch in continuation_groups if branch.rollouts}


def _branch_outcomes(group: RolloutGroup, outcomes: dict[str, bool]) -> list[bool]:
    """Whether it was recovered, for each resampled source of the group."""
    return [outcomes[rollout.id] for rollout in group.rollouts if rollout.id in outcomes]


def _share(claims: Iterable[bool]) -> float | None:
    values = list(claims)
    return sum(values) / len(values) if values else None
