"""The dialogue loop over messages, against a scripted chat model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from axpo.dialogue import TokenUsage, Transcript
from axpo.errors import EngineFault, RolloutFault, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ChatReply, ChatRequest, ToolContext
from axpo.rollout.calls import read_call
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.rollout.loop import RolloutLimits
from axpo.rollout.seeding import derive_seed
from axpo.tools.fakes import EchoTool, FailingTool
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import Content, FailureKind, Message, Problem, SamplingParams, StopReason, ToolCall

ECHO = '{"name": "echo", "arguments": {"text": "seen"}}'
ZOOM = '{"name": "image_zoom_in", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": %d}}'


def say(text: str = "", *calls: str, reasoning: str | None = None) -> Message:
    return Message(
        role="assistant",
        content=(Content(text=text),) if text else (),
        reasoning=reasoning,
        tool_calls=tuple(read_call(number, raw, is_closed=True) for number, raw in enumerate(calls)),
    )


DONE = say("<answer>right</answer>")


class ScriptedModel:
    """Replies by the number of turns that the conversation holds already."""

    def __init__(self, *turns: Message, usage: TokenUsage | None = None, finish: str = "stop") -> None:
        self.turns = turns
        self.usage = usage
        self.finish: Any = finish
        self.requests: list[ChatRequest] = []

    async def reply(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        number = sum(message.role == "assistant" for message in request.messages)
        message = self.turns[min(number, len(self.turns) - 1)]
        return ChatReply(message=message, finish_reason=self.finish, usage=self.usage)

    async def close(self) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.store = ContentImageStore()

    def setup(self, model: Any, *tools: Any, **limits: Any) -> ChatSetup:
        given = {"max_tool_turns": 3, "max_response_tokens": 2000} | limits
        return ChatSetup(
            model=model,
            executor=ToolExecutor(
                tools={tool.spec.name: tool for tool in tools or (EchoTool(),)},
                default_limits=ToolLimits(backoff_s=0.0),
            ),
            store=self.store,
            limits=RolloutLimits(**given),
            sampling=SamplingParams(temperature=0.6),
        )

    def problem(self, *, num_images: int = 0, tools: tuple[str, ...] | None = None) -> Problem:
        images = (self.store.add_image(Image.new("RGB", (256, 256), (40 * i, 0, 0))) for i in range(num_images))
        content = (*(Content(image=image) for image in images), Content(text="Which letter?"))
        return Problem(id="q", messages=(Message(role="user", content=content),), answer="right", tools=tools)

    def run(self, setup: ChatSetup, problem: Problem | None = None) -> Transcript:
        return asyncio.run(run_chat(problem or self.problem(), setup=setup, rollout_id="r", seed=1))


@pytest.fixture
def world() -> World:
    return World()


def test_an_answer_without_a_call(world: World) -> None:
    model = ScriptedModel(DONE, usage=TokenUsage(prompt_tokens=7, completion_tokens=3))
    transcript = world.run(world.setup(model))
    assert (transcript.stop_reason, transcript.final_text) == (StopReason.ANSWERED, "<answer>right</answer>")
    assert (transcript.turns, transcript.tool_results) == ((DONE,), ())
    assert transcript.usage == TokenUsage(prompt_tokens=7, completion_tokens=3)
    (request,) = model.requests
    assert (request.max_new_tokens, request.sampling.temperature) == (2000, 0.6)
    assert [tool.name for tool in request.tools] == ["echo"]


def test_a_call_then_an_answer(world: World) -> None:
    model = ScriptedModel(say("Look.", ECHO, reasoning="hm"), DONE, usage=TokenUsage(completion_tokens=10))
    transcript = world.run(world.setup(model))
    assert transcript.uses_tool
    assert [message.role for message in transcript.messages] == ["user", "assistant", "tool", "assistant"]
    assert transcript.messages[:3] == model.requests[1].messages
    (call,) = transcript.turns[0].tool_calls
    assert call.id == "r/0-call-0" == transcript.messages[2].tool_call_id == transcript.tool_results[0].call.id
    assert transcript.messages[2].text == "seen"
    assert transcript.usage.completion_tokens == 20
    assert [request.max_new_tokens for request in model.requests] == [2000, 1990]
    assert [request.seed for request in model.requests] == [derive_seed(1, 0), derive_seed(1, 1)]


def test_a_crop_can_be_looked_at_again(world: World) -> None:
    model = ScriptedModel(say("", ZOOM % 0), say("", ZOOM % 1), DONE)
    transcript = world.run(world.setup(model, ImageZoomTool()), world.problem(num_images=1))
    assert [result.failure for result in transcript.tool_results] == [None, None]
    assert [len([i for m in request.messages for i in m.images]) for request in model.requests] == [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "tools", "kind"),
    [
        ("not json", (EchoTool(),), FailureKind.MALFORMED_CALL),
        ('{"name": "ech", "arguments": {}}', (EchoTool(),), FailureKind.UNKNOWN_TOOL),
        ('{"name": "echo", "arguments": {"text": 3}}', (EchoTool(),), FailureKind.BAD_ARGUMENTS),
        (
            '{"name": "failing", "arguments": {"text": ""}}',
            (FailingTool(FailureKind.EXECUTION_ERROR),),
            FailureKind.EXECUTION_ERROR,
        ),
    ],
)
def test_a_mistake_of_the_model_is_what_it_reads_next(
    world: World, call: str, tools: Sequence[Any], kind: FailureKind
) -> None:
    model = ScriptedModel(say("", call), DONE)
    transcript = world.run(world.setup(model, *tools))
    failure = transcript.tool_results[0].failure
    assert failure is not None
    assert failure.kind is kind
    assert model.requests[1].messages[-1].text == failure.message
    assert transcript.stop_reason is StopReason.ANSWERED


def test_only_the_problems_own_tools_are_offered(world: World) -> None:
    model = ScriptedModel(say("", ECHO), DONE)
    setup = world.setup(model, EchoTool(), EchoTool(name="other"))
    transcript = world.run(setup, world.problem(tools=("other",)))
    assert [tool.name for tool in model.requests[0].tools] == ["other"]
    failure = transcript.tool_results[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.UNKNOWN_TOOL


def test_one_call_more_than_the_limit_ends_without_an_answer(world: World) -> None:
    model = ScriptedModel(say("Looking.", ECHO))
    transcript = world.run(world.setup(model, max_tool_turns=2))
    assert (transcript.stop_reason, transcript.final_text) == (StopReason.TURN_LIMIT, "")
    assert (len(transcript.turns), len(transcript.tool_results)) == (3, 2)


@pytest.mark.parametrize(("turn", "final_text"), [(say("half an"), "half an"), (say("", ECHO), ""), (say(), "")])
def test_a_reply_that_was_cut_off_ends_it(world: World, turn: Message, final_text: str) -> None:
    model = ScriptedModel(turn, finish="length")
    transcript = world.run(world.setup(model))
    assert (transcript.stop_reason, transcript.final_text) == (StopReason.TOKEN_LIMIT, final_text)
    assert transcript.tool_results == ()


def test_the_token_limit_holds_over_all_turns(world: World) -> None:
    model = ScriptedModel(say("", ECHO), usage=TokenUsage(completion_tokens=60))
    transcript = world.run(world.setup(model, max_response_tokens=100))
    assert transcript.stop_reason is StopReason.TOKEN_LIMIT
    assert [request.max_new_tokens for request in model.requests] == [100, 40]


class CountingModel(ScriptedModel):
    """Counts 100 tokens for the question, 10 for a turn and 50 for a tool result."""

    async def reply(self, request: ChatRequest) -> ChatReply:
        reply = await super().reply(request)
        roles = [message.role for message in request.messages]
        prompt_tokens = 100 + 10 * roles.count("assistant") + 50 * roles.count("tool")
        return replace(reply, usage=TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=10))


def test_tool_results_count_against_the_token_limit_as_they_do_in_training(world: World) -> None:
    model = CountingModel(say("", ECHO))
    transcript = world.run(world.setup(model, max_response_tokens=130))
    # the third turn would end at 3 x 10 + 2 x 50 = 130 tokens, the fourth at 190
    assert (transcript.stop_reason, transcript.final_text) == (StopReason.TOKEN_LIMIT, "")
    assert [request.max_new_tokens for request in model.requests] == [130, 120, 60]


def test_a_turn_that_was_over_the_limit_before_it_began_has_no_answer(world: World) -> None:
    model = CountingModel(say("", ECHO), DONE)
    transcript = world.run(world.setup(model, max_response_tokens=60))
    assert (transcript.stop_reason, transcript.final_text) == (StopReason.TOKEN_LIMIT, "")
    assert len(transcript.turns) == 2


def test_tokens_are_estimated_where_the_service_does_not_count(world: World) -> None:
    model = ScriptedModel(say("x" * 40, ECHO, reasoning="y" * 50), DONE)
    world.run(world.setup(model, max_response_tokens=1000))
    num_bytes = 40 + 50 + len(ECHO)
    assert model.requests[1].max_new_tokens == 1000 - -(-num_bytes // 3)


class ClockTool(EchoTool):
    """Moves the loop's clock instead of sleeping."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self.advance = advance

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        self.advance(60.0)
        return await super().run(call, context)


