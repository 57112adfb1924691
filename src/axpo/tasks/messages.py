"""Messages of a row in the OpenAI/TRL format, with their tool calls and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from axpo.tasks.fields import IMAGE_FIELDS, ImageSource, Place, Row, check_text, known_fields
from axpo.types import Content, ImageRef, JsonValue, Message, ToolCall

MESSAGE_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
PLACEHOLDER = "<image>"

Role = Literal["system", "user", "assistant", "tool"]
_NEXT_ROLES: dict[str, tuple[str, ...]] = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "open calls": ("tool",),
    "tool": ("assistant",),
}


@dataclass(slots=True, kw_only=True)
class Draft:
    """A message whose pictures may still have to be taken from the row's `images`: a None block stands for one."""

    role: Role
    blocks: list[Content | None]
    place: Place
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


def read_question(fields: Row, place: Place, images: ImageSource) -> list[Draft]:
    """The messages of a question row: its `messages`, or its `question` as one user message."""
    if ("question" in fields) == ("messages" in fields):
        given = [name for name in ("question", "messages") if name in fields]
        raise place.error("exactly one of question and messages must be given", got=given, fix="Keep one.")
    if "messages" in fields:
        return read_messages(fields["messages"], place, images)
    where = place.at("question")
    question = fields["question"]
    if not isinstance(question, str) or not question.strip():
        raise where.error("expected text", got=question, fix="Write the question.")
    return [Draft(role="user", blocks=_read_text(question, "user", where), place=where)]


def read_messages(value: JsonValue, place: Place, images: ImageSource) -> list[Draft]:
    """Messages with checked roles, turns and calls; their image slots are still empty."""
    where = place.at("messages")
    if not isinstance(value, list) or not value:
        raise where.error("expected a list of messages", got=value, fix='Write [{"role": "user", "content": ...}].')
    items = cast("list[Any]", value)
    drafts = [_read_message(item, where.at(index), images) for index, item in enumerate(items)]
    _check_turns(drafts)
    return drafts


def _read_message(value: JsonValue, place: Place, images: ImageSource) -> Draft:
    if not isinstance(value, dict):
        raise place.error("expected an object", got=value, fix='Write {"role": "user", "content": ...}.')
    fields = known_fields(cast("Row", value), MESSAGE_FIELDS, place)
    role = fields.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise place.at("role").error("expected system, user, assistant or tool", got=role, fix="Correct the role.")
    draft = Draft(
        role=role, blocks=_read_content(fields.get("content", ""), role, place.at("content"), images), place=place
    )
    for name in ("reasoning_content", "tool_calls"):
        if name in fields and role != "assistant":
            raise place.at(name).error("only an assistant has this", got=fields[name], fix="Move it to the assistant.")
    if role == "assistant":
        draft.tool_calls = _read_tool_calls(fields.get("tool_calls", []), place.at("tool_calls"))
        _split_thinking(draft, fields.get("reasoning_content"))
    draft.tool_call_id = fields.get("tool_call_id")
    if not draft.blocks and not draft.tool_calls:
        raise place.at("content").error("an empty message", got=fields.get("content"), fix="Write its content.")
    return draft


def _read_content(value: JsonValue, role: Role, place: Place, images: ImageSource) -> list[Content | None]:
    if isinstance(value, str):
        return _read_text(value, role, place)
    if not isinstance(value, list):
        raise place.error("expected text or a list of blocks", got=value, fix='Write text or [{"type": "text", ...}].')
    items = cast("list[Any]", value)
    blocks = [block for index, item in enumerate(items) for block in _read_block(item, role, place.at(index), images)]
    if role in ("system", "assistant") and any(block is None or block.image is not None for block in blocks):
        raise place.error(f"an image in a message of the {role}", got=value, fix="Move it to a user or tool message.")
    return blocks


def _read_block(value: JsonValue, role: Role, place: Place, images: ImageSource) -> list[Content | None]:
    block = cast("Row", value) if isinstance(value, dict) else {}
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return _read_text(block["text"], role, place.at("text"))
    if block.get("type") in ("image", "image_url"):
        has_source = any(block.get(name) is not None for name in IMAGE_FIELDS)
        return [Content(image=images.add(block, place)) if has_source else None]
    raise place.error(
        "expected a text or image block", got=value, fix='Write {"type": "text", "text": ...} or {"type": "image"}.'
    )


def _read_tool_calls(value: JsonValue, place: Place) -> tuple[ToolCall, ...]:
    if not isinstance(value, list):
        raise place.error(
            "expected a list of calls", got=value, fix='Write [{"function": {"name": ..., "arguments": {}}}].'
        )
    return tuple(_read_tool_call(item, place.at(index), index) for index, item in enumerate(cast("list[Any]", value)))


