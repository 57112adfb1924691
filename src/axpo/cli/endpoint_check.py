"""One request before an evaluation: does the endpoint answer, and does the model read a tool turn as it should?

The request holds a whole tool turn: a question, thinking, a call, and a result with an image. What comes back shows
whether the server is there and takes the run's tools and parameters, which dialect it speaks, whether it has a
reasoning parser, and, by the number of prompt tokens, whether the thinking and the image reached the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from axpo.engines.http import HttpChatModel
from axpo.engines.refusals import RequestRefused
from axpo.engines.wire import Dialect, WireOptions
from axpo.errors import ConfigError, EngineFault
from axpo.protocols import ChatReply, ChatRequest, ImageStore
from axpo.rollout.rendering import QwenRenderer
from axpo.types import Content, Message, SamplingParams, ToolCall, ToolResult, ToolSpec

TIMEOUT_S = 300.0
"""Time limit of the answer; the connection has its own, `axpo.engines.connections.CONNECT_TIMEOUT_S`."""
NUM_WORDS = 1500
"""Words of thinking: more than all other prompt tokens together, so that a prompt without them is seen by its size."""
MAX_TOKENS = 2048
"""Room to finish the thinking, which shows whether the server has a reasoning parser."""
MAX_TOKENS_KNOWN = 16
"""Room where the checkpoint's template says whether the model thinks."""
IMAGE_PX = 256
"""Width and height of the image."""

