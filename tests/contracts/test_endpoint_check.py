"""The request before an evaluation, against servers that were started in the right way and in wrong ones."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from axpo.cli.endpoint_check import NUM_WORDS, CheckedEndpoint, check_endpoint
from axpo.engines.http import HttpChatModel
from axpo.engines.wire import WireOptions
from axpo.errors import AxpoError, ConfigError, EngineFault
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rollout.calls import read_call
from axpo.rollout.rendering import QwenRenderer
from axpo.tasks import mini
from axpo.tools.image_zoom import ImageZoomTool
from axpo.types import Content, Message, SamplingParams
from chat_stub import ChatStub, chat_stub, writes

ANSWER = "It is red.\n</think>\n\nRed."


@pytest.fixture(scope="module")
def renderer() -> QwenRenderer:
    checkpoint = mini.checkpoint_path()
    return QwenRenderer.from_pretrained(checkpoint, preprocessor=ImagePreprocessor.from_pretrained(checkpoint))


def check(url: str, *, renderer: QwenRenderer | None = None, **changes: Any) -> CheckedEndpoint:
    store = ContentImageStore()
    omit = changes.pop("omit", ())
    given: dict[str, Any] = {"dialect": "auto", "tools": [ImageZoomTool().spec], "max_tokens": 4096} | changes

    def make_model(options: WireOptions) -> HttpChatModel:
        return HttpChatModel(
            url, "mini", store=store, read_call=read_call, max_retries=0, timeout_s=30.0, options=options, omit=omit
        )

    return asyncio.run(
        check_endpoint(
            make_model, sampling=SamplingParams(), max_image_px=None, store=store, renderer=renderer, **given
        )
    )


class TestARightServer:
    def test_one_request_and_the_prompt_is_the_one_of_a_rollout(self, renderer: QwenRenderer) -> None:
        with chat_stub(write=writes(ANSWER)) as stub:
            found = check(stub.url, renderer=renderer)
        assert len(stub.requests) == 1
        assert found.options == WireOptions(dialect="vllm")
        assert found.prompt_tokens == found.expected_prompt_tokens == len(stub.prompts[0].token_ids)
        assert found.notes == ()
        assert stub.prompts[0].text.count("look") > NUM_WORDS and len(stub.prompts[0].images) == 1

    def test_without_the_checkpoint_there_is_nothing_to_say_either(self) -> None:
        with chat_stub(write=writes(ANSWER)) as stub:
            found = check(stub.url)
        assert (found.options, found.notes, found.expected_prompt_tokens) == (WireOptions(), (), None)

    def test_without_tools_it_is_a_question_with_an_image(self, renderer: QwenRenderer) -> None:
        with chat_stub(write=writes(ANSWER), has_tool_parser=False) as stub:
            found = check(stub.url, renderer=renderer, tools=[])
        assert [message["role"] for message in stub.requests[0]["messages"]] == ["user"]
        assert found.prompt_tokens == found.expected_prompt_tokens


class TestThinkingThatDoesNotArrive:
    def test_the_checkpoint_shows_it(self, renderer: QwenRenderer) -> None:
        with (
            chat_stub(write=writes(ANSWER), reads_reasoning=False) as stub,
            pytest.raises(ConfigError, match=r"makes \d+ prompt tokens .* thinking of earlier turns does not reach"),
        ):
            check(stub.url, renderer=renderer)
        assert len(stub.requests) == 1

    def test_the_size_of_the_prompt_shows_it_too(self) -> None:
        with chat_stub(write=writes(ANSWER), reads_reasoning=False) as stub:
            (note,) = check(stub.url).notes
        assert "the thinking of earlier turns does not reach the model" in note

    def test_openais_dialect_loses_it_on_the_checkpoints_template(self, renderer: QwenRenderer) -> None:
        """A user message after the tool result makes the template drop all earlier thinking."""
        with chat_stub(write=writes(ANSWER)) as stub, pytest.raises(ConfigError, match="openai dialect does not"):
            check(stub.url, renderer=renderer, dialect="openai")
        assert "look look" not in stub.prompts[0].text


class TestOtherServers:
    def test_one_that_refuses_images_in_tool_messages_is_spoken_to_as_openai(self) -> None:
        def refuse(fields: dict[str, Any]) -> str | None:
            is_text = all(isinstance(m["content"], str) for m in fields["messages"] if m["role"] == "tool")
            return None if is_text else "Image URLs are only allowed for messages with role 'user'."

        with chat_stub(write=writes("Red."), has_reasoning_parser=False, refuses=refuse) as stub:
            found = check(stub.url)
            assert found.options == WireOptions(dialect="openai") and len(stub.requests) == 2
            with pytest.raises(EngineFault, match=r"only allowed for messages with role 'user'.*endpoint\.dialect"):
                check(stub.url, dialect="vllm")
        (note,) = found.notes
        assert "only allowed for messages" in note and "endpoint.dialect = openai" in note

    def test_a_missing_tool_parser_is_told_after_one_request(self) -> None:
        with (
            chat_stub(has_tool_parser=False) as stub,
            pytest.raises(ConfigError, match="--enable-auto-tool-choice --tool-call-parser hermes"),
        ):
            check(stub.url)
        assert len(stub.requests) == 1

    def test_a_missing_reasoning_parser_is_made_up_for(self, renderer: QwenRenderer) -> None:
        with chat_stub(write=writes(ANSWER), has_reasoning_parser=False) as stub:
            for known in (None, renderer):
                found = check(stub.url, renderer=known)
                assert found.options.has_open_thinking
                assert "no reasoning parser" in found.notes[-1]

    def test_a_cut_reply_needs_the_checkpoint_to_be_read(self, renderer: QwenRenderer) -> None:
        with chat_stub(write=writes("so the answer is B. " * 900), has_reasoning_parser=False) as stub:
            with pytest.raises(ConfigError, match=r"--endpoint\.checkpoint"):
                check(stub.url)
            assert check(stub.url, renderer=renderer).options.has_open_thinking

    def test_an_answer_without_thinking_is_an_answer(self) -> None:
        with chat_stub(write=writes("Red."), has_reasoning_parser=False) as stub:
            assert not check(stub.url).options.has_open_thinking

    def test_an_engine_that_dies_of_a_seed_is_told_with_the_way_out(self) -> None:
        with chat_stub(write=writes(ANSWER), takes_seed=False) as stub:
            with pytest.raises(EngineFault, match=r"HTTP 500: EngineCore .* --endpoint.omit '\[\"seed\"\]'"):
                check(stub.url)
            assert len(stub.requests) == 1
            stub.is_broken = False
            assert check(stub.url, omit=("seed",)).notes == ()

    def test_a_small_context_is_told(self) -> None:
        with chat_stub(context_tokens=1024) as stub, pytest.raises(ConfigError, match="--max-model-len"):
            check(stub.url)


@pytest.mark.parametrize("is_listening", [False, True])
def test_a_dead_server_is_told_within_seconds(is_listening: bool) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if is_listening:
            dead.listen()
            dead.settimeout(0.1)
        started_s = time.monotonic()

        async def run() -> None:
            store = ContentImageStore()
            url = f"http://127.0.0.1:{dead.getsockname()[1]}/v1"
            await check_endpoint(
                lambda options: HttpChatModel(
                    url, "mini", store=store, read_call=read_call, max_retries=0, timeout_s=1.0, options=options
                ),
                dialect="auto",
                tools=[],
                sampling=SamplingParams(),
                max_tokens=100,
                max_image_px=None,
                store=store,
                renderer=None,
            )

        with pytest.raises(
            AxpoError, match=r"failed the check before the run, and nothing was sampled: .*127\.0\.0\.1"
        ):
            asyncio.run(run())
        assert time.monotonic() - started_s < 8


def test_the_stub_counts_as_the_template_does(renderer: QwenRenderer) -> None:
    stub = ChatStub()
    status, body = stub.respond({"model": "m", "messages": [{"role": "user", "content": "How many dots?"}]})
    expected = renderer.render_prompt((Message(role="user", content=(Content(text="How many dots?"),)),), ())
    assert (status, body["usage"]["prompt_tokens"]) == (200, len(expected.token_ids))
