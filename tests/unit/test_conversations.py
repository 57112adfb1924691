"""Demonstrations in the OpenAI/TRL message format."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from axpo.dialogue import Conversation
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.tasks.jsonl import load_conversations
from axpo.types import Content, Message, ToolCall

BOX = {"bbox_2d": [0, 0, 500, 500], "label": "sign"}


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, format="PNG")
    return buffer.getvalue()


VIEW, CROP = png((8, 6)), png((4, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "view.png").write_bytes(VIEW)
    (tmp_path / "crop.png").write_bytes(CROP)
    return tmp_path


def load(folder: Path, messages: list[dict[str, Any]], **fields: Any) -> Conversation:
    path = folder / "sft.jsonl"
    path.write_text(json.dumps({"messages": messages} | fields))
    (conversation,) = load_conversations(path, store=ContentImageStore())
    return conversation


def user(content: Any = "Read the sign.") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | fields


def call(arguments: Any = BOX, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "image_zoom_in", "arguments": arguments}} | fields


def tool(content: Any = "img_idx 1:", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content} | fields


def test_a_tool_dialogue_becomes_a_conversation(folder: Path) -> None:
    conversation = load(
        folder,
        [
            user([{"type": "image"}, {"type": "text", "text": "Read the sign."}]),
            assistant("", reasoning_content="Too small.\n", tool_calls=[call(json.dumps(BOX), id="call_9")]),
            tool(
                [{"type": "text", "text": "img_idx 1:"}, {"type": "image"}], tool_call_id="call_9", name="image_zoom_in"
            ),
            assistant("<think>\nIt says 7.\n</think>\n\n<answer>7</answer>"),
        ],
        images=["view.png", "crop.png"],
        tools=[{"type": "function", "function": {"name": "image_zoom_in", "parameters": {}}}],
        metadata={"split": "a"},
    )
    store = ContentImageStore()
    assert conversation == Conversation(
        id="sft-1",
        messages=(
            Message(role="user", content=(Content(image=store.add_bytes(VIEW)), Content(text="Read the sign."))),
            Message(
                role="assistant",
                reasoning="Too small.",
                tool_calls=(ToolCall(id="call_9", name="image_zoom_in", arguments=BOX),),
            ),
            Message(role="tool", content=(Content(text="img_idx 1:"), Content(image=store.add_bytes(CROP)))),
            Message(role="assistant", content=(Content(text="<answer>7</answer>"),), reasoning="It says 7."),
        ),
        tools=("image_zoom_in",),
        metadata={"split": "a"},
    )


def test_thinking_whose_opening_tag_stands_in_the_prompt_is_split_off(folder: Path) -> None:
    conversation = load(folder, [user(), assistant("It says 7.\n</think>\n\n7")])
    assert (conversation.messages[-1].reasoning, conversation.messages[-1].text) == ("It says 7.", "7")


def test_thinking_may_mention_tags_of_calls_and_images(folder: Path) -> None:
    conversation = load(folder, [user(), assistant("<think>no <tool_call> for the <image></think>7")])
    assert conversation.messages[-1].reasoning == "no <tool_call> for the <image>"


def test_several_calls_of_one_turn_are_answered_in_order(folder: Path) -> None:
    calls = [call(id="x"), call({"bbox_2d": [1, 2, 3, 4], "label": "b"})]
    conversation = load(
        folder, [user(), assistant(None, tool_calls=calls), tool("1", tool_call_id="x"), tool("2"), assistant("7")]
    )
    assert [(c.id, c.arguments["label"]) for c in conversation.messages[1].tool_calls] == [
        ("x", "sign"),
        ("call_1", "b"),
    ]
    assert [message.text for message in conversation.messages[2:]] == ["1", "2", "7"]


def test_a_demonstration_may_end_with_the_call_itself(folder: Path) -> None:
    assert load(folder, [user(), assistant(tool_calls=[call()])]).messages[-1].tool_calls[0].arguments == BOX


def test_parquet_structs_lose_the_null_fields_of_other_rows(folder: Path) -> None:
    rows = [
        {"messages": [user(), assistant(tool_calls=[call({"a": 1})]), tool(), assistant("7")]},
        {"messages": [user(), assistant(tool_calls=[call({"b": "x"})]), tool(), assistant("8")]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "sft.parquet")
    conversations = load_conversations(folder / "sft.parquet", store=ContentImageStore())
    assert [c.messages[1].tool_calls[0].arguments for c in conversations] == [{"a": 1}, {"b": "x"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"field messages: expected a list of messages, got list \[\]"),
        (["hi"], r"field messages\[0\]: expected an object, got text \"hi\""),
        ([user()], r"field messages: a demonstration must end with the assistant, got text \"user\""),
        ([assistant("x")], r"field messages\[0\]\.role: after start comes system or user, got text \"assistant\""),
        ([user(), user(), assistant("x")], r"field messages\[1\]\.role: after user comes assistant"),
        (
            [user(), assistant("x"), tool(), assistant("y")],
            r"after assistant comes user, got text \"tool\"\. A tool message answers one",
        ),
        (
            [user(), assistant(tool_calls=[call(id="q")]), assistant("x")],
            r"after open calls comes tool, .*Calls without an answer: q",
        ),
        (
            [user(), assistant(tool_calls=[call(), call()]), tool(), assistant("x")],
            r"messages\[3\]\.role: after open calls comes tool, .*: call_1\.",
        ),
        (
            [user(), assistant(tool_calls=[call(id="a")]), tool(tool_call_id="b"), assistant("x")],
            r"tool_call_id: expected 'a', got text \"b\"",
        ),
        (
            [user(), {"role": "bot", "content": "x"}],
            r"messages\[1\]\.role: expected system, user, assistant or tool, got text \"bot\"",
        ),
        (
            [user(), {"role": "assistant", "contents": "x"}],
            r"messages\[1\]: unknown field 'contents'\. Did you mean content\?",
        ),
        ([user(), assistant("")], r"messages\[1\]\.content: an empty message"),
        ([user(), assistant("<think>x</think>")], r"messages\[1\]\.content: an empty message"),
        ([user(5), assistant("x")], r"messages\[0\]\.content: expected text or a list of blocks, got number 5"),
        (
            [user([{"type": "video"}]), assistant("x")],
            r"messages\[0\]\.content\[0\]: expected a text or image block, got object",
        ),
        ([user([{"type": "text"}]), assistant("x")], r"content\[0\]: expected a text or image block"),
        ([user(), assistant([{"type": "image"}])], r"content: an image in a message of the assistant"),
        ([user(), assistant(tool_calls=[call("{")])], r"tool_calls\[0\]\.function\.arguments: not valid JSON"),
        (
            [user(), assistant(tool_calls=[call([1])])],
            r"function\.arguments: expected an object or its JSON text, got list \[1\]",
        ),
        ([user(), assistant(tool_calls=[{"function": "zoom"}])], r"tool_calls\[0\]: expected a function call"),
        ([user(), assistant(tool_calls="zoom")], r"tool_calls: expected a list of calls, got text \"zoom\""),
        ([user() | {"tool_calls": []}, assistant("x")], r"messages\[0\]\.tool_calls: only an assistant has this"),
        ([user(), assistant("<think>x")], r"expected one <think>"),
        ([user(), assistant("a <think>x</think> y")], r"expected one <think>\.\.\.</think> at the start"),
        ([user(), assistant("<think>a</think><think>b</think>c")], r"expected one <think>"),
        ([user(), assistant("<think>a</think>c", reasoning_content="b")], r"<think> beside reasoning_content"),
        (
            [user(), assistant("c", reasoning_content="<think>b</think>")],
            r"reasoning_content: expected text without <think> tags",
        ),
        ([user(), assistant("<tool_call>{}</tool_call>")], r"a written-out call, .* Write it as `tool_calls`"),
        ([user([{"type": "image"}]), assistant("x")], r"field images: 1 places for images .*, 0 images"),
    ],
)
def test_a_broken_conversation_is_answered_with_its_place(folder: Path, messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(folder, messages)
    assert str(caught.value).startswith(f"{folder / 'sft.jsonl'}, line 1")


def test_a_question_row_is_told_apart_from_a_demonstration(folder: Path) -> None:
    (folder / "q.jsonl").write_text('{"question": "a", "answer": "1"}')
    with pytest.raises(DataError, match=r"line 1: unknown field 'question'\. Known are id, messages"):
        load_conversations(folder / "q.jsonl", store=ContentImageStore())
