"""Did the tokenizer, the template engine or the image processor move?

The rendering is compared with the chat template for a small vocabulary and for the one that Qwen publishes.
`AXPO_QWEN_CHECKPOINT` may name a folder with the tokenizer, template and configs of a published Qwen3-VL-Thinking
checkpoint (no weights needed); it is used instead, and the shipped template is compared with the published one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from axpo.images import ContentImageStore
from axpo.models.scratch import TEMPLATE_PATH
from axpo.rollout.rendering import QwenRenderer
from axpo.types import Content, ImageRef, Message, SegmentKind, ToolCall, ToolResult, ToolSpec
from qwen_vocabulary import save_checkpoint_without_weights, vocabulary_file

PUBLISHED = os.environ.get("AXPO_QWEN_CHECKPOINT")
needs_published = pytest.mark.skipif(
    PUBLISHED is None, reason="AXPO_QWEN_CHECKPOINT names no folder of a published Qwen3-VL-Thinking checkpoint"
)


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint, or at least its vocabulary."""
    if PUBLISHED is not None:
        return Path(PUBLISHED)
    vocabulary = vocabulary_file()
    if vocabulary is None:
        pytest.skip("the package dashscope with Qwen's vocabulary is not installed: run scripts/setup")
    return save_checkpoint_without_weights(tmp_path_factory.mktemp("qwen"), vocabulary)


TOOL = ToolSpec(name="image_zoom_in", description="Zoomt näher.", parameters={"type": "object", "properties": {}})
WRAPPED_TOOL = {
    "type": "function",
    "function": {"name": TOOL.name, "description": TOOL.description, "parameters": TOOL.parameters},
}
PICTURE = ImageRef(sha256="e" * 64, width_px=64, height_px=64)
CALL = ToolCall(id="call-0", name="image_zoom_in", arguments={"bbox_2d": [0, 10, 500, 1000], "label": "红色 card 🟥"})
DIALOGUE = [
    Message(role="system", content=(Content(text="Think, then act."),)),
    Message(role="user", content=(Content(image=PICTURE), Content(text="Which letter is on the card?\n"))),
    Message(role="assistant", reasoning="Too small to read.\n\nZoom in.", tool_calls=(CALL,)),
    Message(role="tool", content=(Content(image=PICTURE), Content(text="The crop is image 1."))),
    Message(role="assistant", reasoning="B or 8?", content=(Content(text="Once more."),), tool_calls=(CALL, CALL)),
    Message(role="tool", content=(Content(text="The crop is image 2."), Content(image=PICTURE))),
    Message(role="tool", content=(Content(text="The box is empty."),)),
    Message(role="assistant", reasoning="B.", content=(Content(text="<answer>\\boxed{B}</answer>"),)),
]


class FourPerPicture:
    def num_tokens(self, ref: ImageRef) -> int:
        return 4


@functools.cache
def load(path: Path | str) -> tuple[QwenRenderer, Any]:
    from transformers import AutoTokenizer

    return QwenRenderer.from_pretrained(path, preprocessor=FourPerPicture()), AutoTokenizer.from_pretrained(path)


def openai_message(message: Message) -> dict[str, Any]:
    blocks = [{"type": "image"} if block.image else {"type": "text", "text": block.text} for block in message.content]
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls]
    return {"role": message.role, "content": blocks, "reasoning_content": message.reasoning, "tool_calls": calls}


def template_ids(tokenizer: Any, messages: list[Message], *, is_prompt: bool) -> tuple[int, ...]:
    """The template's text tokenised in one go, four placeholders for each picture."""
    text = tokenizer.apply_chat_template(
        [openai_message(m) for m in messages], tools=[WRAPPED_TOOL], tokenize=False, add_generation_prompt=is_prompt
    )
    pad = "<|image_pad|>"
    return tuple(tokenizer.encode(text.replace(pad, pad * 4), add_special_tokens=False))


