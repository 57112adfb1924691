"""The seams: what an engine, a tool, a reward, a renderer, a tracker must offer.

Pass any object that fits; inherit nothing.

Each seam ships with a public fake: `axpo.engines.scripted.ScriptedEngine`, `axpo.tools.fakes.EchoTool` and
`FailingTool`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from axpo.dialogue import TokenUsage
from axpo.types import (
    Completion,
    Content,
    GenerationRequest,
    ImageRef,
    Message,
    Problem,
    SamplingParams,
    Segment,
    ToolCall,
    ToolResult,
    ToolSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor


# -- engines ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class InferenceEngine(Protocol):
    """Continues token sequences. Concurrent calls of `generate` are batched by the engine as it likes."""

    @property
    def policy_version(self) -> int:
        """Version of the weights it samples from."""
        ...

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample one completion. Raises `axpo.errors.EngineFault` when the engine failed.

        It must end the completion at the request's `time_limit_s` by itself: a turn that the model makes long is the
        model's, an engine that does not answer is an infrastructure failure.
        """
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights (names as in the checkpoint). Returns when the next request will use them."""
        ...

    def close(self) -> None:
        """Release threads and memory; pending requests fail with `EngineFault`."""
        ...


@runtime_checkable
class ChecksummedEngine(InferenceEngine, Protocol):
    """An engine that can prove which weights it runs: one stale update is found however small it was."""

    def weights_checksum(self) -> int:
        """`axpo.models.checksums.weights_checksum` of the weights that the next request will use, read where they are.

        Each weight once, tied and replicated ones too, in the run's `model.dtype`; the sums of shards add up.
        """
        ...


# -- chat models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One call of a chat model: write the next assistant message."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_new_tokens: int
    sampling: SamplingParams
    seed: int
    """A wish: hosted services may not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The message, and what it took."""

    message: Message
    finish_reason: Literal["stop", "length"]
    usage: TokenUsage | None = None
    """None when the service does not say."""


@runtime_checkable
class ChatModel(Protocol):
    """Continues conversations of messages; what a hosted model offers in place of tokens."""

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The next assistant message.

        Raises `axpo.errors.EngineFault` when the service failed at every try, `axpo.errors.QuotaError` when it is used
        up, `axpo.errors.ConfigError` when it refuses what the user asked for (an unknown model, a wrong key).
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


# -- tools ------------------------------------------------------------------------------------------------------------


class ImageStore(Protocol):
    """Holds every image once, by the hash of its encoded bytes."""

    def add_image(self, image: Image) -> ImageRef:
        """Store a picture made in memory (encoded as PNG)."""
        ...

    def load(self, ref: ImageRef) -> Image:
        """The decoded RGB picture."""
        ...

    def encoded(self, ref: ImageRef) -> tuple[bytes, str]:
        """The stored bytes and their file suffix (`png`, `jpg`, ...)."""
        ...


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What a tool may see of the rollout that calls it. One per rollout; a branch gets a fresh one."""

    rollout_id: str
    images: list[ImageRef]
    """Pictures of the dialogue so far, in order; `img_idx` of a call indexes this list. The loop appends the images of
    every tool result to it."""
    store: ImageStore
    state: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    """Free for stateful tools."""
    is_cached: bool = False
    """A tool sets it when it answered the current call from a cache."""
    is_cut: bool = False
    """A tool sets it when it left out a part of the current call's result."""
    waited_s: float = 0.0
    """A tool adds the seconds that the current call waited for others (a rate limit, a restart): not the rollout's."""