def test_the_clock_ends_it_between_the_calls_of_a_turn(world: World) -> None:
    now = [0.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    model = ScriptedModel(say("", *[ECHO] * 5))
    setup = world.setup(model, ClockTool(advance), time_limit_s=100.0)
    setup.executor.clock = lambda: now[0]
    transcript = world.run(setup)
    assert transcript.stop_reason is StopReason.TIME_LIMIT
    assert len(transcript.tool_results) == 2
    assert transcript.wall_time_s == 120.0


def test_a_turn_runs_a_bounded_number_of_calls(world: World) -> None:
    transcript = world.run(world.setup(ScriptedModel(say("", *[ECHO] * 20), DONE)))
    failures = [result.failure for result in transcript.tool_results]
    assert failures[:16] == [None] * 16
    assert all(failure is not None and "at most 16 calls" in failure.message for failure in failures[16:])


def test_a_model_that_never_answers_is_our_fault(world: World) -> None:
    class Silent(ScriptedModel):
        async def reply(self, request: ChatRequest) -> ChatReply:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(EngineFault, match="did not answer"):
        world.run(world.setup(Silent(), time_limit_s=0.05))


@pytest.mark.parametrize("failure", [FailureKind.TOOL_FAULT, ValueError("bug")])
def test_a_broken_tool_is_our_fault(world: World, failure: Any) -> None:
    model = ScriptedModel(say("", ECHO.replace("echo", "failing")), DONE)
    with pytest.raises(ToolFault, match="failing"):
        world.run(world.setup(model, FailingTool(failure)))


class KeepingTool(EchoTool):
    """Stateful: counts its calls, and whose dialogues were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[str] = []

    async def close_rollout(self, context: ToolContext) -> None:
        self.closed.append(context.rollout_id)


@pytest.mark.parametrize("ends_well", [True, False])
def test_tools_are_released_however_it_ends(world: World, ends_well: bool) -> None:
    class Failing(ScriptedModel):
        async def reply(self, request: ChatRequest) -> ChatReply:
            if len(request.messages) > 1 and not ends_well:
                raise EngineFault("gone")
            return await super().reply(request)

    tool = KeepingTool()
    setup = world.setup(Failing(say("", ECHO), DONE), tool)
    if ends_well:
        world.run(setup)
    else:
        with pytest.raises(RolloutFault):
            world.run(setup)
    assert tool.closed == ["r"]