def check_dialogue(renderer: QwenRenderer, tokenizer: Any) -> None:
    """Every prompt of the dialogue is a prefix of the next, and all are what the template writes at that point."""
    conversation = renderer.render_conversation(DIALOGUE, [TOOL])
    newline = len(tokenizer.encode("\n", add_special_tokens=False))
    assert conversation.token_ids == template_ids(tokenizer, DIALOGUE, is_prompt=False)[:-newline]
    contexts = [s for s in conversation.segments if not s.kind.is_sampled]
    turns = [position for position, message in enumerate(DIALOGUE) if message.role == "assistant"]
    assert len(contexts) == len(turns) == 3
    for segment, turn in zip(contexts, turns, strict=True):
        assert conversation.token_ids[: segment.stop] == template_ids(tokenizer, DIALOGUE[:turn], is_prompt=True)
    prompt = renderer.render_prompt(DIALOGUE[:2], [TOOL])
    assert prompt.token_ids == conversation.token_ids[: contexts[0].stop]
    results = [ToolResult(call=CALL, content=message.content) for message in DIALOGUE[5:7]]
    assert (
        renderer.render_tool_results(results).token_ids
        == (conversation.token_ids[contexts[2].start : contexts[2].stop])
    )


def test_rollout_tokens_are_the_templates_at_every_turn(tiny_checkpoint: Path) -> None:
    check_dialogue(*load(tiny_checkpoint))


def test_placeholders_are_as_many_as_the_picture_has_merged_patches(tiny_checkpoint: Path) -> None:
    from PIL import Image

    from axpo.models.preprocessing import ImagePreprocessor

    preprocessor = ImagePreprocessor.from_pretrained(tiny_checkpoint)
    renderer = QwenRenderer.from_pretrained(tiny_checkpoint, preprocessor=preprocessor)
    store = ContentImageStore()
    pictures = [store.add_image(Image.new("RGB", size, "red")) for size in ((96, 64), (500, 40))]
    question = Message(role="user", content=tuple(Content(image=picture) for picture in pictures))
    prompt = renderer.render_prompt([question], [])
    placeholders = [i for i in prompt.token_ids if renderer.decode([i]) == "<|image_pad|>"]
    num_patches = sum(preprocessor.pixel_values(picture, store).shape[0] for picture in pictures)
    assert len(placeholders) == num_patches // preprocessor.merge_size**2


def test_ids_are_the_published_ones(qwen_checkpoint: Path) -> None:
    renderer, tokenizer = load(qwen_checkpoint)
    assert renderer.stop_token_ids == (151645, 151643)
    # im_start, vision_start to video_pad, the tool_response tags, and 267 outputs without a token
    assert renderer.banned_token_ids == (151644, *range(151652, 151657), 151665, 151666, *range(151669, 151936))
    assert renderer.has_open_thinking
    turn = 'hm</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
    ids = tokenizer.encode(turn, add_special_tokens=False)
    opened = next(s for s in renderer.parse_turn(ids).segments if s.kind is SegmentKind.TOOL_OPEN)
    assert ids[opened.start] == 151657


def test_rollout_tokens_are_the_templates_in_the_published_vocabulary(qwen_checkpoint: Path) -> None:
    check_dialogue(*load(qwen_checkpoint))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9707, 11, 1879, 0]),
        ("12 apples", [16, 17, 40676]),
        ("\n\n", [271]),
        ("<think>\n", [151667, 198]),
        ("</tool_call><|im_end|>", [151658, 151645]),
    ],
)
def test_texts_have_their_published_ids(qwen_checkpoint: Path, text: str, ids: list[int]) -> None:
    _, tokenizer = load(qwen_checkpoint)
    assert tokenizer.encode(text, add_special_tokens=False) == ids


@needs_published
@pytest.mark.parametrize("num_messages", range(1, len(DIALOGUE) + 1))
@pytest.mark.parametrize("has_tools", [False, True])
def test_shipped_template_writes_what_the_published_one_writes(num_messages: int, has_tools: bool) -> None:
    _, tokenizer = load(str(PUBLISHED))
    follow_up = [
        Message(role="user", content=(Content(text="And below?"),)),
        Message(role="assistant", content=(Content(text="C"),)),
    ]
    for messages in (DIALOGUE[:num_messages], [*DIALOGUE[:num_messages], *follow_up]):
        for is_prompt in (False, True):
            published, shipped = (
                tokenizer.apply_chat_template(
                    [openai_message(m) for m in messages],
                    tools=[WRAPPED_TOOL] if has_tools else None,
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                    chat_template=template,
                )
                for template in (None, TEMPLATE_PATH.read_text(encoding="utf-8"))
            )
            assert shipped == published
