"""The loop against a scripted engine and the real renderer of a small checkpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.engines.scripted import ScriptedEngine
from axpo.errors import EngineFault, RewardError, RolloutFault, ToolError, ToolFault
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.protocols import ToolContext
from axpo.rewards import checked
from axpo.rollout.collect import collect_step, sample_groups
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.rollout.loop import RolloutLimits, RolloutSetup, run_rollout
from axpo.rollout.rendering import QwenRenderer
from axpo.rollout.seeding import derive_seed
from axpo.tools.fakes import EchoTool, FailingTool
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import (
    Completion,
    Content,
    FailureKind,
    GenerationRequest,
    Message,
    Problem,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    SamplingParams,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
    ToolCall,
)

K = SegmentKind
CALL = 'Look.\n</think>\n\n<tool_call>\n{"name": "echo", "arguments": {"text": "seen"}}\n</tool_call><|im_end|>'
ANSWER = "Done.\n</think>\n\n<answer>right</answer><|im_end|>"
ZOOM = CALL.replace("echo", "image_zoom_in").replace('"text": "seen"', '"bbox_2d": [0, 0, 500, 500], "label": "x"')
WRONG = "Done.\n</think>\n\n<answer>wrong</answer><|im_end|>"


class World:
    """A renderer, a store, and a way to script what the policy samples turn by turn."""

    def __init__(self, checkpoint: Path) -> None:
        self.renderer = QwenRenderer.from_pretrained(
            checkpoint, preprocessor=ImagePreprocessor.from_pretrained(checkpoint)
        )
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.store = ContentImageStore()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def engine(self, *turns: str, delay_s: float = 0.0) -> ScriptedEngine:
        """Replies by the number of tool results that a request already holds; a branch gets the call's body only."""
        opening, closing = self.encode("<tool_call></tool_response>")

        def reply(request: GenerationRequest) -> str:
            turn = turns[min(request.token_ids.count(closing), len(turns) - 1)]
            return turn.split("<tool_call>")[1] if request.token_ids[-1] == opening else turn

        return ScriptedEngine(reply, encode=self.encode, delay_s=delay_s)

    def setup(self, engine: Any, *tools: Any, **limits: Any) -> RolloutSetup:
        given = {"max_tool_turns": 3, "max_response_tokens": 2000} | limits
        tool_limits = ToolLimits(timeout_s=given.pop("tool_timeout_s", 30.0), backoff_s=0.0)
        return RolloutSetup(
            engine=engine,
            renderer=self.renderer,
            executor=ToolExecutor(
                tools={tool.spec.name: tool for tool in tools or (EchoTool(),)}, default_limits=tool_limits
            ),
            reward_for=lambda problem: lambda text, _: float(f"<answer>{problem.answer}</answer>" in text),
            store=self.store,
            limits=RolloutLimits(**given),
            sampling=SamplingParams(),
        )

    def problem(self, *, id: str = "q", num_images: int = 0) -> Problem:
        images = tuple(
            Content(image=self.store.add_image(Image.new("RGB", (256, 256), (40 * i, 0, 0)))) for i in range(num_images)
        )
        message = Message(role="user", content=(*images, Content(text="Which letter?")))
        return Problem(id=id, messages=(message,), answer="right")

    def run(self, setup: RolloutSetup, problem: Problem | None = None, **arguments: Any) -> Rollout:
        given = {"rollout_id": "r", "seed": 1} | arguments
        return asyncio.run(run_rollout(problem or self.problem(), setup=setup, **given))


@pytest.fixture(scope="session")
def world(tiny_checkpoint: Path) -> World:
    return World(tiny_checkpoint)


def kinds(rollout: Rollout) -> list[SegmentKind]:
    return [segment.kind for segment in rollout.segments]


def test_an_answer_without_a_call(world: World) -> None:
    rollout = world.run(world.setup(world.engine(ANSWER)))
    assert kinds(rollout) == [K.PROMPT, K.THINKING, K.ANSWER]
    assert (rollout.stop_reason, rollout.reward, rollout.uses_tool) == (StopReason.ANSWERED, 1.0, False)
    assert rollout.final_text == "<answer>right</answer>"


