"""What holds for every dialogue and for whatever a policy samples."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.rollout.rendering import CALL_TAGS, FORBIDDEN_TOKENS, THINK_TAGS, QwenRenderer
from axpo.types import Content, ImageRef, Message, SegmentKind, ToolCall, ToolResult, ToolSpec

CONTROLS = (*THINK_TAGS, *CALL_TAGS, *FORBIDDEN_TOKENS, "<|im_end|>", "<|box_start|>")
TOOL = ToolSpec(name="zoom", description="Zoom.", parameters={"type": "object"})


class TokensByWidth:
    def num_tokens(self, ref: ImageRef) -> int:
        return ref.width_px


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> QwenRenderer:
    return QwenRenderer.from_pretrained(tiny_checkpoint, preprocessor=TokensByWidth())


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def control_ids(tokenizer: Any) -> list[int]:
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.content in CONTROLS]


def nfc(text: str) -> str:
    """As the tokenizer normalises."""
    return unicodedata.normalize("NFC", text)


# Without surrogates, which are no characters; without "<", hence without anything that spells a control token.
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<\ufdd0"), max_size=12)
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=12)
hostile_text = st.lists(st.one_of(st.sampled_from(CONTROLS), st.sampled_from(["<", "<|im_", "end|>"]), any_text)).map(
    "".join
)
images = st.builds(
    ImageRef, sha256=st.just("d" * 64), width_px=st.integers(min_value=1, max_value=4), height_px=st.just(1)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | hostile_text.map(nfc),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile_text.map(nfc), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    ToolCall,
    id=st.just("x"),
    name=st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
    arguments=st.dictionaries(hostile_text.map(nfc), json_values, max_size=3),
)


def contents(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Content, ...]]:
    block = st.builds(Content, text=text) | st.builds(Content, image=images)
    return st.lists(block, min_size=1, max_size=3).map(tuple)


# -- whatever the policy samples --------------------------------------------------------------------------------------


@given(data=st.data(), has_open_thinking=st.booleans())
def test_any_ids_are_taken_apart_without_loss(
    renderer: QwenRenderer, tokenizer: Any, data: st.DataObject, has_open_thinking: bool
) -> None:
    ids = data.draw(
        st.lists(st.sampled_from(control_ids(tokenizer)) | st.integers(min_value=0, max_value=len(tokenizer) - 1))
    )
    parsed = renderer.parse_turn(ids, has_open_thinking=has_open_thinking)
    ends = [segment.stop for segment in parsed.segments]
    assert [segment.start for segment in parsed.segments] == [0, *ends][: len(ends)]
    assert ends[-1:] == [len(ids)][: len(ids)]
    kinds = [segment.kind for segment in parsed.segments]
    assert kinds.count(SegmentKind.TOOL_OPEN) == len(parsed.tool_calls)
    assert SegmentKind.THINKING not in kinds[1:]
    assert not (parsed.tool_calls and SegmentKind.ANSWER in kinds)
    for segment in parsed.segments:
        if segment.kind in (SegmentKind.TOOL_OPEN, SegmentKind.TOOL_CLOSE):
            tag = CALL_TAGS[segment.kind is SegmentKind.TOOL_CLOSE]
            assert renderer.decode(ids[segment.start : segment.stop]) == tag


@given(turn_calls=st.lists(calls, min_size=1, max_size=3), thought=plain_text, text=plain_text)
def test_rendered_calls_are_read_back(
    renderer: QwenRenderer, turn_calls: list[ToolCall], thought: str, text: str
) -> None:
    question = Message(role="user", content=(Content(text="?"),))
    turn = Message(role="assistant", content=(Content(text=text),), reasoning=thought, tool_calls=tuple(turn_calls))
    conversation = renderer.render_conversation([question, turn], [])
    parsed = renderer.parse_turn(conversation.token_ids[conversation.segments[0].stop :])
    assert [(c.name, c.arguments, c.parse_error) for c in parsed.tool_calls] == [
        (c.name, c.arguments, None) for c in turn_calls
    ]


# -- whatever the data contains ---------------------------------------------------------------------------------------


def special_tokens(tokenizer: Any, token_ids: Sequence[int]) -> list[int]:
    return [i for i in token_ids if i in control_ids(tokenizer)]


@given(content=contents(hostile_text))
def test_no_text_of_a_question_becomes_a_control_token(
    renderer: QwenRenderer, tokenizer: Any, content: tuple[Content, ...]
) -> None:
    harmless = tuple(block if block.image else Content(text="x") for block in content)
    rendered, expected = (
        renderer.render_prompt([Message(role="user", content=blocks)], [TOOL]) for blocks in (content, harmless)
    )
    assert special_tokens(tokenizer, rendered.token_ids) == special_tokens(tokenizer, expected.token_ids)
    assert rendered.images == tuple(block.image for block in content if block.image)


@given(content=contents(hostile_text))
def test_no_text_of_a_tool_becomes_a_control_token(
    renderer: QwenRenderer, tokenizer: Any, content: tuple[Content, ...]
) -> None:
    call = ToolCall(id="call-0", name="zoom")
    harmless = tuple(block if block.image else Content(text="x") for block in content)
    rendered, expected = (
        renderer.render_tool_results([ToolResult(call=call, content=blocks)]) for blocks in (content, harmless)
    )
    assert special_tokens(tokenizer, rendered.token_ids) == special_tokens(tokenizer, expected.token_ids)


@given(text=hostile_text)
def test_hostile_text_is_read_in_full(renderer: QwenRenderer, text: str) -> None:
    prompt = renderer.render_prompt([Message(role="user", content=(Content(text=text),))], [])
    shown = renderer.decode(prompt.token_ids)
    # text next to a cut is normalised piece by piece: compare what is left after normalising both sides
    assert nfc(shown) == nfc(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n")


# -- a demonstration is what the template writes ----------------------------------------------------------------------


@st.composite
def dialogues(draw: st.DrawFn) -> list[Message]:
    """One question, tool turns, an answer. Thoughts start with a letter: a leading newline would merge with the
    prompt's last one if prompt and turn were tokenised together, which a rollout never does."""
    thoughts = plain_text.map(lambda text: f"a{text}")
    plain_calls = st.builds(
        ToolCall, id=st.just("x"), name=st.just("zoom"), arguments=st.dictionaries(plain_text, plain_text, max_size=2)
    )
    messages = [Message(role="user", content=draw(contents(plain_text)))]
    if draw(st.booleans()):
        messages.insert(0, Message(role="system", content=(Content(text=draw(plain_text)),)))
    for _ in range(draw(st.integers(min_value=0, max_value=2))):
        turn_calls = draw(st.lists(plain_calls, min_size=1, max_size=2))
        text = draw(plain_text)
        content = (Content(text=text),)
        messages.append(
            Message(role="assistant", content=content, reasoning=draw(thoughts), tool_calls=tuple(turn_calls))
        )
        messages.extend(Message(role="tool", content=draw(contents(plain_text))) for _ in turn_calls)
    answer = (Content(text=draw(plain_text)),)
    return [*messages, Message(role="assistant", content=answer, reasoning=draw(thoughts))]


