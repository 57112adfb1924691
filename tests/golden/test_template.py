"""The shipped template and the renderer against dialogues written out by hand, as the published models read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.rollout.rendering import QwenRenderer
from axpo.types import Content, FailureKind, ImageRef, Message, SegmentKind, ToolCall, ToolFailure, ToolResult, ToolSpec

PHOTO = ImageRef(sha256="a" * 64, width_px=64, height_px=32)
CROP = ImageRef(sha256="b" * 64, width_px=32, height_px=32)
ZOOM = ToolSpec(
    name="image_zoom_in",
    description='Zoom into a "region".',
    parameters={"type": "object", "properties": {"bbox_2d": {"type": "array"}}, "required": ["bbox_2d"]},
)
SYSTEM = Message(role="system", content=(Content(text="Be exact."),))
QUESTION = Message(role="user", content=(Content(image=PHOTO), Content(text="Which letter?")))
CALL = ToolCall(id="call-0", name="image_zoom_in", arguments={"bbox_2d": [1, 2, 30, 40], "label": "café"})
CALLING = Message(role="assistant", reasoning="The card is small.", tool_calls=(CALL,))
RESULT = Message(role="tool", content=(Content(image=CROP), Content(text="Image 1.")))
ANSWERING = Message(role="assistant", reasoning="It is a B.", content=(Content(text="<answer>B</answer>"),))

# The listing that the published templates put into the system turn, one tool a line.
LISTING = (
    "# Tools\n"
    "\n"
    "You may call one or more functions to assist with the user query.\n"
    "\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>\n"
    '{"type": "function", "function": {"name": "image_zoom_in", "description": "Zoom into a \\"region\\".", '
    '"parameters": {"type": "object", "properties": {"bbox_2d": {"type": "array"}}, "required": ["bbox_2d"]}}}\n'
    "</tools>\n"
    "\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    "tags:\n"
    "<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
# A picture of 2 tokens, one of 3.
PHOTO_TEXT = "<|vision_start|>" + "<|image_pad|>" * 2 + "<|vision_end|>"
CROP_TEXT = "<|vision_start|>" + "<|image_pad|>" * 3 + "<|vision_end|>"

PROMPT_TEXT = (
    f"<|im_start|>system\nBe exact.\n\n{LISTING}<|im_end|>\n"
    f"<|im_start|>user\n{PHOTO_TEXT}Which letter?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n"
)
CALLING_TEXT = (
    "The card is small.\n</think>\n\n"
    '<tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox_2d": [1, 2, 30, 40], "label": "café"}}\n</tool_call>'
    "<|im_end|>"
)
RESULT_TEXT = (
    f"\n<|im_start|>user\n<tool_response>\n{CROP_TEXT}Image 1.\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n<think>\n"
)
ANSWERING_TEXT = "It is a B.\n</think>\n\n<answer>B</answer><|im_end|>"


class TwoForThePhoto:
    def num_tokens(self, ref: ImageRef) -> int:
        return 2 if ref == PHOTO else 3


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> QwenRenderer:
    return QwenRenderer.from_pretrained(tiny_checkpoint, preprocessor=TwoForThePhoto())


def template_text(checkpoint: Path, messages: list[dict], **options) -> str:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(messages, tokenize=False, **options)


def test_prompt_has_system_tools_question_and_an_opened_thinking_block(renderer: QwenRenderer) -> None:
    prompt = renderer.render_prompt([SYSTEM, QUESTION], [ZOOM])
    assert renderer.decode(prompt.token_ids) == PROMPT_TEXT
    assert prompt.images == (PHOTO,)


def test_tool_listing_stands_alone_without_a_system_message(renderer: QwenRenderer) -> None:
    text = renderer.decode(renderer.render_prompt([QUESTION], [ZOOM]).token_ids)
    assert text == PROMPT_TEXT.replace("Be exact.\n\n", "")


def test_without_tools_and_system_message_there_is_no_system_turn(renderer: QwenRenderer) -> None:
    text = renderer.decode(renderer.render_prompt([QUESTION], []).token_ids)
    assert text == f"<|im_start|>user\n{PHOTO_TEXT}Which letter?<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_tool_result_follows_the_sampled_end_of_turn(renderer: QwenRenderer) -> None:
    rendered = renderer.render_tool_results([ToolResult(call=CALL, content=RESULT.content)])
    assert renderer.decode(rendered.token_ids) == RESULT_TEXT
    assert rendered.images == (CROP,)


def test_results_of_one_turn_share_a_user_turn_and_a_failure_is_its_message(renderer: QwenRenderer) -> None:
    failure = ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message="bbox_2d needs 4 numbers")
    rendered = renderer.render_tool_results(
        [ToolResult(call=CALL, content=(Content(text="42"),)), ToolResult(call=CALL, failure=failure)]
    )
    assert renderer.decode(rendered.token_ids) == (
        "\n<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\nbbox_2d needs 4 numbers\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_demonstration_is_prompt_call_result_answer(renderer: QwenRenderer) -> None:
    conversation = renderer.render_conversation([SYSTEM, QUESTION, CALLING, RESULT, ANSWERING], [ZOOM])
    pieces = [(s.kind, renderer.decode(conversation.token_ids[s.start : s.stop])) for s in conversation.segments]
    thinking, body = CALLING_TEXT.removesuffix("</tool_call><|im_end|>").split("\n\n<tool_call>")
    assert pieces == [
        (SegmentKind.PROMPT, PROMPT_TEXT),
        (SegmentKind.THINKING, thinking),
        (SegmentKind.TEXT, "\n\n"),
        (SegmentKind.TOOL_OPEN, "<tool_call>"),
        (SegmentKind.TOOL_CALL, body),
        (SegmentKind.TOOL_CLOSE, "</tool_call>"),
        (SegmentKind.TEXT, "<|im_end|>"),
        (SegmentKind.TOOL_RESULT, RESULT_TEXT),
        (SegmentKind.THINKING, "It is a B.\n</think>"),
        (SegmentKind.ANSWER, "\n\n<answer>B</answer><|im_end|>"),
    ]
    assert conversation.images == (PHOTO, CROP)


def test_second_call_of_a_turn_starts_on_its_own_line(renderer: QwenRenderer) -> None:
    turn = Message(role="assistant", reasoning="Two looks.", tool_calls=(CALL, CALL))
    conversation = renderer.render_conversation([QUESTION, turn], [])
    text = renderer.decode(conversation.token_ids)
    call = CALLING_TEXT.split("\n\n")[1].removesuffix("<|im_end|>")
    assert text.endswith(f"Two looks.\n</think>\n\n{call}\n{call}<|im_end|>")


def test_template_shows_thinking_only_after_the_last_question(tiny_checkpoint: Path) -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\n1"},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "\nopen\n",
            "tool_calls": [{"name": "f", "arguments": "{}"}],
        },
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "2"},
    ]
    assert template_text(tiny_checkpoint, messages) == (
        "<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nopen\n</think>\n\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nr\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n2<|im_end|>\n"
    )


def test_user_turn_that_wraps_a_tool_response_is_no_question(tiny_checkpoint: Path) -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nkept\n</think>\n\n1"},
        {"role": "user", "content": "<tool_response>\nr\n</tool_response>"},
    ]
    assert template_text(tiny_checkpoint, messages, add_generation_prompt=True) == (
        "<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nkept\n</think>\n\n1<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nr\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_pictures_and_videos_are_numbered_on_request(tiny_checkpoint: Path) -> None:
    blocks = [{"type": "image"}, {"type": "text", "text": "and"}, {"image_url": "u"}, {"type": "video"}]
    messages = [{"role": "user", "content": blocks}, {"role": "tool", "content": [{"type": "image"}]}]
    image, video = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    assert template_text(tiny_checkpoint, messages, add_vision_id=True) == (
        f"<|im_start|>user\nPicture 1: {image}andPicture 2: {image}Video 1: {video}<|im_end|>\n"
        f"<|im_start|>user\n<tool_response>\nPicture 3: {image}\n</tool_response><|im_end|>\n"
    )
