"""The one loop that runs a dialogue: sample a turn, take it apart, run its calls, repeat until it ends.

`run_rollout` runs an ordinary rollout and a continuation of a `ThinkingPrefix` alike; the only difference is what the
dialogue starts with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from axpo.errors import DataError, EngineFault, RewardError, ToolFault
from axpo.protocols import (
    ImageStore,
    InferenceEngine,
    ParsedTurn,
    RenderedTokens,
    Renderer,
    RewardFn,
    ToolContext,
)
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.seeding import derive_seed
from axpo.threads import run_in_daemon_thread
from axpo.types import (
    Completion,
    FailureKind,
    GenerationRequest,
    ImageRef,
    PrefixRef,
    Problem,
    Rollout,
    SamplingParams,
    Segment,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
    ToolCall,
    ToolFailure,
    ToolResult,
    ToolSpec,
)

MAX_CALLS_PER_TURN = 16
"""Further calls of a turn are not run; the model reads so."""
ENGINE_GRACE_S = 60.0
"""An engine may take this long to begin a turn, and to end it once its time is up."""
_TOO_MANY_CALLS = ToolFailure(
    kind=FailureKind.MALFORMED_CALL, message=f"Not run: a turn has at most {MAX_CALLS_PER_TURN} calls."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutLimits:
    """What ends a rollout whatever the policy does. An inherited prefix counts."""

    max_tool_turns: int
    """Tool-executing turns; one answer turn follows."""
    max_response_tokens: int
    """Everything after the prompt: sampled tokens and tool results."""
    max_context_tokens: int | None = None
    """What the model takes in all, prompt included; None: as much as the other limits allow."""
    time_limit_s: float = 600.0
    """Wall clock of the dialogue, without the time its calls waited for others or for a fault of ours to pass."""
    reward_timeout_s: float | None = None
    """Wall clock of the reward on one final text; None for rewards that are known to return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """All that a rollout needs besides its problem."""

    engine: InferenceEngine
    renderer: Renderer
    executor: ToolExecutor
    reward_for: Callable[[Problem], RewardFn]
    store: ImageStore
    limits: RolloutLimits
    sampling: SamplingParams
    max_fault_retries: int = 2
    max_running: int = 256
    """Dialogues under way at once; the clock of the others has not started."""
    known: Mapping[str, Rollout] = field(default_factory=lambda: dict[str, Rollout]())
    """Rollouts by id that an earlier start of the same command sampled: they are not sampled again."""

    def specs_for(self, problem: Problem) -> tuple[ToolSpec, ...]:
        """The tools offered on this problem."""
        tools = self.executor.tools
        return tuple(tools[name].spec for name in (tools if problem.tools is None else problem.tools))


async def run_rollout(
    problem: Problem, *, setup: RolloutSetup, rollout_id: str, seed: int, prefix: ThinkingPrefix | None = None
) -> Rollout:
    """One whole dialogue, scored. Raises `RolloutFault` for a fault of ours; mistakes of the policy are values.

    With `prefix` the dialogue starts from the prefix's token ids and images, in a fresh tool environment.
    """
    # (1) what is given: the prompt, or a frozen prefix with its images
    specs = setup.specs_for(problem)
    if prefix is None:
        dialogue = _Dialogue.from_prompt(setup.renderer.render_prompt(problem.messages, specs))
    else:
        dialogue = _Dialogue.from_prefix(prefix)
    num_result_images = sum(block.image is not None for result in dialogue.tool_results for block in result.content)
    images = dialogue.images[: len(dialogue.images) - num_result_images]
    context = ToolContext(rollout_id=rollout_id, images=list(images), store=setup.store)
    try:
        dialogue.waited_s += await setup.executor.replay(dialogue.tool_results, context)
        stop_reason, final_text = await _converse(dialogue, context, [spec.name for spec in specs], setup, seed)
    finally:
        await setup.executor.close_rollout(context)
    reward = await _score(final_text, problem, setup)
    return dialogue.finish(
        rollout_id=rollout_id,
        problem=problem,
        stop_reason=stop_reason,
        final_text=final_text,
        reward=reward,
        prefix=prefix,
    )


