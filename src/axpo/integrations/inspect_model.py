"""A model of inspect_ai as an `axpo.protocols.ChatModel`: our agent loop on whatever inspect knows how to call."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
)
from inspect_ai.tool import ToolCall as InspectCall
from inspect_ai.tool import ToolInfo, ToolParams

from axpo.dialogue import TokenUsage
from axpo.engines.wire import split_thinking
from axpo.images import ContentImageStore
from axpo.protocols import ChatReply, ChatRequest
from axpo.types import Content, Message, ToolCall, ToolSpec

InspectContent = str | list[Any]


class InspectChatModel:
    """Asks `model`. Sampling is inspect's business: task, command line and model decide it, not the request."""

    def __init__(self, model: Model, bridge: MessageBridge) -> None:
        self._model = model
        self._bridge = bridge

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The next assistant message."""
        output = await self._model.generate(
            [self._bridge.to_inspect(message) for message in request.messages],
            tools=[_tool_info(spec) for spec in request.tools],
            config=GenerateConfig(max_tokens=request.max_new_tokens, seed=request.seed % 2**31),
        )
        usage = output.usage
        return ChatReply(
            message=_read_message(output.choices[0].message),
            finish_reason="length" if output.stop_reason in ("max_tokens", "model_length") else "stop",
            usage=usage and TokenUsage(prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens),
        )

    async def close(self) -> None:
        """Nothing: inspect owns the model."""


class MessageBridge:
    """Messages of ours in inspect's words. `folder` is where `store` keeps its pictures."""

    def __init__(self, store: ContentImageStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def to_inspect(self, message: Message, *, by_path: bool = False) -> ChatMessage:
        """One message; its pictures inside, as models want them, or `by_path`, as a data set holds them."""
        content: InspectContent = [self._block(block, by_path) for block in message.content]
        if not message.images:
            content = message.text
        if message.role == "system":
            return ChatMessageSystem(content=content)
        if message.role == "user":
            return ChatMessageUser(content=content)
        if message.role == "tool":
            return ChatMessageTool(content=content, tool_call_id=message.tool_call_id)
        if message.reasoning:
            blocks = content if isinstance(content, list) else [ContentText(text=content)] if content else []
            content = [ContentReasoning(reasoning=message.reasoning), *blocks]
        calls = [InspectCall(id=c.id, function=c.name, arguments=dict(c.arguments)) for c in message.tool_calls]
        return ChatMessageAssistant(content=content, tool_calls=calls or None)

    def _block(self, block: Content, by_path: bool) -> ContentText | ContentImage:
        if block.image is None:
            return ContentText(text=block.text or "")
        data, suffix = self._store.encoded(block.image)
        if by_path:
            self._store.persist(block.image)
            return ContentImage(image=str(self._folder / f"{block.image.sha256}.{suffix}"))
        kind = {"jpg": "jpeg"}.get(suffix, suffix)
        return ContentImage(image=f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _tool_info(spec: ToolSpec) -> ToolInfo:
    return ToolInfo(
        name=spec.name,
        description=spec.description,
        parameters=ToolParams.model_validate({"additionalProperties": False, **spec.parameters}),
    )


def _read_message(message: ChatMessageAssistant) -> Message:
    blocks = message.content if isinstance(message.content, list) else []
    reasoning = "\n".join(block.reasoning for block in blocks if isinstance(block, ContentReasoning)) or None
    text = message.text
    if reasoning is None:  # a server without a reasoning parser leaves the thinking in the text
        reasoning, text = split_thinking(text, has_open_thinking=False)
    text = text.strip()
    calls = tuple(_read_call(call) for call in message.tool_calls or [])
    return Message(
        role="assistant",
        reasoning=reasoning.strip() if reasoning is not None else None,
        content=(Content(text=text),) if text else (),
        tool_calls=calls,
    )


def _read_call(call: InspectCall) -> ToolCall:
    arguments = call.arguments
    return ToolCall(
        id=call.id,
        name=call.function,
        arguments=arguments,
        raw=json.dumps({"name": call.function, "arguments": arguments}, ensure_ascii=False, default=str),
        parse_error=call.parse_error,
    )