MakeModel = Callable[[WireOptions], HttpChatModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedEndpoint:
    """The way to talk to the endpoint, and notes about it for the user."""

    options: WireOptions
    prompt_tokens: int | None
    """The server's count; None when it does not count."""
    expected_prompt_tokens: int | None
    """Count by the checkpoint's own template and image processor; None when no checkpoint is named."""
    notes: tuple[str, ...]


async def check_endpoint(
    make_model: MakeModel,
    *,
    dialect: Dialect | Literal["auto"],
    tools: Sequence[ToolSpec],
    sampling: SamplingParams,
    max_tokens: int,
    max_image_px: int | None,
    store: ImageStore,
    renderer: QwenRenderer | None,
) -> CheckedEndpoint:
    """Ask once, or twice when `dialect` is auto and the service refuses the first one.

    `renderer`: that of the served checkpoint, if the user named it. Raises `ConfigError` when the server has to be
    started in another way or the run needs another option, `EngineFault` when the service does not work.
    """
    turn = _ToolTurn.make(tools, store, max_image_px=max_image_px)
    request = ChatRequest(
        messages=turn.messages,
        tools=tuple(tools),
        max_new_tokens=min(max_tokens, MAX_TOKENS if renderer is None else MAX_TOKENS_KNOWN),
        sampling=sampling,
        seed=0,
    )
    notes: list[str] = []
    options = WireOptions(dialect="vllm" if dialect == "auto" else dialect)
    try:
        reply, has_open_thinking = await _ask(make_model, options, request)
    except RequestRefused as refused:
        if dialect != "auto":
            raise EngineFault(f"{_stopped(refused)} Another endpoint.dialect may suit it.") from refused
        options = WireOptions(dialect="openai")
        try:
            reply, has_open_thinking = await _ask(make_model, options, request)
        except RequestRefused:
            raise EngineFault(_stopped(refused)) from refused
        notes.append(
            f"The service refuses images in tool messages or the thinking of earlier turns ({refused}). Images of tool "
            "results are sent in user messages and earlier thinking is left out: endpoint.dialect = openai."
        )
    if renderer is not None:
        has_open_thinking |= renderer.has_open_thinking and reply.message.reasoning is None
        _check_prompt(reply, turn, tools, renderer, options.dialect)
    else:
        _check_ending(reply)
        notes.extend(_note_lost_thinking(reply, options, turn))
    if reply.usage is None:
        notes.append("The service does not count tokens, so nothing tells whether the model reads the whole prompt.")
    if has_open_thinking:
        notes.append(
            "The server has no reasoning parser (vLLM: --reasoning-parser deepseek_r1). Thinking is read from the "
            "content up to </think>, and a reply without this tag has no answer."
        )
    return CheckedEndpoint(
        options=replace(options, has_open_thinking=has_open_thinking),
        prompt_tokens=reply.usage.prompt_tokens if reply.usage else None,
        expected_prompt_tokens=turn.count_tokens(tools, renderer) if renderer else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToolTurn:
    """The conversation that is sent. Without tools it is a question with an image."""

    question: Message
    answer: Message | None
    result: ToolResult | None

    @classmethod
    def make(cls, tools: Sequence[ToolSpec], store: ImageStore, *, max_image_px: int | None) -> _ToolTurn:
        from PIL import Image

        side_px = IMAGE_PX if max_image_px is None else min(IMAGE_PX, max(1, math.isqrt(max_image_px)))
        image = Content(image=store.add_image(Image.new("RGB", (side_px, side_px), (200, 30, 30))))
        question = Content(text="What color is the image? Answer with one word.")
        if not tools:
            return cls(question=Message(role="user", content=(image, question)), answer=None, result=None)
        call = ToolCall(id="check/0-call-0", name=tools[0].name, arguments={})
        return cls(
            question=Message(role="user", content=(question,)),
            answer=Message(role="assistant", reasoning=" ".join(["look"] * NUM_WORDS), tool_calls=(call,)),
            result=ToolResult(call=call, content=(Content(text="Here it is."), image)),
        )

    @property
    def messages(self) -> tuple[Message, ...]:
        if self.answer is None or self.result is None:
            return (self.question,)
        return (self.question, self.answer, self.result.message)

    def count_tokens(self, tools: Sequence[ToolSpec], renderer: QwenRenderer) -> int:
        """Prompt tokens of a rollout in this process: sampled turns stay as they are, results are appended."""
        if self.answer is None or self.result is None:
            return len(renderer.render_prompt((self.question,), tools).token_ids)
        sampled = renderer.render_conversation((self.question, self.answer), tools)
        return len(sampled.token_ids) + len(renderer.render_tool_results((self.result,)).token_ids)


async def _ask(make_model: MakeModel, options: WireOptions, request: ChatRequest) -> tuple[ChatReply, bool]:
    """The reply, and True when its content closes thinking that it did not open."""
    model = make_model(options)
    try:
        reply = await model.reply(request)
    except RequestRefused:
        raise
    except EngineFault as fault:
        raise EngineFault(_stopped(fault)) from fault
    finally:
        await model.close()
    if reply.finish_reason == "length" and reply.usage is None and not reply.message.content:
        raise ConfigError(
            "The endpoint takes no more tokens than the check before the run needs, about 2,000 and the tools. Start "
            "the server with a larger context (vLLM: --max-model-len), or skip the check with --endpoint.check false."
        )
    return reply, model.stats.num_open_thinking > 0


def _stopped(fault: EngineFault) -> str:
    said = f"The endpoint failed the check before the run, and nothing was sampled: {str(fault).rstrip('.')}."
    if "EngineCore" in said:  # vLLM's word for a dead engine; on a CPU a seeded request can kill it
        said += " If the server's log blames the generator of a seed, run with --endpoint.omit '[\"seed\"]'."
    return said


def _check_prompt(
    reply: ChatReply, turn: _ToolTurn, tools: Sequence[ToolSpec], renderer: QwenRenderer, dialect: Dialect
) -> None:
    """Raise `ConfigError` when the server's prompt is not the one that the checkpoint was trained to read."""
    if reply.usage is None:
        return
    found, expected = reply.usage.prompt_tokens, turn.count_tokens(tools, renderer)
    if found == expected:
        return
    cause = "Its chat template, its image limits (min_pixels, max_pixels) or a default system prompt differ."
    if found < NUM_WORDS < expected:
        cause = "The thinking of earlier turns does not reach the model."
        if dialect == "openai":
            cause += " The openai dialect does not send it."
    raise ConfigError(
        f"endpoint: the server makes {found} prompt tokens of a tool turn, its checkpoint {expected}. {cause} Start "
        "the server with the checkpoint's own files, or evaluate all the same with --endpoint.check false."
    )


def _check_ending(reply: ChatReply) -> None:
    """Raise `ConfigError` for a cut-off reply when nothing shows whether it is thinking or an answer."""
    message = reply.message
    if reply.finish_reason == "length" and message.reasoning is None and message.text and not message.tool_calls:
        raise ConfigError(
            "endpoint: the reply to the check before the run was cut off, and nothing shows whether it is thinking or "
            "an answer. Start the server with a reasoning parser (vLLM: --reasoning-parser deepseek_r1), or name the "
            "served checkpoint: --endpoint.checkpoint."
        )


def _note_lost_thinking(reply: ChatReply, options: WireOptions, turn: _ToolTurn) -> list[str]:
    if reply.usage is None or turn.answer is None or options.dialect != "vllm" or reply.usage.prompt_tokens > NUM_WORDS:
        return []
    return [
        f"The prompt of a tool turn with {NUM_WORDS} words of thinking has {reply.usage.prompt_tokens} tokens: the "
        "thinking of earlier turns does not reach the model. Its chat template drops it, or the server does not read "
        "reasoning_content."
    ]