@runtime_checkable
class Tool(Protocol):
    """Something the policy may call."""

    @property
    def spec(self) -> ToolSpec:
        """Name, description and argument schema, as the model sees them."""
        ...

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Run a call whose arguments fit the schema.

        Raises `axpo.errors.ToolError` for a mistake of the model (it gets to read the message) and
        `axpo.errors.ToolFault` for a fault of ours; any other exception counts as a fault of ours. When it is
        cancelled (the timeout passed), it must leave nothing running.

        A timeout counts against the model, which asked for too much; see also `SelfTimedTool`.
        """
        ...


@runtime_checkable
class SelfTimedTool(Tool, Protocol):
    """A tool that ends long calls itself and says whether the model or the infrastructure caused them.

    The run's own timeout is then a safety net only: exceeding it is an infrastructure failure.
    """

    @property
    def bounds_its_time(self) -> Literal[True]:
        """Marks such a tool."""
        ...


@runtime_checkable
class StatefulTool(Tool, Protocol):
    """A tool that keeps something for each rollout between its calls.

    A branch that resumes after calls of such a tool has them replayed first, see `axpo.rollout.executor`.
    """

    async def close_rollout(self, context: ToolContext) -> None:
        """The rollout has ended, in whatever way: release what belongs to it. Never called twice for a context."""
        ...


@runtime_checkable
class ClosableTool(Tool, Protocol):
    """A tool that holds processes, connections or files for all rollouts."""

    def close(self) -> None:
        """The run has ended: release everything. Called outside the event loop; calling it again does nothing."""
        ...


@runtime_checkable
class MeteredTool(Tool, Protocol):
    """A tool that counts what it takes from a service."""

    def stats(self) -> dict[str, float]:
        """Counts since the start of the process; `requests` and `cost_usd` (US dollars) are logged."""
        ...


# -- rewards ----------------------------------------------------------------------------------------------------------


class RewardFn(Protocol):
    """Judges the final text of a rollout: 1.0 right, 0.0 wrong."""

    def __call__(self, final_text: str, problem: Problem) -> float:
        """The reward of one rollout."""
        ...


# -- rendering --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedTokens:
    """Token ids with the images whose placeholders they contain, in order."""

    token_ids: tuple[int, ...]
    images: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """A whole demonstration in tokens; `segments` tile `token_ids` like those of a rollout."""

    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    images: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """One sampled assistant turn, taken apart by token ids."""

    segments: tuple[Segment, ...]
    """Tile the turn's tokens, positions counted from the turn's first token."""
    tool_calls: tuple[ToolCall, ...]
    """Calls opened after the thinking closed, malformed ones included."""
    visible_text: str
    """Text after the thinking and around calls, without end-of-turn token and surrounding whitespace; empty when the
    thinking never closed."""
    num_calls_in_thinking: int = 0
    """Opening tool-call tags inside the thinking, which open no call."""


class Renderer(Protocol):
    """Turns messages into the model's own tokens and sampled tokens back into calls and text.

    Sampled ids are never decoded and encoded again: a tool turn is appended as ids.
    """

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn."""
        ...

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids the policy must never sample: image, video and vision placeholders, padding, ids without a token."""
        ...

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedTokens:
        """The prompt up to where the policy starts to sample (the opened thinking tag of a Thinking model included)."""
        ...

    def render_tool_results(self, results: Sequence[ToolResult]) -> RenderedTokens:
        """What follows a sampled turn (its end-of-turn token included) up to where the policy samples again."""
        ...

    def render_conversation(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedConversation:
        """A demonstration, token for token what the policy would see and sample in a rollout."""
        ...

    def parse_turn(self, token_ids: Sequence[int], *, has_open_thinking: bool | None = None) -> ParsedTurn:
        """Take a sampled turn apart.

        `has_open_thinking`: the prompt ended inside an open thinking block; None: as the template's generation prompt.

        When a branch resumes after the opening tool-call tag, pass the inherited part of the turn along with the
        sampled part.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens shown."""
        ...


# -- trackers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about the run that it follows."""

    id: str
    """Chosen by us at the first start, 8 hex digits; a resumed run keeps it."""
    known_id: str | None
    """What the tracker itself called this run when it first started; None at the first start."""
    folder: Path
    """The run's own; its last part is a name for people."""
    config: Mapping[str, Any]
    """Options by table, as in `config.toml`."""
    first_step: int
    """The first step that will be logged; later ones that were logged before belong to a start that died."""


@runtime_checkable
class Tracker(Protocol):
    """Shows runs somewhere else (`docs/trackers.md`).

    All calls come from one thread, one after the other, `start` first. They may take long and raise: the run does not
    wait, and nothing but a warning comes of it.
    """

    def start(self, run: TrackedRun) -> str | None:
        """Open the run, or go on with it when `run.known_id` is given. Returns the tracker's own id, to be kept."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of a step; all are finite."""
        ...

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
        """A small table."""
        ...

    def log_images(self, step: int, name: str, images: Sequence[tuple[str, Image]]) -> None:
        """A few pictures with their captions."""
        ...

    def log_alarm(self, step: int, *, name: str, level: Literal["warning", "error"], text: str) -> None:
        """An alarm was raised at this step."""
        ...

    def finish(self, status: Literal["finished", "failed", "interrupted"]) -> None:
        """The run has ended; write what is still to be written."""
        ...
