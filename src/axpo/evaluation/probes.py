"""Live probes of a checkpoint (D3 and D4 of arXiv:2605.28774): continue failed prefixes and look at what comes.

    sample_prefixes   siblings of every question; K continuations of up to M prefixes of triggered questions
    sample_fresh      K whole rollouts of every probed question, for comparison
    prefix_outcomes   continuations -> clusters of their first calls, and which of them are right

Questions are chosen because their tool-using siblings failed, so those siblings cannot be what continuations are
compared with: they are wrong by choice. Fresh rollouts are sampled after the choice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from axpo.algo.options import BranchAt, ConfidenceCalls
from axpo.algo.prefixes import thinking_prefixes
from axpo.diagnostics.call_clusters import argument_defaults, cluster_calls
from axpo.errors import DataError
from axpo.evaluation.call_judge import CallJudge
from axpo.evaluation.probe_numbers import MALFORMED, UNKNOWN_TOOL, CallCluster, FreshOutcome, PrefixOutcome
from axpo.rollout.calls import read_call
from axpo.rollout.collect import OnRollout, OnTotal, SampledGroups, StepRollouts, collect_step, sample_groups
from axpo.rollout.loop import RolloutSetup
from axpo.rollout.seeding import derive_seed
from axpo.types import (
    ContinuationGroup,
    Problem,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    SegmentKind,
    ThinkingPrefix,
    ToolCall,
)

STEP = 0
"""Of the records: training counts from 1."""
MAX_EXAMPLE_CHARS = 1000


def sample_prefixes(
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    group_size: int,
    num_continuations: int,
    max_prefixes: int,
    seed: int,
    branch_at: BranchAt = "first",
    calls: ConfidenceCalls = "first",
    tags: bool = False,
    on_rollout: OnRollout | None = None,
    on_total: OnTotal | None = None,
) -> StepRollouts:
    """Siblings of every question, then the continuations of the prefixes that `choose_prefixes` takes.

    Args:
        problems: the questions, ids unique.
        setup: how dialogues are sampled.
        group_size: N, siblings of a question.
        num_continuations: K, of each prefix.
        max_prefixes: M, over all questions.
        seed: of everything.
        branch_at: see `axpo.algo.prefixes.thinking_prefixes`, as are the next two.
        calls: whose confidence.
        tags: count the tags' probabilities too.
        on_rollout: told of each rollout.
        on_total: told of how many there will be.

    Raises:
        DataError: without questions, or when two share an id.
        RolloutFault: when every sibling was lost to faults of ours.
    """
    if len({problem.id for problem in problems}) != len(problems) or not problems:
        raise DataError(f"probe: need at least one question and unique ids, got {len(problems)} questions.")

    def plan(groups: tuple[RolloutGroup, ...]) -> ResamplePlan:
        candidates = [thinking_prefixes(group, branch_at=branch_at, calls=calls, tags=tags) for group in groups]
        prefixes = choose_prefixes(candidates, max_prefixes=max_prefixes, seed=seed)
        return ResamplePlan(
            prefixes=prefixes,
            num_continuations=num_continuations,
            budget=len(prefixes) * num_continuations,
            num_triggered=sum(group.is_triggered for group in groups),
            num_candidates=sum(map(len, candidates)),
        )

    return asyncio.run(
        collect_step(
            problems,
            setup=setup,
            group_size=group_size,
            seed=seed,
            step=STEP,
            plan=plan,
            on_rollout=on_rollout,
            on_total=on_total,
        )
    )


def choose_prefixes(
    candidates: Sequence[Sequence[ThinkingPrefix]], *, max_prefixes: int, seed: int
) -> tuple[ThinkingPrefix, ...]:
    """Up to `max_prefixes`, breadth first over questions, at random within: training takes the least confident first,
    a probe of what confidence says must not. Does not depend on the order of questions or prefixes.
    """
    levels: list[tuple[int, float, ThinkingPrefix]] = []
    for of_question in candidates:
        ordered = sorted(of_question, key=lambda prefix: prefix.source.id)
        rng = random.Random(derive_seed(seed, "probe", ordered[0].source.problem_id if ordered else ""))
        rng.shuffle(ordered)
        levels += [(level, rng.random(), prefix) for level, prefix in enumerate(ordered)]
    levels.sort(key=lambda item: (item[0], item[1], item[2].source.id))
    return tuple(prefix for _, _, prefix in levels[:max_prefixes])


def probed_problems(step: StepRollouts, problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The questions of which a prefix was continued."""
    chosen = {prefix.source.problem_id for prefix in step.plan.prefixes}
    return tuple(problem for problem in problems if problem.id in chosen)


