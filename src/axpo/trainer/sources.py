"""Where training rows come from: rollouts of the policy, or demonstrations. Step n is a function of (seed, n) alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from axpo.algo.credit import assign_credit
from axpo.algo.prefixes import tool_call_confidence
from axpo.algo.resampling import plan_resampling, resample_budget
from axpo.diagnostics.metrics import Metrics, picture_metrics, rollout_metrics
from axpo.diagnostics.recorder import rollout_lines
from axpo.dialogue import Conversation
from axpo.errors import ConfigError
from axpo.protocols import Renderer
from axpo.rollout.collect import OnRollout, OnTotal, StepRollouts, collect_step
from axpo.rollout.loop import RolloutSetup
from axpo.rollout.seeding import derive_seed
from axpo.trainer.config import Config
from axpo.types import (
    ImageRef,
    JsonValue,
    Problem,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    RowRole,
    ToolSpec,
    TrainingRow,
)

Item = TypeVar("Item")
Data = TypeVar("Data")
Lines = Sequence[Mapping[str, JsonValue]]


class RowSource(Protocol[Data]):
    """Gives a step its rows, in the two moves of the loop, and says what to record of them."""

    @property
    def items_per_step(self) -> int:
        """Questions, or conversations, of one step."""
        ...

    @property
    def needs_engine(self) -> bool:
        """Whether the next step samples from the policy."""
        ...

    def collect(self, step: int) -> Data:
        """What step `step`, counted from 1, learns from."""
        ...

    def assign_credit(self, data: Data) -> tuple[TrainingRow, ...]:
        """Rows with an advantage and a mask per token."""
        ...

    def describe(self, data: Data, rows: Sequence[TrainingRow]) -> tuple[Metrics, Lines]:
        """Metrics of the step, and its records for the rollouts file."""
        ...


def select_items(items: Sequence[Item], *, step: int, num_items: int, seed: int) -> tuple[Item, ...]:
    """The `num_items` items of step `step`, counted from 1; all of them when there are fewer.

    Every epoch is shuffled anew. What does not fill a whole step is left out of that epoch, so that no step holds an
    item twice.
    """
    num_items = min(num_items, len(items))
    epoch, position = divmod(step - 1, len(items) // num_items)
    order = list(range(len(items)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(items[index] for index in order[position * num_items : (position + 1) * num_items])


def check_resampling(config: Config, *, num_questions: int) -> None:
    """Raise `ConfigError` when the budget of a step, drawn from `num_questions` questions, never pays for a prefix."""
    rollout, algorithm = config.rollout, config.algorithm
    asked = min(rollout.questions_per_step, num_questions)
    budget = resample_budget(asked * rollout.group_size, algorithm.resample_budget_frac)
    if algorithm.resample_budget_frac == 0 or budget >= algorithm.num_continuations:
        return
    few = f"; the data set has only {num_questions} questions" if asked < rollout.questions_per_step else ""
    raise ConfigError(
        f"algorithm.resample_budget_frac: a budget of {budget} continuations per step ({asked} questions x "
        f"{rollout.group_size} rollouts{few}) never pays for one prefix of num_continuations = "
        f"{algorithm.num_continuations}. Raise it, or set it to 0 for GRPO."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionBatch:
    """The questions of a step and what the policy made of them."""

    step: int
    problems: tuple[Problem, ...]
    rollouts: StepRollouts


class RolloutSource:
    """Reinforcement learning: the policy answers questions, AXPO resamples and assigns credit."""

    needs_engine = True

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        setup: RolloutSetup,
        config: Config,
        seen_px: Callable[[ImageRef], int] | None = None,
        on_rollout: OnRollout | None = None,
        on_total: OnTotal | None = None,
    ) -> None:
        """`seen_px`: pixels of a picture as it reaches the model, for the `images/` metrics; None leaves them out."""
        self._problems = tuple(problems)
        self._setup = setup
        self._rollout = config.rollout
        self._algorithm = config.algorithm
        self._seed = config.run.seed
        self._seen_px = seen_px
        self._on_rollout = on_rollout
        self._on_total = on_total

    @property
    def items_per_step(self) -> int:
        """B, or all questions when there are fewer."""
        return min(self._rollout.questions_per_step, len(self._problems))

    def collect(self, step: int) -> QuestionBatch:
        """Sample the siblings of B questions, then the continuations that the plan asks for."""
        problems = select_items(self._problems, step=step, num_items=self.items_per_step, seed=self._seed)
        rollouts = asyncio.run(
            collect_step(
                problems,
                setup=self._setup,
                group_size=self._rollout.group_size,
                seed=self._seed,
                step=step,
                plan=partial(self._plan, seed=derive_seed(self._seed, "plan", step)),
                on_rollout=self._on_rollout,
                on_total=self._on_total,
            )
        )
        return QuestionBatch(step=step, problems=problems, rollouts=rollouts)

    def assign_credit(self, data: QuestionBatch) -> tuple[TrainingRow, ...]:
        """Group-relative advantages, the resampled prefixes and their continuations with credit of their own."""
        return assign_credit(
            data.rollouts.groups,
            data.rollouts.continuations,
            std=self._algorithm.advantage_std,
            eps=self._algorithm.advantage_eps,
            prefix_credit=self._algorithm.prefix_credit,
            separate_groups=self._algorithm.separate_groups,
        )

    def describe(self, data: QuestionBatch, rows: Sequence[TrainingRow]) -> tuple[Metrics, Lines]:
        """Rollout metrics and one record per rollout."""
        rollouts = data.rollouts
        metrics: Metrics = {
            **rollout_metrics(
                rollouts.groups,
                rollouts.continuations,
                rollouts.plan,
                rollouts.num_dropped,
                problems=data.problems,
                tools=tuple(self._setup.executor.tools),
            ),
            **self._setup.executor.take_service_numbers(),
            **(picture_metrics(data.problems, seen_px=self._seen_px) if self._seen_px is not None else {}),
            "seconds/rollout": rollouts.rollout_s,
            "seconds/resample": rollouts.resample_s,
        }
        lines = rollout_lines(
            step=data.step,
            phase="train",
            groups=rollouts.groups,
            problems=data.problems,
            decode=self._setup.renderer.decode,
            continuations=rollouts.continuations,
            rows=rows,
            confidence_of=self._confidence,
        )
        return metrics, lines

    def _confidence(self, rollout: Rollout) -> float:
        """What the plan ranks by: with `confidence_calls = "first"` the call that is resampled."""
        algorithm = self._algorithm
        calls = "all" if algorithm.confidence_calls == "all" else algorithm.branch_at
        return tool_call_confidence(rollout, calls=calls, tags=algorithm.confidence_tags)

    def _plan(self, groups: Sequence[RolloutGroup], *, seed: int) -> ResamplePlan:
        return plan_resampling(
            groups,
            budget_frac=self._algorithm.resample_budget_frac,
            num_continuations=self._algorithm.num_continuations,
            rank=self._algorithm.rank,
            seed=seed,
            branch_at=self._algorithm.branch_at,
            calls=self._algorithm.confidence_calls,
            tags=self._algorithm.confidence_tags,
        )


class DemonstrationSource:
    """Supervised fine-tuning: every assistant token of a conversation learns."""

    needs_engine = False

    def __init__(
        self,
        conversations: Sequence[Conversation],
        *,
        renderer: Renderer,
        tools: Mapping[str, ToolSpec],
        rows_per_step: int,
        seed: int,
    ) -> None:
        self._conversations = tuple(conversations)
        self._renderer = renderer
        self._tools = tools
        self._seed = seed
        self.items_per_step = min(rows_per_step, len(self._conversations))

    def collect(self, step: int) -> tuple[Conversation, ...]:
        """The conversations of the step."""
        return select_items(self._conversations, step=step, num_items=self.items_per_step, seed=self._seed)

    def assign_credit(self, data: Sequence[Conversation]) -> tuple[TrainingRow, ...]:
        """One row per conversation, its assistant tokens learning alike."""
        return tuple(self._build_row(conversation) for conversation in data)

    def describe(self, data: Sequence[Conversation], rows: Sequence[TrainingRow]) -> tuple[Metrics, Lines]:
        """Lengths in tokens."""
        lengths = [len(row.token_ids) for row in rows]
        return {"length/row_mean": sum(lengths) / len(lengths), "length/row_max": max(lengths)}, ()

    def _build_row(self, conversation: Conversation) -> TrainingRow:
        names = self._tools if conversation.tools is None else conversation.tools
        rendered = self._renderer.render_conversation(conversation.messages, [self._tools[name] for name in names])
        num_tokens = len(rendered.token_ids)
        loss_mask = [False] * num_tokens
        for segment in rendered.segments:
            if segment.kind.is_sampled:
                loss_mask[segment.start : segment.stop] = [True] * len(segment)
        return TrainingRow(
            id=conversation.id,
            role=RowRole.DEMONSTRATION,
            token_ids=rendered.token_ids,
            loss_mask=tuple(loss_mask),
            advantages=(1.0,) * num_tokens,
            behavior_logprobs=(0.0,) * num_tokens,
            images=rendered.images,
        )