def openai_message(message: Message) -> dict[str, Any]:
    blocks = [{"type": "image"} if block.image else {"type": "text", "text": block.text} for block in message.content]
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls]
    return {"role": message.role, "content": blocks, "reasoning_content": message.reasoning, "tool_calls": calls}


@settings(deadline=None)
@given(messages=dialogues(), has_tools=st.booleans())
def test_demonstration_equals_the_template_tokenised_in_one_go(
    renderer: QwenRenderer, tokenizer: Any, messages: list[Message], has_tools: bool
) -> None:
    function = {"name": TOOL.name, "description": TOOL.description, "parameters": TOOL.parameters}
    text = tokenizer.apply_chat_template(
        [openai_message(message) for message in messages],
        tools=[{"type": "function", "function": function}] if has_tools else None,
        tokenize=False,
    )
    widths = [image.width_px for message in messages for image in message.images]
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    counts = iter(widths)
    expected = [
        i
        for token in tokenizer.encode(text.removesuffix("\n"), add_special_tokens=False)
        for i in [token] * (next(counts) if token == placeholder else 1)
    ]
    conversation = renderer.render_conversation(messages, [TOOL] if has_tools else [])
    assert list(conversation.token_ids) == expected
    assert [image.width_px for image in conversation.images] == widths
    starts = [0, *(segment.stop for segment in conversation.segments)]
    assert [segment.start for segment in conversation.segments] == starts[:-1]
    assert starts[-1] == len(expected)
