"""Dialogues as messages: demonstrations, transcripts, and what a scorer made of one. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from axpo.errors import RecordError
from axpo.types import JsonValue, Message, StopReason, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A demonstration for supervised fine-tuning: assistant turns learn, everything else is context."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[str, ...] | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=lambda: cast("dict[str, JsonValue]", {}))

    def __post_init__(self) -> None:
        if not any(message.role == "assistant" for message in self.messages):
            raise RecordError(f"Conversation {self.id}: needs at least one assistant message")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a dialogue's model calls, added up, as whoever sampled them counted."""

    prompt_tokens: int = 0
    """The context is counted again at every call."""
    completion_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A whole dialogue as messages: all that is known of one which a chat endpoint sampled.

    A `Rollout` has the same in tokens; `axpo.rollout.transcripts` reads one from it.
    """

    id: str
    problem_id: str
    prompt: tuple[Message, ...]
    turns: tuple[Message, ...]
    """The assistant's messages, in order."""
    tool_results: tuple[ToolResult, ...]
    """Of the calls of all turns, in order. The calls of the last turn have none when a limit ended the dialogue."""
    stop_reason: StopReason
    final_text: str
    """Visible text of the last turn; what a scorer reads. Empty when the dialogue did not get there."""
    usage: TokenUsage = TokenUsage()
    first_prompt_tokens: int | None = None
    """Of the first call: the question with its pictures; None when nobody counted."""
    wall_time_s: float = 0.0

    def __post_init__(self) -> None:
        strangers = [message.role for message in self.turns if message.role != "assistant"]
        if strangers:
            raise RecordError(f"Transcript {self.id}: a turn of role {strangers[0]!r}, expected assistant")
        num_calls = sum(len(turn.tool_calls) for turn in self.turns)
        if len(self.tool_results) > num_calls:
            raise RecordError(f"Transcript {self.id}: {len(self.tool_results)} results of {num_calls} calls")

    @property
    def uses_tool(self) -> bool:
        """True when the policy opened a tool call, whether or not it parsed or ran."""
        return any(turn.tool_calls for turn in self.turns)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything as one conversation: a tool message for each result stands after the turn that asked for it."""
        messages, results = list(self.prompt), iter(self.tool_results)
        for turn in self.turns:
            messages.append(turn)
            messages.extend(result.message for _, result in zip(turn.tool_calls, results, strict=False))
        return tuple(messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a scorer made of one final text, and by which rule."""

    is_correct: bool
    rule: str
    """What decided: `letter`, `float`, `judge`, `no_answer`, ... ; each benchmark's page names its rules."""
    answer: str | None = None
    """The final answer as it was read from the text; None when there is none."""
    extraction: str = "none"
    """Which rule found it, see `axpo.rewards.answers`."""
    letter: str | None = None
    """In a multiple-choice question, the option that the answer names, right or wrong, as a capital letter."""
    is_decided: bool = True
    """False: no rule applies, only a judge could tell. It counts as wrong until one has."""
    scores: Mapping[str, float] = field(default_factory=lambda: cast("dict[str, float]", {}))
    """Further numbers of the benchmark, such as `f1`, in 0..1."""
    note: str = ""
    """Which judge decided, or why it could not."""
