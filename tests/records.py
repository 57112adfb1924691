"""Small valid records for tests, and hypothesis strategies of whole steps.

The builders are those of `axpo.algo.example`; import them from here together with the strategies.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from axpo.algo import plan_resampling
from axpo.algo.example import (
    ANSWER,
    PROMPT,
    TEXT,
    THINKING,
    TOOL_CLOSE,
    TOOL_OPEN,
    TOOL_RESULT,
    build_continuations,
    build_group,
    build_rollout,
)
from axpo.types import ContinuationGroup, ResamplePlan, Rollout, RolloutGroup

__all__ = [
    "ANSWER",
    "PROMPT",
    "TEXT",
    "THINKING",
    "TOOL_CLOSE",
    "TOOL_OPEN",
    "TOOL_RESULT",
    "Step",
    "build_continuations",
    "build_group",
    "build_rollout",
    "rollout_groups",
    "steps",
]

# Few values on purpose: ties must happen.
_probabilities = st.sampled_from([0.125, 0.25, 0.5, 1.0])
_calls = st.lists(st.lists(_probabilities, max_size=3), max_size=2)


@dataclass(frozen=True)
class Step:
    """One step as credit sees it."""

    groups: tuple[RolloutGroup, ...]
    plan: ResamplePlan
    continuation_groups: tuple[ContinuationGroup, ...]

    @property
    def rollouts(self) -> list[Rollout]:
        """Siblings and continuations."""
        return [r for group in (*self.groups, *self.continuation_groups) for r in group.rollouts]


@st.composite
def rollout_groups(draw: st.DrawFn) -> tuple[RolloutGroup, ...]:
    """One to four questions with one to six siblings; correct tool use is rare, so that many are triggered."""
    groups: list[RolloutGroup] = []
    for question in range(draw(st.integers(1, 4))):
        rollouts: list[Rollout] = []
        for sibling in range(draw(st.integers(1, 6))):
            calls = draw(_calls)
            reward = float(draw(st.integers(0, 9)) == 0) if calls else float(draw(st.booleans()))
            name = f"q{question}/{sibling}"
            rollouts.append(build_rollout(name, reward=reward, calls=calls, problem_id=f"q{question}"))
        groups.append(RolloutGroup(problem_id=f"q{question}", rollouts=tuple(rollouts)))
    return tuple(groups)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Groups, a plan for them, and its continuations, some of them lost."""
    groups = draw(rollout_groups())
    plan = plan_resampling(
        groups,
        budget_frac=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        num_continuations=draw(st.integers(1, 3)),
        branch_at=draw(st.sampled_from(["first", "last"])),
    )
    survivors = st.lists(st.sampled_from([0.0, 1.0]), max_size=plan.num_continuations)
    branches = tuple(build_continuations(prefix, draw(survivors)) for prefix in plan.prefixes)
    return Step(groups=groups, plan=plan, continuation_groups=branches)