def test_a_call_then_an_answer_keeps_every_sampled_id(world: World) -> None:
    engine = world.engine(CALL, ANSWER)
    rollout = world.run(world.setup(engine))
    call = [K.THINKING, K.TOOL_OPEN, K.TOOL_CALL, K.TOOL_CLOSE]
    assert [kind for kind in kinds(rollout) if kind is not K.TEXT] == [
        K.PROMPT,
        *call,
        K.TOOL_RESULT,
        K.THINKING,
        K.ANSWER,
    ]
    sampled = [
        token
        for segment in rollout.segments
        if segment.kind.is_sampled
        for token in rollout.token_ids[segment.start : segment.stop]
    ]
    assert sampled == world.encode(CALL) + world.encode(ANSWER)
    assert engine.requests[1].token_ids == rollout.token_ids[: len(engine.requests[1].token_ids)]
    log_probs = rollout.behavior_logprobs
    for segment in rollout.segments:
        expected = -0.5 if segment.kind.is_sampled else 0.0
        assert set(log_probs[segment.start : segment.stop]) == {expected}
    assert rollout.tool_results[0].content[0].text == "seen"


def test_a_zoom_appends_its_crop_where_the_next_turn_sees_it(world: World) -> None:
    again = ZOOM.replace('"label": "x"', '"label": "x", "img_idx": 1')
    engine = world.engine(ZOOM, again, ANSWER)
    setup = world.setup(engine, ImageZoomTool(min_pixels=96 * 96, max_pixels=96 * 96))
    rollout = world.run(setup, world.problem(num_images=1))
    assert [request.images for request in engine.requests] == [rollout.images[:n] for n in (1, 2, 3)]
    assert [(image.width_px, image.height_px) for image in rollout.images[1:]] == [(96, 96), (96, 96)]
    pad = world.encode("<|image_pad|>")[0]
    preprocessor = ImagePreprocessor.from_pretrained(world.tokenizer.name_or_path)
    assert rollout.token_ids.count(pad) == sum(preprocessor.num_tokens(image) for image in rollout.images)


@pytest.mark.parametrize(
    ("call", "tools", "kind", "says"),
    [
        ("<tool_call>\nnot json\n</tool_call>", (EchoTool(),), FailureKind.MALFORMED_CALL, ""),
        (
            '<tool_call>\n{"name": "ech", "arguments": {}}\n</tool_call>',
            (EchoTool(),),
            FailureKind.UNKNOWN_TOOL,
            "echo",
        ),
        (
            '<tool_call>\n{"name": "echo", "arguments": {"text": 3}}\n</tool_call>',
            (EchoTool(),),
            FailureKind.BAD_ARGUMENTS,
            "text",
        ),
        (
            '<tool_call>\n{"name": "failing", "arguments": {"text": ""}}\n</tool_call>',
            (FailingTool(FailureKind.EXECUTION_ERROR),),
            FailureKind.EXECUTION_ERROR,
            "fails",
        ),
        ('<tool_call>\n{"name": "echo"', (EchoTool(),), FailureKind.MALFORMED_CALL, ""),
    ],
    ids=["malformed", "unknown", "arguments", "raises", "unclosed"],
)
def test_a_mistake_of_the_policy_is_an_observation(
    world: World, call: str, tools: Sequence[Any], kind: FailureKind, says: str
) -> None:
    engine = world.engine(f"</think>\n\n{call}<|im_end|>", ANSWER)
    rollout = world.run(world.setup(engine, *tools))
    failure = rollout.tool_results[0].failure
    assert failure is not None
    assert failure.kind is kind
    assert says in failure.message
    result = next(segment for segment in rollout.segments if segment.kind is K.TOOL_RESULT)
    assert failure.message in world.renderer.decode(rollout.token_ids[result.start : result.stop])
    assert (rollout.uses_tool, rollout.reward) == (True, 1.0)


def test_a_tag_inside_thinking_is_no_call(world: World) -> None:
    rollout = world.run(world.setup(world.engine(f"maybe <tool_call> here\n</think>\n\n{ANSWER.split('</think>')[1]}")))
    assert not rollout.uses_tool
    assert (rollout.reward, rollout.num_calls_in_thinking) == (1.0, 1)


def test_calls_inside_thinking_are_counted_over_all_turns(world: World) -> None:
    unclosed = CALL.replace("\n</think>", "")
    rollout = world.run(world.setup(world.engine(f"<tool_call>{CALL}", unclosed)))
    assert (len(rollout.tool_results), rollout.stop_reason, rollout.reward) == (1, StopReason.ANSWERED, 0.0)
    assert (rollout.uses_tool, rollout.num_calls_in_thinking) == (True, 2)
    rollout = world.run(world.setup(world.engine(unclosed)))
    assert (rollout.uses_tool, rollout.num_calls_in_thinking, rollout.final_text) == (False, 1, "")


