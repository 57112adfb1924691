"""The records that travel between the parts. Standard library only.

All records are frozen, slotted and keyword-only, check their own invariants at construction and round-trip through
JSON (`axpo.codec`). One word per concept:

    Problem -> Rollout (made of Segments) -> RolloutGroup -> ThinkingPrefix -> ResamplePlan -> ContinuationGroup
            -> TrainingRow

Log-probabilities are natural logarithms (nats). Token ranges are half-open. Times are seconds, image sizes pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, cast

from axpo.errors import RecordError

JsonValue = Any  # str | int | float | bool | None | list | dict, as `json.loads` returns it


class StopReason(StrEnum):
    """Why a rollout ended."""

    ANSWERED = "answered"  # the policy ended its turn without a tool call
    TURN_LIMIT = "turn_limit"  # it asked for one more tool call than the limit allows
    TOKEN_LIMIT = "token_limit"  # the response is full, or a tool result would fill it
    TIME_LIMIT = "time_limit"  # the wall-clock limit passed

    @property
    def is_truncated(self) -> bool:
        """True when a limit, not the policy, ended the rollout."""
        return self is not StopReason.ANSWERED


class SegmentKind(StrEnum):
    """What a range of tokens is. Everything but `PROMPT` and `TOOL_RESULT` was sampled by the policy."""

    PROMPT = "prompt"
    THINKING = "thinking"  # up to and including the closing tag of the thinking block
    TOOL_OPEN = "tool_open"  # exactly the opening tool-call tag
    TOOL_CALL = "tool_call"  # the body of the call, between the tags
    TOOL_CLOSE = "tool_close"  # exactly the closing tool-call tag
    TOOL_RESULT = "tool_result"  # template glue, the tool's text and images, and the next generation prompt
    ANSWER = "answer"  # visible text of a turn without a call, end-of-turn token included
    TEXT = "text"  # visible text of a turn with a call: around the call, end-of-turn token included

    @property
    def is_sampled(self) -> bool:
        """True when the policy sampled these tokens."""
        return self not in (SegmentKind.PROMPT, SegmentKind.TOOL_RESULT)


class FailureKind(StrEnum):
    """Why a tool call gave no result. `is_model_fault` says who is to blame."""

    MALFORMED_CALL = "malformed_call"  # not a JSON object with a name and arguments, or no closing tag
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    EXECUTION_ERROR = "execution_error"  # what the model asked for raised an error
    TIMEOUT = "timeout"  # what the model asked for took too long
    TOOL_FAULT = "tool_fault"  # ours: sandbox lost, quota used up, worker killed

    @property
    def is_model_fault(self) -> bool:
        """False only for a fault of ours, which never costs the policy reward."""
        return self is not FailureKind.TOOL_FAULT


class RowRole(StrEnum):
    """Where a training row comes from."""

    ROLLOUT = "rollout"  # an ordinary rollout: every sampled token learns
    PREFIX = "prefix"  # a resampled source: only its thinking prefix learns
    CONTINUATION = "continuation"  # a continuation: only what follows the inherited prefix learns
    DEMONSTRATION = "demonstration"  # supervised fine-tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image by content. The bytes live once in an `axpo.images.ImageStore`."""

    sha256: str
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64:
            raise RecordError(f"ImageRef: sha256 must be 64 hex digits, got {self.sha256!r}")
        if self.width_px < 1 or self.height_px < 1:
            raise RecordError(
                f"ImageRef {self.sha256[:12]}: size must be positive, got {self.width_px}x{self.height_px}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One block of a message: text or an image, never both."""

    text: str | None = None
    image: ImageRef | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise RecordError("Content: exactly one of text and image must be given")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a model is told about a tool: the OpenAI function schema without its wrapper."""

    name: str
    description: str
    parameters: Mapping[str, JsonValue]
    """JSON schema of the arguments, an object schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call as the policy wrote it. A malformed call is a value with `parse_error`, not an exception."""

    id: str
    name: str
    arguments: Mapping[str, JsonValue] = field(default_factory=lambda: cast("dict[str, JsonValue]", {}))
    raw: str = ""
    """The text between the tags."""
    parse_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFailure:
    """Why a call gave no result. `message` is what the model gets to read."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """Outcome of one call: content or a failure."""

    call: ToolCall
    content: tuple[Content, ...] = ()
    failure: ToolFailure | None = None
    wall_time_s: float = 0.0
    """From the call to its result, waiting included."""
    queue_time_s: float = 0.0
    """How long the call waited for other calls of the tool."""
    num_tries: int = 1
    """More than one after faults of ours."""
    is_cached: bool = False
    """The tool answered from its cache."""
    is_cut: bool = False
    """The result was too large and lost a part, which is marked."""

    def __post_init__(self) -> None:
        if bool(self.content) == (self.failure is not None):
            raise RecordError(f"ToolResult {self.call.id}: exactly one of content and failure must be given")

    @property
    def message(self) -> Message:
        """What the model reads of it: the content, or the failure's message in its place."""
        content = self.content if self.failure is None else (Content(text=self.failure.message),)
        return Message(role="tool", content=content, tool_call_id=self.call.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. `reasoning` is the thinking of an assistant turn, without its tags."""

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[Content, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool message: the call it answers."""

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block.text for block in self.content if block.text is not None)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images, in order."""
        return tuple(block.image for block in self.content if block.image is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with a checkable answer. `id` is unique in its data set; zero images is legal."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    answer_kind: str = "text"
    """Which reward judges it: a key of the reward table, see `axpo.rewards`."""
    tools: tuple[str, ...] | None = None
    """Names of the tools offered; None: all of the run's."""
    metadata: Mapping[str, JsonValue] = field(default_factory=lambda: cast("dict[str, JsonValue]", {}))

    def __post_init__(self) -> None:
        if not self.id:
            raise RecordError("Problem: id must not be empty")
        if not any(message.role == "user" for message in self.messages):
            raise RecordError(f"Problem {self.id}: needs at least one user message")

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images of the prompt, in order."""
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample. `temperature=0` is greedy; `top_k=0` and `top_p=1` switch truncation off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that this request has sampled before; 0 in training."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise RecordError(f"SamplingParams: need temperature >= 0, 0 < top_p <= 1, top_k >= 0; got {self}")
        if not -2 <= self.presence_penalty <= 2:
            raise RecordError(f"SamplingParams: need a presence_penalty of -2 to 2, got {self.presence_penalty}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One call of an engine: continue `token_ids` until a stop token or `max_new_tokens`."""

    token_ids: tuple[int, ...]
    images: tuple[ImageRef, ...]
    """In the order of their placeholders in `token_ids` (placeholders are expanded: one id per visual token)."""
    max_new_tokens: int
    sampling: SamplingParams
    seed: int
    """Alone decides the random choices of this request, whatever else is in the batch."""
    time_limit_s: float = math.inf
    """Time after the first token at which the engine ends the completion with what it has sampled, by "length"."""


def _check_logprobs(owner: str, logprobs: Iterable[float]) -> None:
    # NaN compares false with everything. By rounding an engine may report a log-prob just above zero.
    bad = [value for value in logprobs if not -math.inf < value <= 1e-6]
    if bad:
        raise RecordError(
            f"{owner}: log-probs of sampled tokens must be finite and <= 0 (natural logarithms of probabilities), "
            f"got {bad[:3]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled. The stop token is included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[num_tokens] log-probability of each sampled token under the tempered, un-truncated policy, in nats."""
    finish_reason: Literal["stop", "length"]
    policy_version: int

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise RecordError(f"Completion: {len(self.token_ids)} tokens but {len(self.logprobs)} log-probs")
        _check_logprobs("Completion", self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A half-open range of a rollout's tokens."""

    kind: SegmentKind
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise RecordError(f"Segment {self.kind}: need 0 <= start < stop, got [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRef:
    """Where a continuation's first tokens come from: `num_tokens` ids of rollout `source_id`, prompt included."""

    source_id: str
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A whole dialogue in tokens: prompt, what the policy sampled, what the tools answered.

    Example: `[prompt 0:40) [thinking 40:55) [tool_open 55:56) [tool_call 56:80) [tool_close 80:81) [text 81:82)
    [tool_result 82:110) [thinking 110:118) [answer 118:126)`.
    """

    id: str
    problem_id: str
    token_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...]
    """[num_tokens], finite and <= 0 where the token was sampled; elsewhere (prompt, tool results) 0.0, never read."""
    segments: tuple[Segment, ...]
    """They tile `token_ids` without gap or overlap."""
    images: tuple[ImageRef, ...]
    """In the order of their placeholders in `token_ids`."""
    stop_reason: StopReason
    final_text: str
    """Visible text of the last turn; what the reward reads. Empty when the rollout did not get there."""
    reward: float
    """Finite; 1.0 and above counts as correct."""
    tool_results: tuple[ToolResult, ...] = ()
    prefix: PrefixRef | None = None
    num_calls_in_thinking: int = 0
    """Opening tool-call tags inside thinking. They are no calls: nothing is run and no tool is used."""
    policy_version: int = 0
    wall_time_s: float = 0.0

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        if len(self.behavior_logprobs) != num_tokens:
            raise RecordError(f"Rollout {self.id}: {num_tokens} tokens but {len(self.behavior_logprobs)} log-probs")
        expected = 0
        for segment in self.segments:
            if segment.start != expected:
                raise RecordError(
                    f"Rollout {self.id}: segments must tile the tokens; {segment} should start at {expected}"
                )
            expected = segment.stop
        if expected != num_tokens:
            raise RecordError(f"Rollout {self.id}: segments end at {expected}, tokens at {num_tokens}")
        for segment in self.segments:
            if segment.kind.is_sampled:
                _check_logprobs(f"Rollout {self.id}", self.behavior_logprobs[segment.start : segment.stop])
        if not math.isfinite(self.reward):
            raise RecordError(f"Rollout {self.id}: the reward must be finite, got {self.reward}; check its function")
        if self.prefix is not None and not 0 < self.prefix.num_tokens < num_tokens:
            raise RecordError(f"Rollout {self.id}: prefix of {self.prefix.num_tokens} tokens in {num_tokens}")

    @property
    def uses_tool(self) -> bool:
        """True when the policy opened a tool call, whether or not it parsed or ran."""
        return any(segment.kind is SegmentKind.TOOL_OPEN for segment in self.segments)

    @property
    def is_correct(self) -> bool:
        """True when the binary reward is 1."""
        return self.reward >= 1.0

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that this rollout sampled itself: those of an inherited prefix are not counted."""
        inherited = self.prefix.num_tokens if self.prefix is not None else 0
        return sum(max(0, s.stop - max(s.start, inherited)) for s in self.segments if s.kind.is_sampled)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The siblings of one question. A sibling dropped for a fault of ours is simply absent."""

    problem_id: str
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        strangers = [rollout.id for rollout in self.rollouts if rollout.problem_id != self.problem_id]
        if strangers:
            raise RecordError(f"RolloutGroup {self.problem_id}: holds rollouts of other problems: {strangers[:3]}")

    @property
    def tool_using(self) -> tuple[Rollout, ...]:
        """The siblings that opened a tool call."""
        return tuple(rollout for rollout in self.rollouts if rollout.uses_tool)

    @property
    def no_tool(self) -> tuple[Rollout, ...]:
        """The siblings that answered without a call."""
        return tuple(rollout for rollout in self.rollouts if not rollout.uses_tool)

    @property
    def is_triggered(self) -> bool:
        """True when the tool-using subgroup is non-empty and has no correct rollout."""
        return bool(self.tool_using) and not any(rollout.is_correct for rollout in self.tool_using)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingPrefix:
    """The frozen part of a failed rollout: prompt and thinking, up to and including the opening tool-call tag."""

    source: Rollout
    num_tokens: int
    """Prompt included; the last of them is the opening tag."""
    confidence: float
    """Mean probability of the sampled tool-call tokens, in 0..1; the lower, the sooner it is resampled."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence <= 1.0:
            raise RecordError(f"ThinkingPrefix of {self.source.id}: confidence {self.confidence} is outside 0..1")
        ends_at_tag = any(s.kind is SegmentKind.TOOL_OPEN and s.stop == self.num_tokens for s in self.source.segments)
        if not ends_at_tag:
            raise RecordError(
                f"ThinkingPrefix of {self.source.id}: token {self.num_tokens} does not end an opening tag"
            )

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The source's results that lie in the prefix; none when it ends at the first call."""
        return self.source.tool_results[: self._num_calls_answered(self.num_tokens)]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The source's images whose placeholders lie in the prefix."""
        num_seen = self._num_calls_answered(len(self.source.token_ids))
        later = self.source.tool_results[len(self.tool_results) : num_seen]
        num_later = sum(block.image is not None for result in later for block in result.content)
        return self.source.images[: len(self.source.images) - num_later]

    def _num_calls_answered(self, stop: int) -> int:
        """Calls whose results are among the first `stop` tokens: those of every turn that a result follows."""
        segments = [segment for segment in self.source.segments if segment.stop <= stop]
        last = max((s.start for s in segments if s.kind is SegmentKind.TOOL_RESULT), default=0)
        return sum(segment.kind is SegmentKind.TOOL_OPEN and segment.start < last for segment in segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplePlan:
    """Which prefixes get `num_continuations` continuations each. Decided over the whole step."""

    prefixes: tuple[ThinkingPrefix, ...]
    num_continuations: int
    budget: int
    """floor(r * B * N): the most continuations this step may cost."""
    num_triggered: int
    """Questions whose tool-using subgroup is all wrong."""
    num_candidates: int
    """Prefixes that could have been chosen."""

    def __post_init__(self) -> None:
        if self.num_planned > self.budget:
            raise RecordError(f"ResamplePlan: {self.num_planned} continuations exceed the budget of {self.budget}")

    @property
    def num_planned(self) -> int:
        """Continuations this plan asks for."""
        return len(self.prefixes) * self.num_continuations


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationGroup:
    """The continuations of one prefix: their own baseline, never mixed with the siblings."""

    prefix: ThinkingPrefix
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        inherited = self.prefix.source.token_ids[: self.prefix.num_tokens]
        for rollout in self.rollouts:
            if rollout.prefix is None or rollout.prefix.num_tokens != self.prefix.num_tokens:
                raise RecordError(f"ContinuationGroup of {self.prefix.source.id}: {rollout.id} has another prefix")
            if rollout.token_ids[: self.prefix.num_tokens] != inherited:
                raise RecordError(
                    f"ContinuationGroup of {self.prefix.source.id}: {rollout.id} changed inherited tokens"
                )

    @property
    def is_recovered(self) -> bool:
        """True when at least one continuation is correct (arXiv:2605.28774, Eq. 3)."""
        return any(rollout.is_correct for rollout in self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One sequence of a training step with its credit per token."""

    id: str
    role: RowRole
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """[num_tokens]; True where the token learns, only ever on sampled tokens."""
    advantages: tuple[float, ...]
    """[num_tokens]; read only where `loss_mask` is True."""
    behavior_logprobs: tuple[float, ...]
    """[num_tokens]; read only where `loss_mask` is True."""
    images: tuple[ImageRef, ...]
    group_size: int = 1
    """Siblings in the group that gave the baseline: N, or K for continuations."""
    parent: str | None = None
    """Rollout id whose prefix this row inherits."""
    old_logprobs: tuple[float, ...] | None = None
    """[num_tokens]; under the trainer's policy before the first update of the step, read only where `loss_mask` is
    True. None: `behavior_logprobs` are taken for them."""

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        for name in ("loss_mask", "advantages", "behavior_logprobs", "old_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != num_tokens:
                raise RecordError(f"TrainingRow {self.id}: {num_tokens} tokens but {len(values)} {name}")
        _check_logprobs(f"TrainingRow {self.id}", itertools.compress(self.behavior_logprobs, self.loss_mask))
        if self.loss_mask and self.loss_mask[0]:
            raise RecordError(f"TrainingRow {self.id}: the first token has no context and cannot learn")

    @property
    def num_learning_tokens(self) -> int:
        """Tokens with a loss."""
        return sum(self.loss_mask)