def _read_tool_call(value: JsonValue, place: Place, index: int) -> ToolCall:
    call = cast("Row", value) if isinstance(value, dict) else {}
    function = call.get("function", call)
    name = cast("Row", function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise place.error(
            "expected a function call", got=value, fix='Write {"function": {"name": ..., "arguments": {}}}.'
        )
    arguments = cast("Row", function).get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            where = place.at("function.arguments")
            raise where.error(f"not valid JSON ({error})", got=arguments, fix="Write an object.") from error
    if not isinstance(arguments, dict):
        raise place.at("function.arguments").error(
            "expected an object or its JSON text", got=arguments, fix='Write {"name": value}, or {} for none.'
        )
    return ToolCall(id=str(call.get("id") or f"call_{index}"), name=name, arguments=cast("Row", arguments))


def _split_thinking(draft: Draft, reasoning: JsonValue) -> None:
    """Move `<think>...</think>` from an assistant's text to its reasoning; a chat template writes it back."""
    where = draft.place.at("content")
    text = "".join(block.text or "" for block in draft.blocks if block is not None)
    thinking, closing, visible = text.rpartition("</think>")
    before, _, thinking = thinking.rpartition("<think>")
    if before.strip() or "<think>" in visible or "</think>" in thinking:
        raise where.error("expected one <think>...</think> at the start", got=text, fix="Correct the tags.")
    if "<tool_call>" in visible:
        raise where.error("a written-out call", got=text, fix="Write it as `tool_calls`.")
    if closing and reasoning is not None:
        raise where.error("<think> beside reasoning_content", got=text, fix="Keep one of the two.")
    if closing:
        reasoning = thinking
        draft.blocks = _text_blocks(visible.lstrip("\n"))
    if reasoning is None:
        return
    if not isinstance(reasoning, str) or "<think>" in reasoning or "</think>" in reasoning:
        where = draft.place.at("reasoning_content")
        raise where.error("expected text without <think> tags", got=reasoning, fix="Write the thinking only.")
    draft.reasoning = check_text(reasoning, draft.place).strip("\n")


def _check_turns(drafts: Sequence[Draft]) -> None:
    """System first, then user and assistant in turn; every call is answered by a tool message before anything else."""
    state, open_calls = "start", list[ToolCall]()
    for draft in drafts:
        if draft.role not in _NEXT_ROLES[state]:
            expected = " or ".join(_NEXT_ROLES[state])
            fix = "Correct the order, or join the messages."
            if open_calls:
                fix = f"Calls without an answer: {', '.join(call.id for call in open_calls)}."
            elif draft.role == "tool":
                fix = "A tool message answers one of the assistant's `tool_calls`."
            raise draft.place.at("role").error(f"after {state} comes {expected}", got=draft.role, fix=fix)
        if draft.role == "tool":
            call = open_calls.pop(0)
            if draft.tool_call_id not in (None, call.id):
                raise draft.place.at("tool_call_id").error(
                    f"expected {call.id!r}", got=draft.tool_call_id, fix="Answer the calls in their order."
                )
        else:
            open_calls = list(draft.tool_calls)
        state = "open calls" if open_calls else draft.role


# -- images of a row --------------------------------------------------------------------------------------------------


def place_images(drafts: Sequence[Draft], fields: Row, place: Place, images: ImageSource) -> tuple[Message, ...]:
    """Fill the image slots with the row's images, in order; without any slot they go before the first user's text."""
    refs = _read_images(fields, place, images)
    num_slots = sum(block is None for draft in drafts for block in draft.blocks)
    if num_slots == 0:
        first_user = next(draft for draft in drafts if draft.role == "user")
        first_user.blocks[:0] = [Content(image=ref) for ref in refs]
    elif num_slots != len(refs):
        raise place.at("images").error(
            f"{num_slots} places for images ({PLACEHOLDER} or blocks without a source), {len(refs)} images",
            got=fields.get("images", fields.get("image")),
            fix="Write one place for each image.",
        )
    feed = iter(refs)
    return tuple(
        Message(
            role=draft.role,
            content=tuple(Content(image=next(feed)) if block is None else block for block in draft.blocks),
            reasoning=draft.reasoning,
            tool_calls=draft.tool_calls,
        )
        for draft in drafts
    )


def _read_images(fields: Row, place: Place, images: ImageSource) -> tuple[ImageRef, ...]:
    if "image" in fields and "images" in fields:
        raise place.at("image").error("both image and images are given", got=fields["image"], fix="Keep one.")
    if "image" in fields:
        return (images.add(fields["image"], place.at("image")),)
    value = fields.get("images", [])
    if not isinstance(value, list):
        raise place.at("images").error("expected a list", got=value, fix="Write [...], or use the field `image`.")
    return tuple(images.add(item, place.at("images").at(index)) for index, item in enumerate(cast("list[Any]", value)))


def _read_text(text: str, role: Role, place: Place) -> list[Content | None]:
    """Text with its image slots. What an assistant or a system prompt writes is taken literally."""
    check_text(text, place)
    if role in ("system", "assistant"):
        return _text_blocks(text)
    blocks: list[Content | None] = []
    for index, part in enumerate(text.split(PLACEHOLDER)):
        blocks += ([None] if index else []) + _text_blocks(part)
    return blocks


def _text_blocks(text: str) -> list[Content | None]:
    return [Content(text=text)] if text else []