def test_one_call_more_than_the_limit_ends_without_an_answer(world: World) -> None:
    engine = world.engine(CALL, CALL, CALL)
    rollout = world.run(world.setup(engine, max_tool_turns=2))
    assert (rollout.stop_reason, rollout.reward, rollout.final_text) == (StopReason.TURN_LIMIT, 0.0, "")
    assert (len(engine.requests), len(rollout.tool_results)) == (3, 2)


def test_no_tool_turns_means_the_first_call_ends_it(world: World) -> None:
    rollout = world.run(world.setup(world.engine(CALL), max_tool_turns=0))
    assert (rollout.stop_reason, rollout.tool_results) == (StopReason.TURN_LIMIT, ())


def test_the_token_limit_counts_sampled_tokens_and_results(world: World) -> None:
    num_call = len(world.encode(CALL))
    cut = world.run(world.setup(world.engine(CALL), max_response_tokens=num_call - 3))
    assert cut.stop_reason is StopReason.TOKEN_LIMIT
    assert cut.num_sampled_tokens == num_call - 3
    no_room = world.run(world.setup(world.engine(CALL, ANSWER), max_response_tokens=num_call + 2))
    assert no_room.stop_reason is StopReason.TOKEN_LIMIT
    assert no_room.num_sampled_tokens == num_call
    assert kinds(no_room)[-1] is not K.TOOL_RESULT
    assert len(no_room.tool_results) == 1


def test_an_answer_that_is_complete_before_the_token_limit_is_scored(world: World) -> None:
    turn = ANSWER.replace("<|im_end|>", " because I looked twice<|im_end|>")
    rollout = world.run(world.setup(world.engine(turn), max_response_tokens=len(world.encode(turn)) - 2))
    assert (rollout.stop_reason, rollout.reward) == (StopReason.TOKEN_LIMIT, 1.0)
    assert rollout.final_text.startswith("<answer>right</answer> because")


def test_an_answer_next_to_a_call_is_not_scored(world: World) -> None:
    turn = CALL.replace("<tool_call>", "<answer>right</answer>\n<tool_call>")
    rollout = world.run(world.setup(world.engine(turn), max_response_tokens=len(world.encode(turn)) - 4))
    assert (rollout.stop_reason, rollout.final_text, rollout.reward) == (StopReason.TOKEN_LIMIT, "", 0.0)
    assert rollout.uses_tool


def test_a_result_must_leave_a_token_for_the_next_turn(world: World) -> None:
    whole = world.run(world.setup(world.engine(CALL, ANSWER)))
    result = next(segment for segment in whole.segments if segment.kind is K.TOOL_RESULT)
    num_tokens = result.stop - whole.segments[0].stop
    full = world.run(world.setup(world.engine(CALL, ANSWER), max_response_tokens=num_tokens))
    assert (full.stop_reason, kinds(full)[-1]) == (StopReason.TOKEN_LIMIT, K.TEXT)
    enough = world.run(world.setup(world.engine(CALL, ANSWER), max_response_tokens=num_tokens + 1))
    assert (enough.stop_reason, kinds(enough)[-1]) == (StopReason.TOKEN_LIMIT, K.THINKING)


def test_the_context_of_the_model_is_a_limit_too(world: World) -> None:
    num_prompt = len(world.run(world.setup(world.engine(ANSWER))).token_ids) - len(world.encode(ANSWER))
    rollout = world.run(world.setup(world.engine(ANSWER), max_context_tokens=num_prompt + 3))
    assert (rollout.stop_reason, rollout.num_sampled_tokens) == (StopReason.TOKEN_LIMIT, 3)


def test_a_rollout_says_which_weights_sampled_it(world: World) -> None:
    engine = world.engine(ANSWER)
    engine.update_weights([], 4)
    assert world.run(world.setup(engine)).policy_version == 4