async def _converse(
    dialogue: _Dialogue, context: ToolContext, offered: Sequence[str], setup: RolloutSetup, seed: int
) -> tuple[StopReason, str]:
    """Turn by turn until the dialogue ends. Returns why it did, and its final text."""
    limits = setup.limits
    while True:
        # (2) sample the turn, or the rest of the turn that the prefix left open
        room = dialogue.room(limits)
        remaining_s = limits.time_limit_s - dialogue.charged_s
        if room <= 0:
            return StopReason.TOKEN_LIMIT, ""
        if remaining_s <= 0:
            return StopReason.TIME_LIMIT, ""
        turn_seed = derive_seed(seed, dialogue.num_tool_turns)
        completion = await _generate(dialogue, setup, room=room, seed=turn_seed, timeout_s=remaining_s)
        # (3) take it apart by token ids
        turn = dialogue.add_turn(completion, setup.renderer)
        final_text = "" if turn.tool_calls else turn.visible_text
        # (4) does it end here?
        if completion.finish_reason == "length":
            is_late = len(completion.token_ids) < room
            return StopReason.TIME_LIMIT if is_late else StopReason.TOKEN_LIMIT, final_text
        if not turn.tool_calls:
            return StopReason.ANSWERED, final_text
        if dialogue.num_tool_turns >= limits.max_tool_turns:
            return StopReason.TURN_LIMIT, ""
        # (5) run the calls, one after the other: a later one may use the images of an earlier one
        calls = name_calls(turn.tool_calls, context.rollout_id, dialogue.num_tool_turns)
        results, is_late = await run_calls(
            calls, context, dialogue, executor=setup.executor, offered=offered, time_limit_s=limits.time_limit_s
        )
        if is_late:
            dialogue.tool_results.extend(results)
            return StopReason.TIME_LIMIT, ""
        # (6) append what the tools answered, as ids
        if not dialogue.add_results(results, setup.renderer, room=dialogue.room(limits)):
            return StopReason.TOKEN_LIMIT, ""


class Clock(Protocol):
    """How much of its time a dialogue has used."""

    waited_s: float
    """Time its calls waited for others: ours, not the dialogue's."""

    @property
    def charged_s(self) -> float:
        """Seconds since its start without those."""
        ...


def name_calls(calls: Sequence[ToolCall], rollout_id: str, turn: int) -> tuple[ToolCall, ...]:
    """The calls of a turn with ids that no other call of the run has."""
    return tuple(replace(call, id=f"{rollout_id}/{turn}-{call.id}") for call in calls)


async def run_calls(
    calls: Sequence[ToolCall],
    context: ToolContext,
    clock: Clock,
    *,
    executor: ToolExecutor,
    offered: Sequence[str],
    time_limit_s: float,
) -> tuple[list[ToolResult], bool]:
    """The results of a turn's calls, and True when the time limit passed: the calls after that were not run."""
    results: list[ToolResult] = []
    for number, call in enumerate(calls):
        if number >= MAX_CALLS_PER_TURN:
            results.append(ToolResult(call=call, failure=_TOO_MANY_CALLS))
            continue
        results.append(await executor.run(call, context, offered=offered))
        clock.waited_s += results[-1].queue_time_s
        if clock.charged_s >= time_limit_s:
            return results, True
    return results, False


