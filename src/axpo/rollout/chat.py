"""The loop of `axpo.rollout.loop` for models that are spoken to in messages: ask, run the calls, repeat until it ends.

Limits, order and words are the same; two things are not. How many tokens a tool result has is known from the service's
next prompt only, so a turn that turns out to be over the token limit has been sampled and is cut then. And an answered
turn can be kept in a journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from axpo.dialogue import TokenUsage, Transcript
from axpo.errors import EngineFault, ToolFault
from axpo.protocols import ChatModel, ChatReply, ChatRequest, ImageStore, ToolContext
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.journal import JournaledTurn, TurnJournal
from axpo.rollout.loop import RolloutLimits, name_calls, run_calls
from axpo.rollout.seeding import derive_seed
from axpo.types import Message, Problem, SamplingParams, StopReason, ToolResult, ToolSpec

BYTES_PER_TOKEN = 3
"""Where a service does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSetup:
    """All that a dialogue needs besides its problem."""

    model: ChatModel
    executor: ToolExecutor
    store: ImageStore
    limits: RolloutLimits
    sampling: SamplingParams
    journal: TurnJournal | None = None
    max_fault_retries: int = 2
    max_running: int = 64
    """Dialogues under way at once. No more than the service serves: a dialogue that waits there uses up its time."""

    def specs_for(self, problem: Problem) -> tuple[ToolSpec, ...]:
        """The tools offered on this problem."""
        tools = self.executor.tools
        return tuple(tools[name].spec for name in (tools if problem.tools is None else problem.tools))


async def run_chat(problem: Problem, *, setup: ChatSetup, rollout_id: str, seed: int) -> Transcript:
    """One whole dialogue. Raises `RolloutFault` for a fault of ours; mistakes of the model are values.

    With a journal it goes on after the last turn that was answered, tools included: stateful ones are called again, so
    that they stand where they stood. A further try after a fault does so too when it has the same seed.
    """
    clock = setup.executor.clock
    chat = _Chat(messages=list(problem.messages), clock=clock, started_s=clock())
    context = ToolContext(rollout_id=rollout_id, images=list(problem.images), store=setup.store)
    try:
        stop_reason, final_text = await _converse(chat, context, setup.specs_for(problem), setup, seed)
    finally:
        await setup.executor.close_rollout(context)
    return Transcript(
        id=rollout_id,
        problem_id=problem.id,
        prompt=problem.messages,
        turns=tuple(chat.turns),
        tool_results=tuple(chat.tool_results),
        stop_reason=stop_reason,
        final_text=final_text,
        usage=chat.usage,
        first_prompt_tokens=chat.first_prompt_tokens,
        wall_time_s=chat.elapsed_s,
    )


async def _converse(
    chat: _Chat, context: ToolContext, specs: Sequence[ToolSpec], setup: ChatSetup, seed: int
) -> tuple[StopReason, str]:
    """Turn by turn until the dialogue ends. Returns why it did, and its final text."""
    limits = setup.limits
    while True:
        # (1) ask for the turn, unless it was answered before
        room = limits.max_response_tokens - chat.num_tokens
        if limits.time_limit_s - chat.charged_s <= 0:
            return StopReason.TIME_LIMIT, ""
        if room <= 0:
            return StopReason.TOKEN_LIMIT, ""
        request = ChatRequest(
            messages=tuple(chat.messages),
            tools=tuple(specs),
            max_new_tokens=room,
            sampling=setup.sampling,
            seed=derive_seed(seed, chat.num_tool_turns),
        )
        known = _find(chat, request, setup, context.rollout_id)
        reply = known.reply if known else await _ask(chat, request, setup, context.rollout_id)
        turn = chat.add_turn(reply, context.rollout_id)
        final_text = "" if turn.tool_calls else turn.text.strip()
        # (2) does it end here?
        if reply.finish_reason == "length":
            return StopReason.TOKEN_LIMIT, final_text
        if chat.num_tokens > limits.max_response_tokens:
            return StopReason.TOKEN_LIMIT, ""
        if not turn.tool_calls:
            return StopReason.ANSWERED, final_text
        if chat.num_tool_turns >= limits.max_tool_turns:
            return StopReason.TURN_LIMIT, ""
        # (3) run the calls, one after the other: a later one may use the images of an earlier one
        if known and known.results is not None:
            results = known.results
            await _replay(chat, results, context, setup)
        else:
            results = await _run(chat, turn, request, context, specs, setup)
        chat.add_results(results)