def test_what_a_tool_waits_for_others_is_not_charged(world: World) -> None:
    class Waiting(EchoTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            await asyncio.sleep(1.2)
            context.waited_s += 100.0  # more than it took, so that a busy machine does not fail the test
            return await EchoTool.run(self, call, context)

    rollout = world.run(world.setup(world.engine(CALL, ANSWER), Waiting(), time_limit_s=1.0))
    assert (rollout.stop_reason, rollout.reward) == (StopReason.ANSWERED, 1.0)


def test_the_clock_ends_a_rollout_between_turns(world: World) -> None:
    class SlowTool(EchoTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            await asyncio.sleep(0.3)
            return await EchoTool.run(self, call, context)

    rollout = world.run(world.setup(world.engine(CALL, ANSWER), SlowTool(), time_limit_s=0.2))
    assert (rollout.stop_reason, rollout.reward) == (StopReason.TIME_LIMIT, 0.0)


def test_a_hung_tool_is_a_timeout_the_policy_reads(world: World) -> None:
    class HungTool(EchoTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            await asyncio.sleep(3600)
            return ()

    rollout = world.run(world.setup(world.engine(CALL, ANSWER), HungTool(), tool_timeout_s=0.05))
    failure = rollout.tool_results[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.TIMEOUT
    assert rollout.reward == 1.0


def test_a_turn_runs_a_bounded_number_of_calls(world: World) -> None:
    calls = "".join(CALL.split("</think>")[1].removesuffix("<|im_end|>") for _ in range(20))
    turn = f"Look.\n</think>{calls}<|im_end|>"
    rollout = world.run(world.setup(world.engine(turn, ANSWER), max_response_tokens=8000))
    failures = [result.failure for result in rollout.tool_results]
    assert len(failures) == 20
    assert failures[:16] == [None] * 16
    assert all(failure is not None and "at most 16 calls" in failure.message for failure in failures[16:])
    assert rollout.reward == 1.0


def test_the_clock_is_read_between_the_calls_of_a_turn(world: World) -> None:
    class SlowTool(EchoTool):
        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            await asyncio.sleep(0.15)
            return await EchoTool.run(self, call, context)

    calls = "".join(CALL.split("</think>")[1].removesuffix("<|im_end|>") for _ in range(10))
    turn = f"Look.\n</think>{calls}<|im_end|>"
    rollout = world.run(world.setup(world.engine(turn, ANSWER), SlowTool(), time_limit_s=0.2))
    assert rollout.stop_reason is StopReason.TIME_LIMIT
    assert 0 < len(rollout.tool_results) < 10


def test_a_turn_that_outlasts_the_clock_is_cut_and_scored(world: World) -> None:
    """A policy that escapes a bad grade by slow turns would learn to write them."""
    rollout = world.run(world.setup(world.engine(ANSWER, delay_s=0.1), time_limit_s=0.05))
    assert rollout.stop_reason is StopReason.TIME_LIMIT
    assert rollout.reward == 0.0
    num_sampled = len(rollout.token_ids) - rollout.segments[0].stop
    assert 0 < num_sampled < len(world.encode(ANSWER))


def test_an_engine_that_never_answers_is_our_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(ScriptedEngine):
        async def generate(self, request: GenerationRequest) -> Completion:
            return await asyncio.Event().wait()  # type: ignore[return-value]  # never returns

    monkeypatch.setattr("axpo.rollout.loop.ENGINE_GRACE_S", 0.05)
    with pytest.raises(EngineFault, match="did not answer"):
        world.run(world.setup(Stuck({}), time_limit_s=0.05))


def test_a_reward_that_hangs_ends_the_run_and_is_named(world: World) -> None:
    done = threading.Event()

    def look_up(final_text: str, problem: Problem) -> float:
        done.wait(60)
        return 1.0

    setup = world.setup(world.engine(ANSWER), reward_timeout_s=0.05)
    setup = dataclasses.replace(setup, reward_for=lambda problem: checked(look_up, "my_rewards:look_up"))
    try:
        with pytest.raises(
            RewardError, match=r"^reward my_rewards:look_up: did not return within 0\.05 s on problem q"
        ):
            asyncio.run(sample_groups([world.problem()], setup=setup, group_size=2, seed=0, tag="t"))
    finally:
        done.set()


@pytest.mark.parametrize("failure", [FailureKind.TOOL_FAULT, ValueError("bug")], ids=["fault", "bug"])
def test_a_broken_tool_is_our_fault(world: World, failure: FailureKind | Exception) -> None:
    call = CALL.replace('"echo"', '"failing"')
    with pytest.raises(ToolFault, match="failing"):
        world.run(world.setup(world.engine(call, ANSWER), FailingTool(failure)))


class OddTool(EchoTool):
    """Does what `act` does instead of answering."""

    def __init__(self, act: Callable[[ToolContext], Any]) -> None:
        super().__init__()
        self.act = act

    async def run(self, call: ToolCall, context: ToolContext) -> Any:
        return self.act(context)


def throw(error: Exception) -> Any:
    raise error


def stripe(context: ToolContext) -> tuple[Content, ...]:
    return (Content(image=context.store.add_image(Image.new("RGB", (2, 500)))),)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda _: (), "at least one"),
        (lambda _: "text", "at least one"),
        (lambda _: ("text",), "at least one"),
        (lambda _: throw(TimeoutError("lost connection")), "lost connection"),
        (lambda _: throw(ToolError("no_such_kind", "odd")), "odd"),
    ],
    ids=["nothing", "no tuple", "no content", "its own timeout", "an unknown kind"],
)
def test_what_a_tool_may_not_do_is_our_fault(world: World, act: Callable[[ToolContext], Any], reason: str) -> None:
    with pytest.raises(ToolFault, match=reason):
        world.run(world.setup(world.engine(CALL, ANSWER), OddTool(act)))


def test_a_picture_that_no_model_takes_is_left_out(world: World) -> None:
    rollout = world.run(world.setup(world.engine(CALL, ANSWER), OddTool(stripe)))
    [result] = rollout.tool_results
    assert [block.text for block in result.content] == [
        "[1 pictures left out: too many, or longer than 200 times their width]"
    ]
    assert (result.is_cut, rollout.reward) == (True, 1.0)


# -- branches ---------------------------------------------------------------------------------------------------------


def prefix_of(source: Rollout, *, nth: int = 0) -> ThinkingPrefix:
    opens = [segment for segment in source.segments if segment.kind is K.TOOL_OPEN]
    return ThinkingPrefix(source=source, num_tokens=opens[nth].stop, confidence=0.5)


def test_a_branch_inherits_ids_log_probs_and_images(world: World) -> None:
    problem = world.problem(num_images=2)
    source = world.run(world.setup(world.engine(CALL, WRONG)), problem)
    prefix = prefix_of(source)
    body = CALL.split("<tool_call>")[1].replace("seen", "other")
    engine = world.engine(CALL.replace("seen", "other"), ANSWER)
    branch = world.run(world.setup(engine), problem, rollout_id="r+0", prefix=prefix)
    n = prefix.num_tokens
    assert engine.requests[0].token_ids == branch.token_ids[:n] == source.token_ids[:n]
    assert engine.requests[0].images == source.images[:2]
    assert branch.behavior_logprobs[:n] == source.behavior_logprobs[:n]
    assert [s.kind for s in branch.segments] == [s.kind for s in source.segments]
    assert branch.tool_results[0].content[0].text == "other"
    assert (branch.reward, source.reward) == (1.0, 0.0)
    assert branch.num_sampled_tokens == len(world.encode(body)) + len(world.encode(ANSWER))
    assert branch.prefix is not None
    assert branch.prefix.source_id == source.id


def test_a_branch_at_a_later_call_keeps_earlier_results_and_turns(world: World) -> None:
    zooms = (ImageZoomTool(min_pixels=96 * 96, max_pixels=96 * 96),)
    problem = world.problem(num_images=1)
    source = world.run(world.setup(world.engine(ZOOM, ZOOM, WRONG), *zooms), problem)
    engine = world.engine("", ZOOM.replace('"x"', '"x", "img_idx": 1'), ANSWER)
    setup = world.setup(engine, *zooms, max_tool_turns=2)
    branch = world.run(setup, problem, prefix=prefix_of(source, nth=1))
    assert engine.requests[0].images == source.images[:2]
    assert branch.stop_reason is StopReason.ANSWERED  # the inherited tool turn counts: 1 + 1 = 2
    assert branch.tool_results[0] == source.tool_results[0]
    assert len(branch.tool_results) == 2
    assert branch.images[:2] == source.images[:2]
    assert [prefix_of(source, nth=n).images for n in (0, 1)] == [source.images[:1], source.images[:2]]
    assert [len(prefix_of(source, nth=n).tool_results) for n in (0, 1)] == [0, 1]


def test_a_branch_pays_for_its_prefix(world: World) -> None:
    source = world.run(world.setup(world.engine(CALL, WRONG)))
    num_inherited = prefix_of(source).num_tokens - source.segments[0].stop
    body = world.encode(CALL.split("<tool_call>")[1])
    limit = num_inherited + len(body) - 1
    engine = world.engine(CALL)
    branch = world.run(world.setup(engine, max_response_tokens=limit), prefix=prefix_of(source))
    assert branch.stop_reason is StopReason.TOKEN_LIMIT
    assert branch.num_sampled_tokens == len(body) - 1


def test_a_branch_at_the_last_call_has_spent_the_turns_of_its_prefix(world: World) -> None:
    source = world.run(world.setup(world.engine(CALL, CALL, WRONG)))
    engine = world.engine("", CALL.replace("seen", "other"), ANSWER)
    branch = world.run(world.setup(engine, max_tool_turns=1), prefix=prefix_of(source, nth=1))
    assert (branch.stop_reason, branch.tool_results) == (StopReason.TURN_LIMIT, source.tool_results[:1])


def test_a_branch_at_the_last_call_has_spent_the_tokens_of_its_prefix(world: World) -> None:
    source = world.run(world.setup(world.engine(CALL, CALL, WRONG)))
    prefix = prefix_of(source, nth=1)
    body = world.encode(CALL.split("<tool_call>")[1])
    num_inherited = prefix.num_tokens - source.segments[0].stop  # the first call's result among them
    setup = world.setup(world.engine("", CALL), max_response_tokens=num_inherited + len(body) - 1)
    branch = world.run(setup, prefix=prefix)
    assert (branch.stop_reason, branch.num_sampled_tokens) == (StopReason.TOKEN_LIMIT, len(body) - 1)


def test_a_branch_at_the_last_call_shows_its_tools_the_images_of_its_prefix(world: World) -> None:
    seen: list[tuple[Any, ...]] = []

    def watch(context: ToolContext) -> tuple[Content, ...]:
        seen.append(tuple(context.images))
        return (Content(text="watched"),)

    tools = (ImageZoomTool(min_pixels=96 * 96, max_pixels=96 * 96), OddTool(watch))
    problem = world.problem(num_images=2)
    source = world.run(world.setup(world.engine(ZOOM, ZOOM, WRONG), *tools), problem)
    world.run(world.setup(world.engine("", CALL, ANSWER), *tools), problem, prefix=prefix_of(source, nth=1))
    assert len(source.images) == 4
    assert seen == [source.images[:3]]


@pytest.mark.parametrize("nth", [0, 1])
def test_a_branch_may_close_its_call_at_once(world: World, nth: int) -> None:
    source = world.run(world.setup(world.engine(CALL, CALL, WRONG)))
    closed = CALL.split("<tool_call>")[0] + "<tool_call></tool_call><|im_end|>"
    engine = world.engine(*[""] * nth, closed, ANSWER)
    prefix = prefix_of(source, nth=nth)
    branch = world.run(world.setup(engine), prefix=prefix)
    failures = [result.failure.kind if result.failure else None for result in branch.tool_results]
    assert failures == [*[None] * nth, FailureKind.MALFORMED_CALL]
    following = next(segment for segment in branch.segments if segment.start == prefix.num_tokens)
    assert following.kind is K.TOOL_CLOSE
    assert (branch.stop_reason, branch.reward) == (StopReason.ANSWERED, 1.0)


# -- many rollouts ----------------------------------------------------------------------------------------------------


def no_plan(groups: tuple[RolloutGroup, ...]) -> ResamplePlan:
    return ResamplePlan(prefixes=(), num_continuations=4, budget=0, num_triggered=0, num_candidates=0)


def plan_all(groups: tuple[RolloutGroup, ...]) -> ResamplePlan:
    prefixes = tuple(prefix_of(group.tool_using[0]) for group in groups)
    budget = 4 * len(prefixes)
    return ResamplePlan(
        prefixes=prefixes, num_continuations=4, budget=budget, num_triggered=len(groups), num_candidates=len(groups)
    )


def test_a_step_has_siblings_then_the_plans_continuations(world: World) -> None:
    engine = world.engine(CALL, WRONG)
    problems = [world.problem(id="a"), world.problem(id="b")]
    step = asyncio.run(collect_step(problems, setup=world.setup(engine), group_size=3, seed=0, step=7, plan=plan_all))
    assert [group.problem_id for group in step.groups] == ["a", "b"]
    assert [len(group.rollouts) for group in step.groups] == [3, 3]
    assert [len(group.rollouts) for group in step.continuations] == [4, 4]
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == len(seeds)
    ids = [r.id for group in (*step.groups, *step.continuations) for r in group.rollouts]
    assert len(set(ids)) == 14


@pytest.mark.parametrize(("plan", "expected"), [(plan_all, 14), (no_plan, 6)])
def test_a_step_tells_how_many_rollouts_it_has_before_it_samples_them(world: World, plan: Any, expected: int) -> None:
    events: list[str | int] = []
    collecting = collect_step(
        [world.problem(id="a"), world.problem(id="b")],
        setup=world.setup(world.engine(CALL, WRONG)),
        group_size=3,
        seed=0,
        step=7,
        plan=plan,
        on_rollout=lambda rollout: events.append("rollout" if rollout.prefix is None else "continuation"),
        on_total=events.append,
    )
    asyncio.run(collecting)
    assert events == [6, *["rollout"] * 6, expected, *["continuation"] * (expected - 6)]


def test_the_same_step_sends_the_same_requests(world: World) -> None:
    def requests(step: int) -> set[tuple[tuple[int, ...], int]]:
        engine = world.engine(CALL, WRONG)
        setup = world.setup(engine)
        asyncio.run(collect_step([world.problem()], setup=setup, group_size=4, seed=0, step=step, plan=plan_all))
        return {(request.token_ids, request.seed) for request in engine.requests}

    assert requests(3) == requests(3)
    assert not requests(3) & requests(4)


class Flaky:
    """An engine in front of another that fails by plan."""

    def __init__(self, inner: ScriptedEngine, fails: Callable[[int], bool]) -> None:
        self.inner, self.fails, self.count, self.policy_version = inner, fails, 0, 0

    async def generate(self, request: GenerationRequest) -> Any:
        self.count += 1
        if self.fails(self.count):
            raise EngineFault("lost")
        return await self.inner.generate(request)


def test_every_fault_is_logged_with_its_rollout(world: World, caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky(world.engine(ANSWER), lambda n: n <= 2)
    asyncio.run(sample_groups([world.problem()], setup=world.setup(flaky), group_size=1, seed=0, tag="t"))
    assert [record.getMessage() for record in caplog.records] == [
        "rollout t/q/0: try 1 of 3: lost; tried again",
        "rollout t/q/0: try 2 of 3: lost; tried again",
    ]


def test_a_fault_is_retried_and_then_dropped_and_counted(world: World) -> None:
    once = Flaky(world.engine(ANSWER), lambda n: n == 1)
    sampled = asyncio.run(sample_groups([world.problem()], setup=world.setup(once), group_size=4, seed=0, tag="t"))
    assert (len(sampled.groups[0].rollouts), sampled.num_dropped) == (4, 0)

    # one of four siblings is lost at every try: its id decides
    def reply(request: GenerationRequest) -> str:
        if request.seed in lost_seeds:
            raise EngineFault("lost")
        return ANSWER

    lost_seeds = {derive_seed(derive_seed(0, "t/q/2", attempt), 0) for attempt in range(3)}
    setup = world.setup(ScriptedEngine(reply, encode=world.encode))
    sampled = asyncio.run(sample_groups([world.problem()], setup=setup, group_size=4, seed=0, tag="t"))
    assert [rollout.id for rollout in sampled.groups[0].rollouts] == ["t/q/0", "t/q/1", "t/q/3"]
    assert sampled.num_dropped == 1


def test_names_that_spell_the_same_have_seeds_of_their_own() -> None:
    assert derive_seed("step-1", "23") != derive_seed("step-12", "3")


def test_every_try_has_a_seed_of_its_own(world: World) -> None:
    opening = world.encode("<tool_call>")[0]
    tried: list[tuple[int, ...]] = []

    def reply(request: GenerationRequest) -> str:
        tried.append(request.token_ids)
        if tried.count(request.token_ids) <= 1:
            raise EngineFault("lost")
        return CALL.split("<tool_call>")[1] if request.token_ids[-1] == opening else CALL

    engine = ScriptedEngine(reply, encode=world.encode)
    setup = world.setup(engine, max_tool_turns=0)
    step = collect_step([world.problem()], setup=setup, group_size=1, seed=0, step=7, plan=plan_all)
    assert asyncio.run(step).num_dropped == 0
    seeds = [request.seed for request in engine.requests]
    assert len(seeds) == 2 + 5, "one fault of the sibling and one of the four continuations"
    assert len(set(seeds)) == len(seeds)


def test_lost_siblings_and_lost_continuations_are_counted_together(world: World) -> None:
    opening = world.encode("<tool_call>")[0]

    def reply(request: GenerationRequest) -> str:
        if request.token_ids[-1] == opening or request.seed in lost_seeds:
            raise EngineFault("lost")
        return CALL

    lost_seeds = {derive_seed(derive_seed(0, "step-7/q/2", attempt), 0) for attempt in range(3)}
    setup = world.setup(ScriptedEngine(reply, encode=world.encode), max_tool_turns=0)
    step = asyncio.run(collect_step([world.problem()], setup=setup, group_size=3, seed=0, step=7, plan=plan_all))
    assert [len(group.rollouts) for group in (*step.groups, *step.continuations)] == [2, 0]
    assert step.num_dropped == 1 + 4


def test_a_step_that_loses_everything_says_why(world: World) -> None:
    dead = world.setup(Flaky(world.engine(ANSWER), lambda n: True))
    with pytest.raises(RolloutFault, match=r"all 4 rollouts .* lost"):
        asyncio.run(sample_groups([world.problem()], setup=dead, group_size=4, seed=0, tag="t"))


def test_a_bug_in_a_reward_stops_the_step_at_once(world: World) -> None:
    def broken(text: str, problem: Problem) -> float:
        raise KeyError("user's bug")

    setup = dataclasses.replace(world.setup(world.engine(ANSWER)), reward_for=lambda problem: broken)
    with pytest.raises(KeyError, match="user's bug"):
        asyncio.run(sample_groups([world.problem()], setup=setup, group_size=4, seed=0, tag="t"))


def test_one_slow_tool_holds_nobody_up(world: World) -> None:
    finished: list[str] = []
    others_are_done = asyncio.Event()

    class SlowOnce(EchoTool):
        """Its first call returns when every other rollout has ended, and only then."""

        is_first = True

        async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
            is_slow, self.is_first = self.is_first, False
            if is_slow:
                await others_are_done.wait()
            return await super().run(call, context)

    def on_rollout(rollout: Rollout) -> None:
        finished.append(rollout.id)
        if len(finished) == 31:
            others_are_done.set()

    setup = world.setup(world.engine(CALL, ANSWER), SlowOnce(), tool_timeout_s=60.0)
    sampled = asyncio.run(
        sample_groups([world.problem()], setup=setup, group_size=32, seed=0, tag="t", on_rollout=on_rollout)
    )
    assert len(finished) == 32
    assert all(rollout.tool_results[0].failure is None for rollout in sampled.groups[0].rollouts)


def test_waiting_for_others_costs_no_time_of_ones_own(world: World) -> None:
    class Narrow:
        """Serves two at once, 50 ms each."""

        policy_version = 0

        def __init__(self, inner: ScriptedEngine) -> None:
            self.inner, self.gate = inner, asyncio.Semaphore(2)

        async def generate(self, request: GenerationRequest) -> Any:
            async with self.gate:
                await asyncio.sleep(0.05)
                return await self.inner.generate(request)

    setup = world.setup(Narrow(world.engine(CALL, ANSWER)), time_limit_s=0.5)
    setup = dataclasses.replace(setup, max_running=2, max_fault_retries=0)
    sampled = asyncio.run(sample_groups([world.problem()], setup=setup, group_size=24, seed=0, tag="t"))
    assert sampled.num_dropped == 0
    assert {rollout.stop_reason for rollout in sampled.groups[0].rollouts} == {StopReason.ANSWERED}


def test_tool_spec_of_a_problem_limits_the_tools(world: World) -> None:
    setup = world.setup(world.engine(CALL, ANSWER), EchoTool(), EchoTool(name="other"))
    problem = dataclasses.replace(world.problem(), tools=("other",))
    rollout = world.run(setup, problem)
    failure = rollout.tool_results[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.UNKNOWN_TOOL
    prompt = world.renderer.decode(rollout.token_ids[: rollout.segments[0].stop])
    assert '"name": "other"' in prompt
    assert '"name": "echo"' not in prompt
