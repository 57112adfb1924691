"""Our messages on the wire, and what comes back."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from axpo.dialogue import TokenUsage
from axpo.engines.wire import (
    MALFORMED,
    WireError,
    WireOptions,
    closes_open_thinking,
    encode_fields,
    message_fields,
    read_reply,
    request_fields,
    wire_id,
)
from axpo.protocols import ChatReply, ChatRequest
from axpo.rollout.calls import read_call
from axpo.types import Content, ImageRef, Message, SamplingParams, ToolCall, ToolSpec

IMAGE = ImageRef(sha256="a" * 64, width_px=8, height_px=4)
PLAIN = WireOptions()
OPENAI = WireOptions(dialect="openai")
QUESTION = Message(role="user", content=(Content(text="What?"),))


def call(**changes: Any) -> ToolCall:
    return ToolCall(**{"id": "p/0/0-call-0", "name": "zoom", "arguments": {"x": 1}, "raw": "…"} | changes)


def asking(*calls: ToolCall, **changes: Any) -> Message:
    return Message(role="assistant", tool_calls=calls, **changes)


def result(call: ToolCall, *content: Content) -> Message:
    return Message(role="tool", content=content, tool_call_id=call.id)


def on_wire(*messages: Message, options: WireOptions = PLAIN) -> list[dict[str, Any]]:
    return message_fields(messages, options=options, image_url=lambda image: f"data:{image.sha256[:3]}")


def answer(content: Any = None, *, finish: str | None = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return {"id": "x", "choices": [choice], "usage": usage}


def read(*args: Any, options: WireOptions = PLAIN, **message: Any) -> ChatReply:
    return read_reply(answer(*args, **message), read_call=read_call, options=options)


class TestRequests:
    def test_what_switches_nothing_on_is_not_sent_but_top_p_is(self) -> None:
        request = ChatRequest(
            messages=(QUESTION,), tools=(), max_new_tokens=7, sampling=SamplingParams(temperature=0.6), seed=2**62 + 5
        )
        assert request_fields(request, model="m", options=PLAIN, image_url=str) == {
            "model": "m",
            "messages": [{"role": "user", "content": "What?"}],
            "max_tokens": 7,
            "temperature": 0.6,
            "top_p": 1.0,  # a service may have another default
            "seed": 5,
        }

    def test_everything_that_was_asked_for_is_sent(self) -> None:
        spec = ToolSpec(name="zoom", description="looks", parameters={"type": "object"})
        request = ChatRequest(
            messages=(QUESTION,),
            tools=(spec,),
            max_new_tokens=7,
            sampling=SamplingParams(top_p=0.9, top_k=20, presence_penalty=1.5),
            seed=1,
        )
        options = WireOptions(max_tokens_name="max_completion_tokens")
        fields = request_fields(request, model="m", options=options, image_url=str)
        assert fields["tools"] == [
            {
                "type": "function",
                "function": {"name": "zoom", "description": "looks", "parameters": {"type": "object"}},
            }
        ]
        assert (fields["top_p"], fields["top_k"], fields["presence_penalty"]) == (0.9, 20, 1.5)
        assert fields["max_completion_tokens"] == 7
        assert "max_tokens" not in fields

    def test_pictures_stand_where_they_stood(self) -> None:
        message = Message(role="user", content=(Content(text="A"), Content(image=IMAGE), Content(text="B")))
        assert on_wire(message)[0]["content"] == [
            {"type": "text", "text": "A"},
            {"type": "image_url", "image_url": {"url": "data:aaa"}},
            {"type": "text", "text": "B"},
        ]

    def test_a_call_and_its_result_share_a_short_id(self) -> None:
        _, turn, tool = on_wire(QUESTION, asking(call()), result(call(), Content(text="seen")))
        sent = turn["tool_calls"][0]
        assert sent["function"] == {"name": "zoom", "arguments": '{"x": 1}'}
        assert sent["id"] == tool["tool_call_id"] == wire_id("p/0/0-call-0")
        assert len(sent["id"]) == 9
        assert sent["id"].isalnum()
        assert tool["content"] == "seen"

    def test_ids_differ_between_calls(self) -> None:
        assert len({wire_id(f"p/0/{turn}-call-{number}") for turn in range(20) for number in range(16)}) == 320

    def test_what_nobody_could_read_goes_back_as_json(self) -> None:
        broken = call(name="", arguments={}, raw='{"name": "zoom", "arg', parse_error="Malformed tool call")
        turns = (QUESTION, asking(broken), result(broken, Content(text="Malformed tool call")))
        _, turn, tool = on_wire(*turns, options=OPENAI)
        sent = turn["tool_calls"][0]["function"]
        assert sent["name"] == MALFORMED
        assert json.loads(sent["arguments"]) == {"malformed": '{"name": "zoom", "arg'}
        assert tool["content"] == "Malformed tool call"

    def test_a_chat_template_gets_a_malformed_call_back_as_the_model_wrote_it(self) -> None:
        broken = call(name="", arguments={}, raw='\n{"name": "zoom", "arg\n', parse_error="Malformed tool call")
        turn = asking(broken, content=(Content(text="Look."),))
        _, sent, tool = on_wire(QUESTION, turn, result(broken, Content(text="Malformed tool call")))
        assert "tool_calls" not in sent
        assert sent["content"] == 'Look.\n<tool_call>\n{"name": "zoom", "arg\n</tool_call>'
        assert tool["content"] == "Malformed tool call"

    @pytest.mark.parametrize("name", ["ns.zoom", "zoom it!", "z" * 100, "größe"])
    def test_a_name_of_the_models_own_making_is_one_that_services_take(self, name: str) -> None:
        sent = on_wire(QUESTION, asking(call(name=name)))[1]["tool_calls"][0]["function"]["name"]
        assert len(sent) <= 64
        assert sent.replace("_", "a").replace("-", "a").isalnum()
        assert sent.isascii()

    def test_images_of_results_follow_all_results_of_the_turn_for_openai(self) -> None:
        first, second = call(), call(id="p/0/0-call-1", name="crop")
        turns = (
            QUESTION,
            asking(first, second),
            result(first, Content(text="here"), Content(image=IMAGE)),
            result(second, Content(image=IMAGE)),
            asking(call(id="p/0/1-call-0")),
        )
        wire = on_wire(*turns, options=OPENAI)
        assert [message["role"] for message in wire] == ["user", "assistant", "tool", "tool", "user", "assistant"]
        assert [message["content"] for message in wire[2:4]] == ["here", "The result is a picture; it follows."]
        texts = [part["text"] for part in wire[4]["content"] if part["type"] == "text"]
        assert texts == [
            f"Pictures in the result of zoom ({wire_id(first.id)}):",
            f"Pictures in the result of crop ({wire_id(second.id)}):",
        ]
        assert [part["type"] for part in wire[4]["content"]] == ["text", "image_url"] * 2

    def test_images_of_the_last_results_follow_too(self) -> None:
        wire = on_wire(QUESTION, asking(call()), result(call(), Content(image=IMAGE)), options=OPENAI)
        assert [message["role"] for message in wire] == ["user", "assistant", "tool", "user"]

    def test_by_default_images_of_a_result_are_in_its_tool_message(self) -> None:
        wire = on_wire(QUESTION, asking(call()), result(call(), Content(image=IMAGE)))
        assert len(wire) == 3
        assert wire[2]["content"] == [{"type": "image_url", "image_url": {"url": "data:aaa"}}]

    def test_reasoning_is_sent_back_but_not_to_openai(self) -> None:
        turn = asking(call(), reasoning="hm")
        assert on_wire(QUESTION, turn)[1]["reasoning_content"] == "hm"
        assert "reasoning_content" not in on_wire(QUESTION, turn, options=OPENAI)[1]

    def test_halves_of_characters_do_not_stop_a_request(self) -> None:
        broken = Message(role="user", content=(Content(text="a\ud800b ü"),))
        assert json.loads(encode_fields({"messages": on_wire(broken)}))["messages"][0]["content"] == "a?b ü"


class TestReplies:
    @pytest.mark.parametrize(
        ("content", "text"),
        [("Four.", "Four."), (None, ""), ([{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}], "Four.")],
    )
    def test_every_form_of_content_is_read(self, content: Any, text: str) -> None:
        assert read(content).message.text == text

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_reasoning_in_a_field_of_its_own_is_read(self, field: str) -> None:
        message = read("The tag </think> ends it.", **{field: "hm"}).message
        assert (message.reasoning, message.text) == ("hm", "The tag </think> ends it.")

    @pytest.mark.parametrize(
        ("content", "has_open_thinking", "reasoning", "text"),
        [
            ("<think>\nhm\n</think>\n\nFour.", False, "hm", "Four."),
            ("hm\n</think>\n\nFour.", False, "hm", "Four."),
            ("hm\n</think>\n\nFour.", True, "hm", "Four."),
            ("<think>hm</think>a</think>b", False, "hm", "a</think>b"),
            ("<think>never done", False, "never done", ""),
            ("Well. <think>never done", False, "never done", "Well."),
            ("never done", True, "never done", ""),
            ("Four.", False, None, "Four."),
        ],
    )
    def test_thinking_inside_the_content_is_taken_out(
        self, content: str, has_open_thinking: bool, reasoning: str | None, text: str
    ) -> None:
        message = read(content, options=WireOptions(has_open_thinking=has_open_thinking)).message
        assert (message.reasoning, message.text) == (reasoning, text)

    @pytest.mark.parametrize("finish", ["length", "stop"])
    def test_thinking_that_never_closed_has_no_answer_and_no_calls(self, finish: str) -> None:
        listed = [{"function": {"name": "zoom", "arguments": "{}"}}]
        options = WireOptions(has_open_thinking=True)
        got = read("So the answer is B.", tool_calls=listed, finish=finish, options=options)
        assert (got.message.text, got.message.tool_calls) == ("", ())
        assert (got.message.reasoning, got.finish_reason) == ("So the answer is B.", finish)

    @pytest.mark.parametrize(
        ("content", "fields", "is_open"),
        [
            ("hm</think>Four.", {}, True),
            ("hm</think>Four.", {"reasoning": None}, True),
            ("<think>hm</think>Four.", {}, False),
            ("Four.", {}, False),
            (None, {"reasoning": "hm"}, False),
            ("The tag </think> ends it.", {"reasoning": "hm"}, False),
            ("The tag </think> ends it.", {"reasoning_content": ""}, False),
        ],
    )
    def test_only_a_closing_tag_without_its_opening_shows_a_missing_reasoning_parser(
        self, content: str | None, fields: dict[str, Any], is_open: bool
    ) -> None:
        assert closes_open_thinking(answer(content, **fields)) is is_open

    @pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
    def test_structured_calls_are_read(self, arguments: Any) -> None:
        listed = [{"id": "c", "type": "function", "function": {"name": "zoom", "arguments": arguments}}]
        (found,) = read(None, tool_calls=listed, finish="tool_calls").message.tool_calls
        assert (found.name, found.arguments, found.parse_error) == ("zoom", {"x": 1}, None)

    @pytest.mark.parametrize("arguments", ["", None, "  "])
    def test_no_arguments_are_an_empty_object(self, arguments: Any) -> None:
        (found,) = read(None, tool_calls=[{"function": {"name": "zoom", "arguments": arguments}}]).message.tool_calls
        assert (found.arguments, found.parse_error) == ({}, None)

    @pytest.mark.parametrize("arguments", ['{"x": ', "[1]", '"text"', '{"x": NaN}', "[" * 100_000, '{"a": "\\ud800"}'])
    def test_arguments_that_are_no_object_are_a_malformed_call_by_name(self, arguments: str) -> None:
        (found,) = read(None, tool_calls=[{"function": {"name": "zoom", "arguments": arguments}}]).message.tool_calls
        assert found.name == "zoom"
        assert found.parse_error is not None

    def test_calls_in_the_text_are_read_where_the_service_reads_none(self) -> None:
        text = (
            'Look.\n<tool_call>\n{"name": "zoom", "arguments": {"x": 1}}\n</tool_call><tool_call>{"name": </tool_call>'
        )
        message = read(f"<think>hm</think>{text}").message
        assert message.text == "Look."
        assert [(c.id, c.name, c.parse_error is None) for c in message.tool_calls] == [
            ("call-0", "zoom", True),
            ("call-1", "", False),
        ]

    def test_a_second_opening_tag_ends_a_call_that_was_never_closed(self) -> None:
        message = read('<tool_call>{"name": "a"<tool_call>{"name": "b", "arguments": {}}</tool_call>').message
        assert [c.name for c in message.tool_calls] == ["", "b"]
        assert "closing tool-call tag is missing" in (message.tool_calls[0].parse_error or "")

    @pytest.mark.parametrize(
        "content",
        [
            '<think>I could <tool_call>{"name": "a", "arguments": {}}</tool_call></think>No.',
            'I could <tool_call>{"name": "a", "arguments": {}}</tool_call></think>No.',
        ],
    )
    def test_a_call_in_thinking_is_none(self, content: str) -> None:
        message = read(content).message
        assert (message.tool_calls, message.text) == ((), "No.")

    def test_structured_calls_win_over_tags_in_the_text(self) -> None:
        message = read("About <tool_call>", tool_calls=[{"function": {"name": "a", "arguments": "{}"}}]).message
        assert ([c.name for c in message.tool_calls], message.text) == (["a"], "About <tool_call>")

    @pytest.mark.parametrize(
        ("finish", "read_as"),
        [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("content_filter", "stop"), (None, "stop")],
    )
    def test_only_length_is_length(self, finish: str | None, read_as: str) -> None:
        assert read("x", finish=finish).finish_reason == read_as

    @pytest.mark.parametrize(
        ("usage", "read_as"),
        [
            ({"prompt_tokens": 3, "completion_tokens": 2}, TokenUsage(prompt_tokens=3, completion_tokens=2)),
            (None, None),
            ({}, None),
            ({"prompt_tokens": 3}, None),
            ({"prompt_tokens": "3", "completion_tokens": 2}, None),
            ({"prompt_tokens": -3, "completion_tokens": 2}, None),
        ],
    )
    def test_usage_is_read_or_absent(self, usage: Any, read_as: TokenUsage | None) -> None:
        assert read("x", usage=usage).usage == read_as

    @pytest.mark.parametrize(
        "body",
        [
            None,
            [],
            {},
            {"choices": []},
            {"choices": ["x"]},
            {"choices": [{"message": "x"}]},
            answer(7),
            answer("x", tool_calls="x"),
            answer("x", tool_calls=["x"]),
            answer("x", tool_calls=[{"id": "c"}]),
            answer("x", finish="error"),
        ],
    )
    def test_every_wrong_shape_is_one_error(self, body: Any) -> None:
        with pytest.raises(WireError):
            read_reply(body, read_call=read_call, options=PLAIN)

    @pytest.mark.parametrize("unit", ["<tool_call>", "<think>", "</think>", "<tool_call></tool_call>", "<", "{", '"'])
    def test_a_megabyte_of_anything_is_read_in_time(self, unit: str) -> None:
        started_s = time.process_time()
        read(unit * (2**20 // len(unit)))
        read(None, tool_calls=[{"function": {"name": "a", "arguments": unit * (2**20 // len(unit))}}])
        assert time.process_time() - started_s < 5.0