def sample_fresh(
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    num_rollouts: int,
    seed: int,
    on_rollout: OnRollout | None = None,
) -> SampledGroups:
    """`num_rollouts` whole rollouts of every question, independent of its siblings. Raises `RolloutFault` when all of
    them were lost to faults of ours.
    """
    return asyncio.run(
        sample_groups(problems, setup=setup, group_size=num_rollouts, seed=seed, tag="fresh", on_rollout=on_rollout)
    )


# -- outcomes ---------------------------------------------------------------------------------------------------------


def prefix_outcomes(
    continuations: Sequence[ContinuationGroup],
    problems: Sequence[Problem],
    *,
    setup: RolloutSetup,
    num_continuations: int,
) -> tuple[PrefixOutcome, ...]:
    """Each prefix with the clusters of its continuations' first calls."""
    by_id = {problem.id: problem for problem in problems}
    tools = setup.executor.tools
    defaults = argument_defaults(tool.spec for tool in tools.values())
    decode = setup.renderer.decode
    outcomes: list[PrefixOutcome] = []
    for group in continuations:
        prefix, problem = group.prefix, by_id[group.prefix.source.problem_id]
        failed = call_at(prefix.source, prefix.num_tokens, decode)
        calls = [call_at(rollout, prefix.num_tokens, decode) for rollout in group.rollouts]
        outcomes.append(
            PrefixOutcome(
                source_id=prefix.source.id,
                problem_id=problem.id,
                question_cluster=str(problem.metadata.get("cluster", problem.id)),
                tool=failed.name if failed.name in tools else MALFORMED if failed.parse_error else UNKNOWN_TOOL,
                confidence=prefix.confidence,
                num_tokens=prefix.num_tokens,
                num_lost=num_continuations - len(group.rollouts),
                clusters=tuple(
                    _call_cluster([(calls[position], group.rollouts[position]) for position in cluster])
                    for cluster in cluster_calls(calls, defaults=defaults)
                ),
            )
        )
    return tuple(outcomes)


def fresh_outcomes(groups: Sequence[RolloutGroup], *, num_rollouts: int) -> dict[str, FreshOutcome]:
    """Counts of the fresh rollouts by problem id."""
    return {
        group.problem_id: FreshOutcome(
            problem_id=group.problem_id,
            num_rollouts=len(group.rollouts),
            num_tool=len(group.tool_using),
            num_correct=sum(rollout.is_correct for rollout in group.rollouts),
            num_correct_tool=sum(rollout.is_correct for rollout in group.tool_using),
            num_lost=num_rollouts - len(group.rollouts),
        )
        for group in groups
    }


def call_at(rollout: Rollout, start: int, decode: Callable[[Sequence[int]], str]) -> ToolCall:
    """The call whose body starts at token `start`, right behind its opening tag, whether or not it ran."""
    later = [segment for segment in rollout.segments if segment.stop > start]
    body = later[0] if later and later[0].kind is SegmentKind.TOOL_CALL else None
    after = later[1:] if body is not None else later
    raw = decode(rollout.token_ids[body.start : body.stop]) if body is not None else ""
    return read_call(0, raw, is_closed=bool(after) and after[0].kind is SegmentKind.TOOL_CLOSE)


async def judge_outcomes(
    outcomes: Sequence[PrefixOutcome], questions: Mapping[str, str], *, judge: CallJudge
) -> tuple[PrefixOutcome, ...]:
    """The outcomes with clusters joined that `judge` takes for the same; malformed calls stay apart.

    `questions`: what each problem asks, by its id. Raises what `CallJudge.join` raises.
    """

    async def one(outcome: PrefixOutcome) -> PrefixOutcome:
        readable = [cluster for cluster in outcome.clusters if not cluster.is_malformed]
        groups = await judge.join(questions[outcome.problem_id], [cluster.example for cluster in readable])
        sizes = [sum(readable[position].num_calls for position in group) for group in groups]
        sizes += [cluster.num_calls for cluster in outcome.clusters if cluster.is_malformed]
        return replace(outcome, judged_sizes=tuple(sorted(sizes, reverse=True)))

    return tuple(await asyncio.gather(*map(one, outcomes)))


def _call_cluster(members: Sequence[tuple[ToolCall, Rollout]]) -> CallCluster:
    first = members[0][0]
    raw = first.raw.strip()
    return CallCluster(
        num_calls=len(members),
        num_correct=sum(rollout.is_correct for _, rollout in members),
        is_malformed=first.parse_error is not None,
        example=raw if len(raw) <= MAX_EXAMPLE_CHARS else raw[: MAX_EXAMPLE_CHARS - 3] + "...",
    )
