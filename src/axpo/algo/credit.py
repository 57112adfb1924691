"""Credit per token: who learns what, with which advantage (arXiv:2605.28774, Eq. 2 to 4).

    row           tokens                                advantage                       learns
    ordinary      all sampled                           among the N siblings            yes
    prefix        sampled, up to the opening tag        Eq. 4                           yes
    prefix        everything after the tag              -                               not in the row
    continuation  inherited prefix, tag included        -                               no
    continuation  sampled after the tag                 Eq. 2, among its K              yes
    any           prompt and tool results               -                               no

Where a token does not learn it has no KL term either. Every sampled token learns in at most one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from axpo.algo.advantages import group_relative_advantages, prefix_advantage
from axpo.algo.options import AdvantageStd
from axpo.algo.resampling import check_unique_ids
from axpo.errors import RecordError
from axpo.types import ContinuationGroup, Rollout, RolloutGroup, RowRole, ThinkingPrefix, TrainingRow


def assign_credit(
    groups: Sequence[RolloutGroup],
    continuation_groups: Sequence[ContinuationGroup],
    *,
    std: AdvantageStd = "sample",
    eps: float = 1e-6,
    prefix_credit: bool = True,
    separate_groups: bool = True,
) -> tuple[TrainingRow, ...]:
    """The training rows of a step. Without continuations this is GRPO.

    Eq. 2 to 4 of arXiv:2605.28774. Siblings that were not resampled keep their GRPO advantage from the original
    rewards; several sources of one group do not see each other. A source whose continuations were all lost is an
    ordinary rollout again; after partial loss the survivors are the group. Rows in which nothing learns are left out;
    a row with advantage zero stays, for its KL term.

    Args:
        groups: All groups of the step.
        continuation_groups: What became of the plan's prefixes; each source is in `groups`.
        std: See `group_relative_advantages`.
        eps: See `group_relative_advantages`.
        prefix_credit: False (ablation): the prefix keeps the source's GRPO advantage; the rest of it stays masked.
        separate_groups: False (ablation): the advantages of a source's continuations are taken over the N original
            rewards of the siblings and its own K together. The siblings' advantages, the prefix's and all masks stay.

    Returns:
        Group by group: its siblings in order (a resampled source as `PREFIX` row in its place), then the
        continuations in the order of their sources.

    Raises:
        RecordError: Two rollouts share an id, a source is not among the siblings or comes twice, or a continuation
            belongs to another source.
        UserError: A reward is not finite.
        ConfigError: See `group_relative_advantages`.

    >>> from axpo.algo.example import build_continuations, build_group
    >>> from axpo.algo.prefixes import thinking_prefixes
    >>> group = build_group("q0", tool=[0.0], no_tool=[0.0])
    >>> [prefix] = thinking_prefixes(group)
    >>> rows = assign_credit([group], [build_continuations(prefix, [0.0, 1.0])])
    >>> [(row.id, row.role.value) for row in rows]
    [('q0/0', 'prefix'), ('q0/1', 'rollout'), ('q0/0+0', 'continuation'), ('q0/0+1', 'continuation')]
    >>> [round(max(row.advantages, key=abs), 2) for row in rows]
    [0.71, 0.0, -0.71, 0.71]
    """
    branches = _index_by_source(groups, continuation_groups)
    rows: list[TrainingRow] = []
    for group in groups:
        rewards = [rollout.reward for rollout in group.rollouts]
        advantages = group_relative_advantages(rewards, std=std, eps=eps).tolist() if rewards else []
        build_row = partial(_build_row, group_size=len(rewards))
        for index, (rollout, advantage) in enumerate(zip(group.rollouts, advantages, strict=True)):
            branch = branches.get(rollout.id)
            if branch is None:
                rows.append(build_row(rollout, RowRole.ROLLOUT, advantage))
                continue
            if prefix_credit:
                advantage = prefix_advantage(rewards, source=index, is_recovered=branch.is_recovered, std=std, eps=eps)
            rows.append(build_row(rollout, RowRole.PREFIX, advantage, prefix=branch.prefix))
        baseline = [] if separate_groups else rewards
        for rollout in group.rollouts:
            if rollout.id in branches:
                rows += _continuation_rows(branches[rollout.id], baseline, std=std, eps=eps)
    return tuple(row for row in rows if row.num_learning_tokens)


def _continuation_rows(
    branch: ContinuationGroup, baseline: list[float], *, std: AdvantageStd, eps: float
) -> list[TrainingRow]:
    """`baseline`: rewards that share the group with the continuations' own."""
    rewards = baseline + [rollout.reward for rollout in branch.rollouts]
    advantages = group_relative_advantages(rewards, std=std, eps=eps).tolist()[len(baseline) :]
    return [
        _build_row(rollout, RowRole.CONTINUATION, advantage, group_size=len(rewards))
        for rollout, advantage in zip(branch.rollouts, advantages, strict=True)
    ]


def _build_row(
    rollout: Rollout, role: RowRole, advantage: float, *, group_size: int, prefix: ThinkingPrefix | None = None
) -> TrainingRow:
    """The row in which the tokens that `rollout` sampled itself learn. With `prefix` it ends there: no later token can
    matter to those that learn.
    """
    num_tokens = len(rollout.token_ids) if prefix is None else prefix.num_tokens
    inherited = rollout.prefix.num_tokens if rollout.prefix is not None else 0
    loss_mask = [False] * num_tokens
    for segment in rollout.segments:
        if segment.kind.is_sampled:
            learning = range(max(segment.start, inherited), min(segment.stop, num_tokens))
            loss_mask[learning.start : learning.stop] = [True] * len(learning)
    return TrainingRow(
        id=rollout.id,
        role=role,
        token_ids=rollout.token_ids[:num_tokens],
        loss_mask=tuple(loss_mask),
        advantages=tuple(advantage if learns else 0.0 for learns in loss_mask),
        behavior_logprobs=rollout.behavior_logprobs[:num_tokens],
        images=rollout.images if prefix is None else prefix.images,
        group_size=group_size,
        parent=rollout.prefix.source_id if rollout.prefix is not None else None,
    )


def _index_by_source(
    groups: Sequence[RolloutGroup], continuation_groups: Sequence[ContinuationGroup]
) -> dict[str, ContinuationGroup]:
    """Continuation groups that have survivors, by the id of their source."""
    check_unique_ids(chain.from_iterable(group.rollouts for group in (*groups, *continuation_groups)))
    siblings = {rollout.id: rollout for group in groups for rollout in group.rollouts}
    branches: dict[str, ContinuationGroup] = {}
    for branch in continuation_groups:
        source = branch.prefix.source
        if source.id not in siblings or siblings[source.id].token_ids != source.token_ids:
            raise RecordError(f"ContinuationGroup of {source.id}: its source is not among the step's siblings")
        if source.id in branches:
            raise RecordError(f"ContinuationGroup of {source.id}: the source comes twice; merge its continuations")
        strangers = [r.id for r in branch.rollouts if r.prefix is None or r.prefix.source_id != source.id]
        if strangers:
            raise RecordError(f"ContinuationGroup of {source.id}: {strangers} inherit from another rollout")
        branches[source.id] = branch
    return {source_id: branch for source_id, branch in branches.items() if branch.rollouts}
