"""A rollout's tokens as the messages they spell."""

from __future__ import annotations

from axpo.dialogue import TokenUsage, Transcript
from axpo.protocols import Renderer
from axpo.rollout.rendering import THINK_TAGS
from axpo.types import Content, Message, Problem, Rollout, SegmentKind


def transcript_of(rollout: Rollout, problem: Problem, *, renderer: Renderer) -> Transcript:
    """The dialogue of an ordinary rollout as messages; the tokens stay the truth, this is for people and records."""
    turns: list[Message] = []
    usage = TokenUsage()
    first_prompt = start = next(segment.stop for segment in rollout.segments if segment.kind is SegmentKind.PROMPT)
    stops = [segment.start for segment in rollout.segments if segment.kind is SegmentKind.TOOL_RESULT]
    resumes = [segment.stop for segment in rollout.segments if segment.kind is SegmentKind.TOOL_RESULT]
    for stop, resume in zip([*stops, len(rollout.token_ids)], [*resumes, len(rollout.token_ids)], strict=True):
        if start < stop:
            turns.append(_read_turn(rollout.token_ids[start:stop], renderer))
            usage += TokenUsage(prompt_tokens=start, completion_tokens=stop - start)
        start = resume
    return Transcript(
        id=rollout.id,
        problem_id=rollout.problem_id,
        prompt=problem.messages,
        turns=tuple(turns),
        tool_results=rollout.tool_results,
        stop_reason=rollout.stop_reason,
        final_text=rollout.final_text,
        usage=usage,
        first_prompt_tokens=first_prompt,
        wall_time_s=rollout.wall_time_s,
    )


def _read_turn(token_ids: tuple[int, ...], renderer: Renderer) -> Message:
    parsed = renderer.parse_turn(token_ids)
    thinking = [s for s in parsed.segments if s.kind is SegmentKind.THINKING]
    end = len(token_ids) - (token_ids[-1] in renderer.stop_token_ids)  # it may end a turn that still thinks
    reasoning = "".join(renderer.decode(token_ids[s.start : min(s.stop, end)]) for s in thinking)
    return Message(
        role="assistant",
        reasoning=reasoning.removeprefix(THINK_TAGS[0]).removesuffix(THINK_TAGS[1]).strip() if thinking else None,
        content=(Content(text=parsed.visible_text),) if parsed.visible_text else (),
        tool_calls=parsed.tool_calls,
    )