def _find(chat: _Chat, request: ChatRequest, setup: ChatSetup, rollout_id: str) -> JournaledTurn | None:
    known = setup.journal.find(rollout_id, chat.num_tool_turns, request) if setup.journal else None
    if known is not None:
        chat.set_clock(known.charged_s)
    return known


async def _ask(chat: _Chat, request: ChatRequest, setup: ChatSetup, rollout_id: str) -> ChatReply:
    remaining_s = setup.limits.time_limit_s - chat.charged_s
    try:
        async with asyncio.timeout(remaining_s):
            reply = await setup.model.reply(request)
    except TimeoutError as error:
        raise EngineFault(f"the chat model did not answer within {remaining_s:.0f} s") from error
    if setup.journal is not None:
        await setup.journal.add_reply(rollout_id, chat.num_tool_turns, request, reply, charged_s=chat.charged_s)
    return reply


async def _run(
    chat: _Chat, turn: Message, request: ChatRequest, context: ToolContext, specs: Sequence[ToolSpec], setup: ChatSetup
) -> tuple[ToolResult, ...]:
    results, _ = await run_calls(
        turn.tool_calls,
        context,
        chat,
        executor=setup.executor,
        offered=[spec.name for spec in specs],
        time_limit_s=setup.limits.time_limit_s,
    )
    if setup.journal is not None:
        await setup.journal.add_results(
            context.rollout_id, chat.num_tool_turns, request, results, charged_s=chat.charged_s
        )
    return tuple(results)


async def _replay(chat: _Chat, results: Sequence[ToolResult], context: ToolContext, setup: ChatSetup) -> None:
    charged_s = chat.charged_s
    try:
        await setup.executor.replay(results, context)
    except ToolFault:
        if setup.journal is not None:  # its tools cannot be brought back there: the next try starts anew
            setup.journal.forget(context.rollout_id)
        raise
    chat.set_clock(charged_s)


@dataclass(slots=True, kw_only=True)
class _Chat:
    """The growing conversation of one rollout."""

    messages: list[Message]
    clock: Callable[[], float]
    started_s: float
    turns: list[Message] = field(default_factory=lambda: list[Message]())
    tool_results: list[ToolResult] = field(default_factory=lambda: list[ToolResult]())
    usage: TokenUsage = field(default_factory=TokenUsage)
    first_prompt_tokens: int | None = None
    num_context_tokens: int = 0
    """Prompt and reply of the last turn, as the service counted them."""
    num_tool_turns: int = 0
    waited_s: float = 0.0
    """Time its calls waited for others: ours, not the dialogue's."""

    @property
    def num_tokens(self) -> int:
        """Everything after the first prompt; without tool results where the service does not count prompts."""
        num_after_prompt = self.num_context_tokens - (self.first_prompt_tokens or self.num_context_tokens)
        # the sum is larger where a service leaves earlier thinking out of its prompts
        return max(num_after_prompt, self.usage.completion_tokens)

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started_s

    @property
    def charged_s(self) -> float:
        return self.elapsed_s - self.waited_s

    def set_clock(self, charged_s: float) -> None:
        """As if so much of its time had been used by now."""
        self.started_s += self.charged_s - charged_s

    def add_turn(self, reply: ChatReply, rollout_id: str) -> Message:
        calls = name_calls(reply.message.tool_calls, rollout_id, self.num_tool_turns)
        turn = replace(reply.message, tool_calls=calls)
        if reply.usage is not None and not self.turns:
            self.first_prompt_tokens = reply.usage.prompt_tokens or None
        if reply.usage is not None:
            self.num_context_tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens
        self.usage += reply.usage or TokenUsage(completion_tokens=_estimate_tokens(turn))
        self.turns.append(turn)
        self.messages.append(turn)
        return turn

    def add_results(self, results: Sequence[ToolResult]) -> None:
        self.tool_results.extend(results)
        self.messages.extend(result.message for result in results)
        self.num_tool_turns += 1


def _estimate_tokens(turn: Message) -> int:
    texts = [turn.reasoning or "", turn.text, *(call.raw for call in turn.tool_calls)]
    return -(-sum(len(text.encode(errors="replace")) for text in texts) // BYTES_PER_TOKEN)
