"""The one loop that runs a dialogue: sample a turn, take it apart, run its calls, repeat until it ends.

`run_rollout` runs an ordinary rollout and a continuation of a `ThinkingPrefix` alike; the only difference is what the
dialogue starts with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from axpo.errors import DataError, EngineFault, RolloutFault, ToolError, ToolFault
from axpo.protocols import (
    ImageStore,
    InferenceEngine,
    ParsedTurn,
    RenderedTokens,
    Renderer,
    RewardFn,
    Tool,
    ToolContext,
)
from axpo.rollout.seeding import derive_seed
from axpo.threads import run_in_daemon_thread
from axpo.types import (
    Completion,
    Content,
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
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutLimits:
    """What ends a rollout whatever the policy does. An inherited prefix counts."""

    max_tool_turns: int
    """Tool-executing turns; one answer turn follows."""
    max_response_tokens: int
    """Everything after the prompt: sampled tokens and tool results."""
    time_limit_s: float = 600.0
    tool_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """All that a rollout needs besides its problem."""

    engine: InferenceEngine
    renderer: Renderer
    tools: Mapping[str, Tool]
    reward_for: Callable[[Problem], RewardFn]
    store: ImageStore
    limits: RolloutLimits
    sampling: SamplingParams
    max_fault_retries: int = 2
    max_running: int = 256
    """Dialogues under way at once; the clock of the others has not started."""

    def tools_for(self, problem: Problem) -> Mapping[str, Tool]:
        """The tools offered on this problem."""
        if problem.tools is None:
            return self.tools
        return {name: self.tools[name] for name in problem.tools}


async def run_rollout(
    problem: Problem, *, setup: RolloutSetup, rollout_id: str, seed: int, prefix: ThinkingPrefix | None = None
) -> Rollout:
    """One whole dialogue, scored. Raises `RolloutFault` for a fault of ours; mistakes of the policy are values.

    With `prefix` the dialogue starts from the prefix's token ids and images, in a fresh tool environment.
    """
    started_s = time.monotonic()
    tools = setup.tools_for(problem)
    # (1) what is given: the prompt, or a frozen prefix with its images
    if prefix is None:
        dialogue = _Dialogue.from_prompt(
            setup.renderer.render_prompt(problem.messages, [tool.spec for tool in tools.values()])
        )
    else:
        dialogue = _Dialogue.from_prefix(prefix)
    context = ToolContext(rollout_id=rollout_id, images=list(dialogue.images), store=setup.store)
    while True:
        # (2) sample the turn, or the rest of the turn that the prefix left open
        elapsed_s = time.monotonic() - started_s
        room = setup.limits.max_response_tokens - dialogue.num_response_tokens
        if room <= 0 or elapsed_s >= setup.limits.time_limit_s:
            stop_reason, turn = (StopReason.TOKEN_LIMIT if room <= 0 else StopReason.TIME_LIMIT), None
            break
        turn_seed = derive_seed(seed, dialogue.num_tool_turns)
        completion = await _generate(
            dialogue, setup, room=room, seed=turn_seed, timeout_s=setup.limits.time_limit_s - elapsed_s
        )
        # (3) take it apart by token ids
        turn = dialogue.add_turn(completion, setup.renderer)
        # (4) does it end here?
        if completion.finish_reason == "length":
            stop_reason = StopReason.TOKEN_LIMIT
            break
        if not turn.tool_calls:
            stop_reason = StopReason.ANSWERED
            break
        if dialogue.num_tool_turns >= setup.limits.max_tool_turns:
            stop_reason = StopReason.TURN_LIMIT
            break
        # (5) run the calls, one after the other: a later one may use the images of an earlier one
        results = [await _run_call(call, tools, context, setup, dialogue) for call in turn.tool_calls]
        # (6) append what the tools answered, as ids
        if not dialogue.add_results(results, setup.renderer, max_response_tokens=setup.limits.max_response_tokens):
            stop_reason = StopReason.TOKEN_LIMIT
            break
    final_text = turn.visible_text if turn is not None and not turn.tool_calls else ""
    reward = await _score(final_text, problem, setup)
    return dialogue.finish(
        rollout_id=rollout_id,
        problem=problem,
        stop_reason=stop_reason,
        final_text=final_text,
        reward=reward,
        prefix=prefix,
        wall_time_s=time.monotonic() - started_s,
    )


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
    policy_version: int = 0

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

    def add_turn(self, completion: Completion, renderer: Renderer) -> ParsedTurn:
        self.token_ids.extend(completion.token_ids)
        self.logprobs.extend(completion.logprobs)
        self.policy_version = completion.policy_version
        turn = renderer.parse_turn(self.token_ids[self.turn_start :])
        for segment in turn.segments:
            self.segments.append(
                replace(segment, start=segment.start + self.turn_start, stop=segment.stop + self.turn_start)
            )
        return turn

    def add_results(self, results: Sequence[ToolResult], renderer: Renderer, *, max_response_tokens: int) -> bool:
        """Append the tool turn as ids; False, and no ids, when it does not fit."""
        self.tool_results.extend(results)
        try:
            rendered = renderer.render_tool_results(results)
        except DataError as error:
            raise ToolFault(f"a tool's result cannot be shown to the model: {error}") from error
        num_tokens = len(rendered.token_ids)
        if self.num_response_tokens + num_tokens >= max_response_tokens:
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
        wall_time_s: float,
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
            policy_version=self.policy_version,
            wall_time_s=wall_time_s,
        )


async def _generate(dialogue: _Dialogue, setup: RolloutSetup, *, room: int, seed: int, timeout_s: float) -> Completion:
    request = GenerationRequest(
        token_ids=tuple(dialogue.token_ids),
        images=tuple(dialogue.images),
        max_new_tokens=room,
        sampling=setup.sampling,
        seed=seed,
    )
    try:
        async with asyncio.timeout(timeout_s):
            return await setup.engine.generate(request)
    except TimeoutError as error:
        raise EngineFault(f"the engine did not answer within {timeout_s:.0f} s") from error


async def _run_call(
    call: ToolCall, tools: Mapping[str, Tool], context: ToolContext, setup: RolloutSetup, dialogue: _Dialogue
) -> ToolResult:
    call = replace(call, id=f"{context.rollout_id}/{dialogue.num_tool_turns}-{call.id}")
    started_s = time.monotonic()
    if call.parse_error is not None:
        return _failed(call, FailureKind.MALFORMED_CALL, call.parse_error, started_s)
    if call.name not in tools:
        message = f"There is no tool named {call.name!r}. Tools: {', '.join(tools) or 'none'}."
        return _failed(call, FailureKind.UNKNOWN_TOOL, message, started_s)
    deadline = asyncio.timeout(setup.limits.tool_timeout_s)
    try:
        async with deadline:
            content = await tools[call.name].run(call, context)
        result = ToolResult(call=call, content=_checked_content(content), wall_time_s=time.monotonic() - started_s)
    except ToolError as error:
        kind = FailureKind(error.kind) if error.kind in set(FailureKind) else FailureKind.TOOL_FAULT
        if not kind.is_model_fault:
            raise ToolFault(f"tool {call.name}: {error}") from error
        return _failed(call, kind, str(error), started_s)
    except RolloutFault:
        raise
    except Exception as error:
        if deadline.expired():  # a TimeoutError of the tool's own, a lost connection say, is not the model's doing
            message = f"{call.name} did not finish within {setup.limits.tool_timeout_s:g} s."
            return _failed(call, FailureKind.TIMEOUT, message, started_s)
        raise ToolFault(f"tool {call.name} raised {type(error).__name__}: {error}") from error
    context.images.extend(_images(result))
    return result


def _checked_content(content: Any) -> tuple[Content, ...]:
    blocks = cast("tuple[Any, ...]", content) if isinstance(content, tuple) else ()
    if not blocks or not all(isinstance(block, Content) for block in blocks):
        raise TypeError(f"expected a tuple of at least one axpo.types.Content from a tool, got {content!r:.80}")
    return blocks


def _failed(call: ToolCall, kind: FailureKind, message: str, started_s: float) -> ToolResult:
    failure = ToolFailure(kind=kind, message=message)
    return ToolResult(call=call, failure=failure, wall_time_s=time.monotonic() - started_s)


async def _score(final_text: str, problem: Problem, setup: RolloutSetup) -> float:
    if not final_text:
        return 0.0
    reward = setup.reward_for(problem)
    try:
        async with asyncio.timeout(setup.limits.time_limit_s):
            return float(await run_in_daemon_thread(reward, final_text, problem))
    except TimeoutError as error:
        raise RolloutFault(f"the reward of problem {problem.id} took over {setup.limits.time_limit_s:g} s") from error


def _images(result: ToolResult) -> tuple[ImageRef, ...]:
    return tuple(block.image for block in result.content if block.image is not None)
