"""A row that the model cannot use is named before a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from axpo.cli.rows import check_conversations, check_questions
from axpo.dialogue import Conversation
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rollout.rendering import QwenRenderer
from axpo.tools.fakes import EchoTool
from axpo.types import Content, Message, Problem

REFUSAL = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
TOOLS = {"echo": EchoTool().spec, "other": EchoTool(name="other").spec}
QUESTION = Message(role="user", content=(Content(text="why?"),))
SYSTEM = Message(role="system", content=(Content(text="be brief"),))
ANSWER = Message(role="assistant", reasoning="so", content=(Content(text="<answer>A</answer>"),))
AMPLE = 100_000


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QwenRenderer:
    """Of a checkpoint whose template refuses system messages."""
    folder = tmp_path_factory.mktemp("picky")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    template = folder / "chat_template.jinja"
    template.write_text(REFUSAL + template.read_text())
    return QwenRenderer.from_pretrained(folder, preprocessor=ImagePreprocessor.from_pretrained(folder))


def problem(*messages: Message, tools: tuple[str, ...] | None = None) -> Problem:
    return Problem(id="q7", messages=messages, answer="A", tools=tools)


def conversation(*messages: Message) -> Conversation:
    return Conversation(id="d7", messages=messages)


def test_a_dialogue_that_the_template_refuses_is_named(renderer: QwenRenderer) -> None:
    good, bad = problem(QUESTION), problem(SYSTEM, QUESTION)
    with pytest.raises(DataError, match=r"^question q7: the chat template of .* refuses .*: no system here"):
        check_questions([good, bad], renderer=renderer, tools=TOOLS, max_tokens=AMPLE)
    with pytest.raises(DataError, match=r"^conversation d7: the chat template of .*: no system here"):
        check_conversations([conversation(SYSTEM, QUESTION, ANSWER)], renderer=renderer, tools=TOOLS, max_tokens=AMPLE)


@pytest.mark.parametrize("tools", [None, ("echo",), ()])
def test_a_prompt_must_leave_room_for_a_token(renderer: QwenRenderer, tools: tuple[str, ...] | None) -> None:
    picture = ContentImageStore().add_image(Image.new("RGB", (96, 64)))
    row = problem(Message(role="user", content=(Content(image=picture), Content(text="why?"))), tools=tools)
    specs = [spec for name, spec in TOOLS.items() if tools is None or name in tools]
    num_tokens = len(renderer.render_prompt(row.messages, specs).token_ids)
    check_questions([row], renderer=renderer, tools=TOOLS, max_tokens=num_tokens + 1)
    with pytest.raises(DataError, match=f"^question q7: has {num_tokens} tokens with its tools, at most"):
        check_questions([row], renderer=renderer, tools=TOOLS, max_tokens=num_tokens)


def test_a_demonstration_must_fit(renderer: QwenRenderer) -> None:
    row = conversation(QUESTION, ANSWER)
    num_tokens = len(renderer.render_conversation(row.messages, list(TOOLS.values())).token_ids)
    check_conversations([row], renderer=renderer, tools=TOOLS, max_tokens=num_tokens)
    with pytest.raises(DataError, match=f"^conversation d7: has {num_tokens} tokens with its tools, at most"):
        check_conversations([row], renderer=renderer, tools=TOOLS, max_tokens=num_tokens - 1)
