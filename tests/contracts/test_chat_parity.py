"""The loop over messages against the loop over tokens: the same model behind an endpoint has the same dialogues."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from axpo.dialogue import Transcript
from axpo.engines.hf import HfEngine
from axpo.engines.http import HttpChatModel
from axpo.engines.wire import MAX_SEED, WireOptions
from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rollout.calls import read_call
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.loop import RolloutLimits, RolloutSetup, run_rollout
from axpo.rollout.rendering import QwenRenderer
from axpo.rollout.transcripts import transcript_of
from axpo.tasks import mini
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import Completion, GenerationRequest, Problem, SamplingParams, StopReason
from chat_stub import Prompt, chat_stub

LIMITS = RolloutLimits(max_tool_turns=3, max_response_tokens=272)
SAMPLING = SamplingParams()


class WireSeeds:
    """An engine that gets the seeds of a request as they are on the wire."""

    def __init__(self, engine: HfEngine) -> None:
        self.engine = engine

    async def generate(self, request: GenerationRequest) -> Completion:
        return await self.engine.generate(replace(request, seed=request.seed % MAX_SEED))


@dataclass(frozen=True)
class Place:
    engine: HfEngine
    renderer: QwenRenderer
    store: ContentImageStore
    loop: asyncio.AbstractEventLoop
    """The event loop of the engine behind the endpoint."""

    def write(self, prompt: Prompt) -> Sequence[int]:
        """What the model samples of a prompt that the endpoint rendered."""
        request = GenerationRequest(
            token_ids=prompt.token_ids,
            images=tuple(self.store.add_bytes(data) for data in prompt.images),
            max_new_tokens=prompt.fields["max_tokens"],
            sampling=SAMPLING,
            seed=prompt.fields["seed"],
        )
        sampling = asyncio.run_coroutine_threadsafe(self.engine.generate(request), self.loop)
        completion = sampling.result(60)
        padding = (0,) if completion.finish_reason == "length" else ()  # longer than the room: cut there
        return (*completion.token_ids, *padding)

    def executor(self) -> ToolExecutor:
        zoom = ImageZoomTool(min_pixels=9216, max_pixels=9216)
        return ToolExecutor(tools={zoom.spec.name: zoom})

    def in_tokens(self, problems: Sequence[Problem], limits: RolloutLimits) -> list[Transcript]:
        setup = RolloutSetup(
            engine=WireSeeds(self.engine),
            renderer=self.renderer,
            executor=self.executor(),
            reward_for=lambda problem: lambda text, problem: 0.0,
            store=self.store,
            limits=limits,
            sampling=SAMPLING,
        )

        async def run() -> list[Transcript]:
            tasks = [run_rollout(p, setup=setup, rollout_id=p.id, seed=n) for n, p in enumerate(problems)]
            rollouts = await asyncio.gather(*tasks)
            return [transcript_of(r, p, renderer=self.renderer) for r, p in zip(rollouts, problems, strict=True)]

        return asyncio.run(run())

    def in_messages(
        self, problems: Sequence[Problem], limits: RolloutLimits, *, options: WireOptions, **server: Any
    ) -> list[Transcript]:
        async def run(url: str) -> list[Transcript]:
            model = HttpChatModel(url, "mini", store=self.store, read_call=read_call, options=options)
            setup = ChatSetup(model=model, executor=self.executor(), store=self.store, limits=limits, sampling=SAMPLING)
            try:
                tasks = [run_chat(p, setup=setup, rollout_id=p.id, seed=n) for n, p in enumerate(problems)]
                return await asyncio.gather(*tasks)
            finally:
                await model.close()

        with chat_stub(write=self.write, **server) as stub:
            return asyncio.run(run(stub.url))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    checkpoint = mini.checkpoint_path()
    store = ContentImageStore(tmp_path_factory.mktemp("images"))
    preprocessor = ImagePreprocessor.from_pretrained(checkpoint)
    renderer = QwenRenderer.from_pretrained(checkpoint, preprocessor=preprocessor)
    engine = HfEngine(
        load_model(checkpoint, dtype="float32", device=torch.device("cpu")),
        preprocessor=preprocessor,
        store=store,
        banned_token_ids=renderer.banned_token_ids,
        stop_token_ids=renderer.stop_token_ids,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield Place(engine, renderer, store, loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    engine.close()


def assert_same(got: Sequence[Transcript], expected: Sequence[Transcript]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.stop_reason, ours.final_text) == (theirs.stop_reason, theirs.final_text)
        assert [turn.reasoning for turn in ours.turns] == [turn.reasoning for turn in theirs.turns]
        assert [(r.call.name, r.call.arguments, r.content) for r in ours.tool_results] == [
            (r.call.name, r.call.arguments, r.content) for r in theirs.tool_results
        ]
        assert ours.usage == theirs.usage


@pytest.fixture(scope="module")
def expected(place: Place) -> tuple[Sequence[Problem], list[Transcript]]:
    problems = mini.problems("eval", store=place.store, num_questions=16)
    return problems, place.in_tokens(problems, LIMITS)


@pytest.mark.parametrize("has_reasoning_parser", [True, False])
def test_dialogues_are_those_of_the_loop_over_tokens(
    place: Place, expected: tuple[Sequence[Problem], list[Transcript]], has_reasoning_parser: bool
) -> None:
    problems, transcripts = expected
    got = place.in_messages(
        problems,
        LIMITS,
        options=WireOptions(has_open_thinking=not has_reasoning_parser),
        has_reasoning_parser=has_reasoning_parser,
    )
    assert sum(len(transcript.tool_results) for transcript in got) >= 4
    assert_same(got, transcripts)


@pytest.mark.parametrize("has_reasoning_parser", [True, False])
def test_thinking_that_the_token_limit_cuts_is_no_answer(place: Place, has_reasoning_parser: bool) -> None:
    problems = mini.problems("eval", store=place.store, num_questions=4)
    limits = RolloutLimits(max_tool_turns=3, max_response_tokens=4)
    got = place.in_messages(
        problems,
        limits,
        options=WireOptions(has_open_thinking=not has_reasoning_parser),
        has_reasoning_parser=has_reasoning_parser,
    )
    assert {(t.stop_reason, t.final_text) for t in got} == {(StopReason.TOKEN_LIMIT, "")}
    assert_same(got, place.in_tokens(problems, limits))