@dataclass(slots=True, kw_only=True)
class _Dialogue:
    """The growing token sequence of one rollout: the only owner of tokens, log-probs, segments and image placement."""

    token_ids: list[int]
    logprobs: list[float]
    segments: list[Segment]
    images: list[ImageRef]
    num_prompt_tokens: int
    turn_start: int
    """Where the current assistant turn starts; before `len(token_ids)` only when a prefix left the turn open."""
    num_tool_turns: int = 0
    tool_results: list[ToolResult] = field(default_factory=lambda: list[ToolResult]())
    num_calls_in_thinking: int = 0
    policy_version: int = 0
    started_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """Time its calls waited for others: ours, not the dialogue's."""

    @classmethod
    def from_prompt(cls, prompt: RenderedTokens) -> _Dialogue:
        num_tokens = len(prompt.token_ids)
        return cls(
            token_ids=list(prompt.token_ids),
            logprobs=[0.0] * num_tokens,
            segments=[Segment(kind=SegmentKind.PROMPT, start=0, stop=num_tokens)],
            images=list(prompt.images),
            num_prompt_tokens=num_tokens,
            turn_start=num_tokens,
        )

    @classmethod
    def from_prefix(cls, prefix: ThinkingPrefix) -> _Dialogue:
        source, stop = prefix.source, prefix.num_tokens
        segments = [segment for segment in source.segments if segment.stop <= stop]
        given = [segment for segment in segments if not segment.kind.is_sampled]
        turn_start = given[-1].stop
        return cls(
            token_ids=list(source.token_ids[:stop]),
            logprobs=list(source.behavior_logprobs[:stop]),
            segments=[segment for segment in segments if segment.start < turn_start],
            images=list(prefix.images),
            num_prompt_tokens=given[0].stop,
            turn_start=turn_start,
            num_tool_turns=len(given) - 1,
            tool_results=list(prefix.tool_results),
        )

    @property
    def num_response_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def charged_s(self) -> float:
        return time.monotonic() - self.started_s - self.waited_s

    def add_turn(self, completion: Completion, renderer: Renderer) -> ParsedTurn:
        self.token_ids.extend(completion.token_ids)
        self.logprobs.extend(completion.logprobs)
        self.policy_version = completion.policy_version
        turn = renderer.parse_turn(self.token_ids[self.turn_start :])
        self.num_calls_in_thinking += turn.num_calls_in_thinking
        for segment in turn.segments:
            self.segments.append(
                replace(segment, start=segment.start + self.turn_start, stop=segment.stop + self.turn_start)
            )
        return turn

    def room(self, limits: RolloutLimits) -> int:
        """Tokens that may still follow."""
        room = limits.max_response_tokens - self.num_response_tokens
        if limits.max_context_tokens is None:
            return room
        return min(room, limits.max_context_tokens - len(self.token_ids))

    def add_results(self, results: Sequence[ToolResult], renderer: Renderer, *, room: int) -> bool:
        """Append the tool turn as ids; False, and no ids, when it does not fit."""
        self.tool_results.extend(results)
        try:
            rendered = renderer.render_tool_results(results)
        except DataError as error:
            raise ToolFault(f"a tool's result cannot be shown to the model: {error}") from error
        num_tokens = len(rendered.token_ids)
        if num_tokens >= room:
            return False
        start = len(self.token_ids)
        self.token_ids.extend(rendered.token_ids)
        self.logprobs.extend([0.0] * num_tokens)
        self.images.extend(rendered.images)
        self.segments.append(Segment(kind=SegmentKind.TOOL_RESULT, start=start, stop=start + num_tokens))
        self.num_tool_turns += 1
        self.turn_start = start + num_tokens
        return True

    def finish(
        self,
        *,
        rollout_id: str,
        problem: Problem,
        stop_reason: StopReason,
        final_text: str,
        reward: float,
        prefix: ThinkingPrefix | None,
    ) -> Rollout:
        return Rollout(
            id=rollout_id,
            problem_id=problem.id,
            token_ids=tuple(self.token_ids),
            behavior_logprobs=tuple(self.logprobs),
            segments=tuple(self.segments),
            images=tuple(self.images),
            stop_reason=stop_reason,
            final_text=final_text,
            reward=reward,
            tool_results=tuple(self.tool_results),
            prefix=PrefixRef(source_id=prefix.source.id, num_tokens=prefix.num_tokens) if prefix else None,
            num_calls_in_thinking=self.num_calls_in_thinking,
            policy_version=self.policy_version,
            wall_time_s=time.monotonic() - self.started_s,
        )


async def _generate(dialogue: _Dialogue, setup: RolloutSetup, *, room: int, seed: int, timeout_s: float) -> Completion:
    request = GenerationRequest(
        token_ids=tuple(dialogue.token_ids),
        images=tuple(dialogue.images),
        max_new_tokens=room,
        sampling=setup.sampling,
        seed=seed,
        time_limit_s=timeout_s,
    )
    # a turn that the model makes long ends by its own limit and is scored; an engine that does not end it is stuck
    limit_s = timeout_s + ENGINE_GRACE_S
    try:
        async with asyncio.timeout(limit_s):
            return await setup.engine.generate(request)
    except TimeoutError as error:
        raise EngineFault(f"the engine did not answer within {limit_s:.0f} s") from error


async def _score(final_text: str, problem: Problem, setup: RolloutSetup) -> float:
    if not final_text:
        return 0.0
    reward, limit_s = setup.reward_for(problem), setup.limits.reward_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return float(await run_in_daemon_thread(reward, final_text, problem))
    except TimeoutError as error:
        raise RewardError(
            f"reward {getattr(reward, '__name__', type(reward).__name__)}: did not return within {limit_s:g} s on "
            f"problem {problem.id}. Its thread cannot be stopped, so the run ends here. Give what it waits for a time "
            "limit, or raise data.reward_timeout_s."
        ) from error
