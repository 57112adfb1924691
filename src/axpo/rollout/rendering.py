"""Messages into the model's own tokens, sampled tokens back into calls and text.

The checkpoint's chat template decides the wording of every turn; this module asks it, tokenises what it says and
expands image placeholders. Three promises (`docs/rendering.md` shows them token by token):

- What the policy sampled stays as it is. A tool turn is what the template writes *after* the end-of-turn token,
  tokenised by itself and appended.
- Text from outside (questions, tools and their results) cannot become a control token: `<|im_end|>` in a tool's output
  is read as ten characters, not as the end of a turn.
- A demonstration is built from the same pieces as a rollout, hence has the same tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from axpo.errors import CheckpointError, DataError
from axpo.protocols import ParsedTurn, RenderedConversation, RenderedTokens
from axpo.rollout.bounds import cut_mark
from axpo.rollout.calls import read_call
from axpo.rollout.checkpoint import check_files, generation_stops, load_part
from axpo.types import Content, ImageRef, JsonValue, Message, Segment, SegmentKind, ToolCall, ToolResult, ToolSpec
from axpo.workers import WorkerPool, WorkError

THINK_TAGS = ("<think>", "</think>")
CALL_TAGS = ("<tool_call>", "</tool_call>")
RESULT_TAGS = ("<tool_response>", "</tool_response>")
IMAGE_PAD = "<|image_pad|>"
FORBIDDEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
    *RESULT_TAGS,
)
"""Never sampled: a picture nobody took, a turn or a tool result nobody wrote, padding. Stop tokens are exempt."""

# A noncharacter, which Unicode reserves for use inside a program. It marks where a control token's text is cut in two.
_CUT = "\ufdd0"
# Whose text may hold which tags as tags: the developer's (system) all, a demonstration's its own, others none.
_TAGS_OF_ROLE = {
    "system": (*THINK_TAGS, *CALL_TAGS, *RESULT_TAGS),
    "assistant": (*THINK_TAGS, *CALL_TAGS),
    "user": (),
    "tool": (),
}

_QUESTION = Message(role="user", content=(Content(text="question"),))
_TOOL = ToolSpec(name="tool", description="what-it-does", parameters={"type": "object"})
_CALL = ToolCall(id="call-0", name="tool", arguments={"key": 1})
_CALLING_TURN = Message(role="assistant", reasoning="thinking", tool_calls=(_CALL,))
_TOOL_TURN = Message(role="tool", content=(Content(text="result"),))
_ANSWER = "the-answer"
_ANSWER_TURN = Message(role="assistant", reasoning="thinking", content=(Content(text=_ANSWER),))

OWN_TEMPLATE_SHA256 = "cb82f04c8d52454bdbdcb69c90ebd8d8c3db46697c732e795a3c344bb57b4d57"
"""The template of `axpo.models.scratch`. It is known to end; any other is rendered in a worker process."""
RENDER_CPU_S = 5.0
"""Processor time that rendering one dialogue may take."""
_RENDER = "axpo.rollout.template_worker:render"
_template_workers = WorkerPool(size=1)  # not shared: the event loop must not wait for a slow page


class ImageTokenCounter(Protocol):
    """Knows how many placeholder tokens a picture takes; see `axpo.models.preprocessing.ImagePreprocessor`."""

    def num_tokens(self, ref: ImageRef) -> int:
        """Visual tokens of one picture, after merging."""
        ...


class QwenRenderer:
    """`axpo.protocols.Renderer` for checkpoints that speak Qwen's format: `<think>`, `<tool_call>` JSON, ChatML.

    Template, token ids and stop tokens are the checkpoint's own. Raises `CheckpointError` when a tag is not a single
    token, or when the template rewrites a turn once tool results follow it: a rollout only ever appends.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        preprocessor: ImageTokenCounter,
        vocab_size: int,
        stop_token_ids: Sequence[int] = (),
        name: str = "checkpoint",
    ) -> None:
        """`vocab_size`: outputs of the model. `stop_token_ids`: further ones beside the end-of-turn token."""
        self._tokenizer = tokenizer
        self._preprocessor = preprocessor
        self._name = name
        self._vocab: dict[str, int] = tokenizer.get_vocab()
        self._think_open, self._think_close = (self._tag_id(tag) for tag in THINK_TAGS)
        self._tool_open, self._tool_close = (self._tag_id(tag) for tag in CALL_TAGS)
        self._image_pad = self._tag_id(IMAGE_PAD)
        controls = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        controls.update(text for text in (*FORBIDDEN_TOKENS, *THINK_TAGS, *CALL_TAGS) if text in self._vocab)
        self._guards = {role: _occurrences(controls - set(tags)) for role, tags in _TAGS_OF_ROLE.items()}
        try:
            self._prompt, self._end_of_turn, self._num_ends = self._probe_template(controls)
        except DataError as error:
            raise CheckpointError(f"{name}: its chat template cannot be used: {error}") from error
        self._stop_token_ids = tuple(dict.fromkeys((self._vocab[self._end_of_turn], *stop_token_ids)))
        self._banned_token_ids = self._find_banned(vocab_size)
        self._check_tools()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, preprocessor: ImageTokenCounter) -> QwenRenderer:
        """Renderer of a checkpoint folder or hub id. Raises `CheckpointError` naming what is missing."""
        from transformers import AutoConfig, AutoTokenizer

        check_files(path)
        tokenizer: Any = load_part(AutoTokenizer, path, "tokenizer")
        config: Any = load_part(AutoConfig, path, "config")
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{path}: has no chat template. Put the model's own chat_template.jinja next to its tokenizer.json."
            )
        expected = tokenizer.get_vocab().get(IMAGE_PAD)
        configured = getattr(config, "image_token_id", expected)
        if configured != expected:
            raise CheckpointError(
                f"{path}: config.json gives image placeholders the id {configured}, its tokenizer the id {expected}. "
                "Tokenizer and model belong to different checkpoints."
            )
        return cls(
            tokenizer,
            preprocessor=preprocessor,
            vocab_size=config.get_text_config().vocab_size,
            stop_token_ids=generation_stops(path),
            name=str(path),
        )

    # -- what the checkpoint decides ----------------------------------------------------------------------------------

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token, then the end tokens of the checkpoint's generation config."""
        return self._stop_token_ids

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids the policy must never sample: `FORBIDDEN_TOKENS`, padding, ids of the output layer without a token."""
        return self._banned_token_ids

    @property
    def has_open_thinking(self) -> bool:
        """True when the generation prompt ends inside a thinking block (Thinking models), False for Instruct models."""
        opened, closed = (self._prompt.rfind(tag) for tag in THINK_TAGS)
        return opened > closed

    def _tag_id(self, tag: str) -> int:
        if tag not in self._vocab:
            raise CheckpointError(
                f"{self._name}: {tag} is not a single token of its tokenizer. Expected a Qwen3-VL checkpoint (Thinking "
                "or Instruct), whose tags for thinking, tool calls and images are one token each."
            )
        return self._vocab[tag]

    def _probe_template(self, controls: Iterable[str]) -> tuple[str, str, int]:
        """Generation prompt, end-of-turn token, and how many of those stand in a dialogue up to a tool result."""
        prompt = self._render((_QUESTION,))
        calling = self._render((_QUESTION, _CALLING_TURN), is_prompt=False)
        resumed = self._render((_QUESTION, _CALLING_TURN, _TOOL_TURN))
        answered = self._render((_QUESTION, _ANSWER_TURN), is_prompt=False)
        for earlier, later, what in (
            (prompt, calling, "an assistant turn does not begin with the generation prompt"),
            (calling, resumed, "a tool result changes the turns before it"),
        ):
            if not later.startswith(earlier):
                raise CheckpointError(
                    f"{self._name}: its chat template cannot be continued token by token: {what}. "
                    "Expected the published template of a Qwen3-VL checkpoint."
                )
        rest = answered.rpartition(_ANSWER)[2]
        ends = [control for control in controls if rest.startswith(control)]
        if not ends:
            raise CheckpointError(
                f"{self._name}: its chat template ends an assistant turn with {rest[:20]!r}, expected a special token "
                "such as <|im_end|>."
            )
        return prompt, ends[0], calling.count(ends[0])

    def _check_tools(self) -> None:
        """The template must list tools, and write a call the way `parse_turn` reads it."""
        listed = _TOOL.description in self._render((_QUESTION,), (_TOOL,))
        text = self._render((_QUESTION, _CALLING_TURN), is_prompt=False)[len(self._prompt) :]
        calls = self.parse_turn(self._tokenize(text, ()).token_ids).tool_calls
        if not listed or [(call.name, call.arguments) for call in calls] != [(_CALL.name, _CALL.arguments)]:
            raise CheckpointError(
                f"{self._name}: its chat template {'lists' if listed else 'does not list'} tools and writes a call as "
                f"{text!r}. Expected a listing, and calls as JSON between {' and '.join(CALL_TAGS)}, as in the "
                "published template of a Qwen3-VL checkpoint."
            )

    def _find_banned(self, vocab_size: int) -> tuple[int, ...]:
        known = set(self._vocab.values())
        if max(known) >= vocab_size:
            raise CheckpointError(
                f"{self._name}: its tokenizer has ids up to {max(known)}, its model only {vocab_size} outputs. "
                "Tokenizer and model belong to different checkpoints."
            )
        named = (*FORBIDDEN_TOKENS, self._tokenizer.pad_token)
        banned = {self._vocab[token] for token in named if token in self._vocab}
        unused = set(range(vocab_size)) - known
        return tuple(sorted((banned | unused) - set(self._stop_token_ids)))

    # -- text to tokens -----------------------------------------------------------------------------------------------

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedTokens:
        """The prompt up to where the policy starts to sample (the opened thinking tag of a Thinking model included)."""
        return self._tokenize(self._render(messages, tools), _images(messages))

    def render_tool_results(self, results: Sequence[ToolResult]) -> RenderedTokens:
        """What follows a sampled turn (its end-of-turn token included) up to where the policy samples again.

        The model reads a failure's message in the place of the content.
        """
        return self._render_after_turn([result.message for result in results])

    def render_conversation(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedConversation:
        """A demonstration, token for token what the policy would see and sample in a rollout.

        Thinking of earlier turns stays in context, as it does in a rollout. Raises `DataError` when the dialogue cannot
        be one: it must end with an assistant turn, and something must stand between two of them.
        """
        token_ids: list[int] = []
        segments: list[Segment] = []
        images: list[ImageRef] = []
        for context, turn in _split_turns(messages):
            if token_ids:
                kind = SegmentKind.TOOL_RESULT if context[0].role == "tool" else SegmentKind.PROMPT
                rendered = self._render_after_turn(context)
            else:
                kind = SegmentKind.PROMPT
                rendered = self.render_prompt(context, tools)
            segments.append(Segment(kind=kind, start=len(token_ids), stop=len(token_ids) + len(rendered.token_ids)))
            token_ids.extend(rendered.token_ids)
            images.extend(rendered.images)
            turn_ids = self._tokenize(self._sampled_text(turn), ()).token_ids
            segments.extend(_shift(self.parse_turn(turn_ids).segments, by=len(token_ids)))
            token_ids.extend(turn_ids)
        return RenderedConversation(token_ids=tuple(token_ids), segments=tuple(segments), images=tuple(images))

    def _render_after_turn(self, messages: Sequence[Message]) -> RenderedTokens:
        text = self._render((_QUESTION, _CALLING_TURN, *messages))
        return self._tokenize(text.split(self._end_of_turn, self._num_ends)[-1], _images(messages))

    def _sampled_text(self, turn: Message) -> str:
        """What a policy samples to produce `turn`: the template's text between generation prompt and end of turn."""
        text = self._render((_QUESTION, turn), is_prompt=False)
        if not text.startswith(self._prompt):
            raise DataError(
                f"assistant turn {turn.text[:40]!r}: the chat template of {self._name} does not write it as a "
                "continuation of its own generation prompt."
            )
        sampled = text[len(self._prompt) :].rpartition(self._end_of_turn)[0] + self._end_of_turn
        if turn.reasoning and THINK_TAGS[1] not in sampled:
            raise DataError(
                f"assistant turn {turn.text[:40]!r} has thinking, but the chat template of {self._name} has no place "
                "for it. Use a Thinking checkpoint or remove the thinking."
            )
        return sampled

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, is_prompt: bool = True) -> str:
        dialogue = [self._template_message(message) for message in messages]
        listed = [self._template_tool(tool) for tool in tools] or None
        try:
            template: str = self._tokenizer.get_chat_template(tools=listed)
            if hashlib.sha256(template.encode()).hexdigest() == OWN_TEMPLATE_SHA256:
                return self._tokenizer.apply_chat_template(
                    dialogue, tools=listed, tokenize=False, add_generation_prompt=is_prompt
                )
            names = self._tokenizer.special_tokens_map
            return _template_workers.run(_RENDER, template, dialogue, listed, is_prompt, names, cpu_s=RENDER_CPU_S)
        except DataError as error:
            raise DataError(f"the chat template of {self._name} refuses this dialogue: {error}") from error
        except WorkError as error:
            raise CheckpointError(
                f"{self._name}: its chat template cannot be rendered: {error}. Expected the published template of a "
                "Qwen3-VL checkpoint."
            ) from error

    def _template_tool(self, tool: ToolSpec) -> dict[str, Any]:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        # an MCP server writes it: a tag in a description is text
        return {"type": "function", "function": self._guard_values(function, "tool")}

    def _template_message(self, message: Message) -> dict[str, Any]:
        role = message.role
        rendered: dict[str, Any] = {"role": role, "content": self._guard(message.text, role)}
        if message.images:
            rendered["content"] = self._template_blocks(message)
        if message.reasoning is not None:
            rendered["reasoning_content"] = self._guard(message.reasoning, role)
        if message.tool_calls:
            # a tag inside an argument is text; if it were a tag, it would end the call
            calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
            rendered["tool_calls"] = [{"type": "function", "function": self._guard_values(c, "tool")} for c in calls]
        return rendered

    def _template_blocks(self, message: Message) -> list[dict[str, str]]:
        blocks: list[dict[str, str]] = []
        for is_image, run in itertools.groupby(message.content, key=lambda block: block.image is not None):
            if is_image:
                blocks.extend({"type": "image"} for _ in run)
            else:
                # joined first: two harmless blocks could spell a control token between them
                text = "".join(block.text or "" for block in run)
                blocks.append({"type": "text", "text": self._guard(text, message.role)})
        return blocks

    def _guard(self, text: str, role: str) -> str:
        """`text` with a cut inside whatever spells a control token that `role` may not write."""
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return self._guards[role].sub(rf"\1{_CUT}", whole.replace(_CUT, "\ufffd"))

    def _guard_values(self, value: JsonValue, role: str) -> JsonValue:
        if isinstance(value, str):
            return self._guard(value, role)
        if isinstance(value, Mapping):
            pairs = cast("Mapping[str, JsonValue]", value).items()
            return {self._guard(key, role): self._guard_values(item, role) for key, item in pairs}
        if isinstance(value, (list, tuple)):
            return [self._guard_values(item, role) for item in cast("Sequence[JsonValue]", value)]
        return value

    def _tokenize(self, text: str, images: Sequence[ImageRef]) -> RenderedTokens:
        pieces = (piece for piece in text.split(_CUT) if piece)
        token_ids = [i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False)]
        num_placeholders = token_ids.count(self._image_pad)
        if num_placeholders != len(images):
            raise CheckpointError(
                f"{self._name}: its chat template wrote {num_placeholders} image placeholders for {len(images)} "
                "images. Expected one each; the template has to know images in messages of every role that brings them."
            )
        counts = map(self._preprocessor.num_tokens, images)
        expanded = ([i] * next(counts) if i == self._image_pad else [i] for i in token_ids)
        return RenderedTokens(token_ids=tuple(itertools.chain.from_iterable(expanded)), images=tuple(images))

    # -- tokens to text -----------------------------------------------------------------------------------------------

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens shown."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def shorten(self, text: str, max_tokens: int) -> str:
        """`text`, or its beginning and end with a mark between them, `max_tokens` tokens in all without the mark."""
        if len(text.encode(errors="replace")) <= max_tokens:  # a token is at least one byte
            return text
        num_chars = _MAX_CHARS_PER_TOKEN * max_tokens  # never tokenize what is thrown away anyway
        ends = self._offsets(text[:num_chars])
        if len(text) <= num_chars and len(ends) <= max_tokens:
            return text
        num_tail = max_tokens // 2
        head = ends[: max_tokens - num_tail][-1][1]
        last = text[-num_chars:]
        tail = len(last) - self._offsets(last)[-num_tail:][0][0] if num_tail else 0
        if head + tail >= len(text):
            return text
        return text[:head] + cut_mark(len(text) - head - tail, "characters") + text[len(text) - tail :]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token lies in the text."""
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping

    def parse_turn(self, token_ids: Sequence[int], *, has_open_thinking: bool | None = None) -> ParsedTurn:
        """Take a sampled turn apart by token ids.

        `has_open_thinking`: the prompt ended inside an open thinking block; None: as this template's generation prompt.
        A model whose prompt leaves the block closed may open one itself with the turn's first token. When a branch
        resumes after the opening tool-call tag, pass the inherited part of the turn along with the sampled part.
        """
        ids = tuple(token_ids)
        if has_open_thinking is None:
            has_open_thinking = self.has_open_thinking
        thinks = has_open_thinking or ids[:1] == (self._think_open,)
        if thinks and self._think_close not in ids:
            return ParsedTurn(
                segments=_segments((SegmentKind.THINKING, len(ids))),
                tool_calls=(),
                visible_text="",
                num_calls_in_thinking=ids.count(self._tool_open),
            )
        visible = ids.index(self._think_close) + 1 if thinks else 0
        num_in_thinking = ids[:visible].count(self._tool_open)
        end = len(ids) - 1 if ids and ids[-1] in self._stop_token_ids else len(ids)
        opens = [i for i in range(visible, end) if ids[i] == self._tool_open]
        if not opens:
            segments = _segments((SegmentKind.THINKING, visible), (SegmentKind.ANSWER, len(ids)))
            return ParsedTurn(
                segments=segments,
                tool_calls=(),
                visible_text=self.decode(ids[visible:end]).strip(),
                num_calls_in_thinking=num_in_thinking,
            )

        stops = [(SegmentKind.THINKING, visible)]
        calls: list[ToolCall] = []
        for number, (start, limit) in enumerate(itertools.pairwise((*opens, end))):
            # a second opening tag ends a call that was never closed
            close = ids.index(self._tool_close, start, limit) if self._tool_close in ids[start:limit] else None
            body_stop = limit if close is None else close
            calls.append(read_call(number, self.decode(ids[start + 1 : body_stop]), is_closed=close is not None))
            stops += [(SegmentKind.TEXT, start), (SegmentKind.TOOL_OPEN, start + 1), (SegmentKind.TOOL_CALL, body_stop)]
            if close is not None:
                stops.append((SegmentKind.TOOL_CLOSE, close + 1))
        segments = _segments(*stops, (SegmentKind.TEXT, len(ids)))
        text = "".join(self.decode(ids[s.start : min(s.stop, end)]) for s in segments if s.kind is SegmentKind.TEXT)
        return ParsedTurn(
            segments=segments,
            tool_calls=tuple(calls),
            visible_text=text.strip(),
            num_calls_in_thinking=num_in_thinking,
        )


# -- pieces of dialogues ----------------------------------------------------------------------------------------------


_MAX_CHARS_PER_TOKEN = 16
"""Of text worth keeping: what is beyond it at both ends is not even looked at."""


def _images(messages: Iterable[Message]) -> tuple[ImageRef, ...]:
    return tuple(image for message in messages for image in message.images)


def _split_turns(messages: Sequence[Message]) -> list[tuple[list[Message], Message]]:
    """Each assistant turn with the messages before it. Raises `DataError` when they do not alternate."""
    pairs: list[tuple[list[Message], Message]] = []
    context: list[Message] = []
    for position, message in enumerate(messages):
        if message.role != "assistant":
            context.append(message)
            continue
        if not context:
            before = "another assistant message" if position else "nothing"
            raise DataError(f"message {position}: an assistant turn must follow a user or tool message, not {before}")
        pairs.append((context, message))
        context = []
    if context or not pairs:
        last = repr(messages[-1].role) if messages else "nothing"
        raise DataError(f"a demonstration must end with an assistant turn, this one ends with {last}")
    return pairs


def _segments(*stops: tuple[SegmentKind, int]) -> tuple[Segment, ...]:
    """Segments that tile from 0, given where each ends; empty ones are left out."""
    starts = (0, *(stop for _, stop in stops))
    return tuple(
        Segment(kind=kind, start=start, stop=stop)
        for start, (kind, stop) in zip(starts, stops, strict=False)
        if start < stop
    )


def _shift(segments: Iterable[Segment], *, by: int) -> Iterable[Segment]:
    return (Segment(kind=s.kind, start=s.start + by, stop=s.stop + by) for s in segments)


def _occurrences(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches (as group 1) the first character of every occurrence of `texts`, overlapping ones included."""
    return re.compile(rf"(?={'|'.join(map(re.escape, sorted(texts)))})(.)", re.DOTALL)


# -- loading ----------------------------------------------------------------------------------------------------------
