"""Small questions and judged dialogues of a benchmark, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from axpo.dialogue import TokenUsage, Transcript, Verdict
from axpo.evaluation.records import JudgedRollout, SampledRollout
from axpo.evaluation.scorecard import BenchmarkInfo
from axpo.types import (
    Content,
    FailureKind,
    ImageRef,
    Message,
    Problem,
    StopReason,
    ToolCall,
    ToolFailure,
    ToolResult,
)

ZOOM = "image_zoom_in"
UNANSWERED = "unanswered"
Call = tuple[str, FailureKind | str | None]
"""Tool, and what became of the call: None a result, a kind of failure, or `UNANSWERED`."""


def info(**changes: object) -> BenchmarkInfo:
    """A benchmark called `puzzles`."""
    return BenchmarkInfo(**{"name": "puzzles", "title": "Puzzles", "area": "Reasoning", **changes})


def question(
    problem_id: str,
    *,
    cluster: str | None = None,
    categories: Mapping[str, str] | None = None,
    text: str = "How many?",
    images: Sequence[ImageRef] = (),
) -> Problem:
    """A question whose right answer is `42`."""
    content = (*(Content(image=image) for image in images), Content(text=text))
    return Problem(
        id=problem_id,
        messages=(Message(role="user", content=content),),
        answer="42",
        metadata={"benchmark": "puzzles", "cluster": cluster or problem_id, "categories": dict(categories or {})},
    )


def answered(
    problem_id: str,
    sample: int,
    *,
    right: bool = False,
    calls: Sequence[Call] = (),
    rule: str = "letter",
    decided: bool = True,
    stop: StopReason = StopReason.ANSWERED,
    scores: Mapping[str, float] | None = None,
    pixels: tuple[int, int | None] = (0, None),
    cost: float | None = None,
    text: str = "<answer>42</answer>",
    thinking: str = "Let me look.",
    crop: ImageRef | None = None,
    benchmark: str = "puzzles",
) -> JudgedRollout:
    """A dialogue of one turn, or of two when it calls tools: calls stand in the first, unanswered ones in the last."""
    made = [
        (ToolCall(id=f"c{i}", name=name, arguments={"n": i}, raw=f'{{"name": "{name}"}}'), end)
        for i, (name, end) in enumerate(calls)
    ]
    early = tuple(call for call, end in made if end != UNANSWERED)
    late = tuple(call for call, end in made if end == UNANSWERED)
    last = Message(role="assistant", reasoning=thinking, content=(Content(text=text),), tool_calls=late)
    first = Message(role="assistant", reasoning=thinking, tool_calls=early)
    transcript = Transcript(
        id=f"{problem_id}/{sample}",
        problem_id=problem_id,
        prompt=question(problem_id).messages,
        turns=(first, last) if early else (last,),
        tool_results=tuple(_result(call, end, crop) for call, end in made if end != UNANSWERED),
        stop_reason=stop,
        final_text=text,
        usage=TokenUsage(prompt_tokens=100, completion_tokens=10 + sample),
        wall_time_s=2.0,
    )
    rollout = SampledRollout(
        benchmark=benchmark,
        problem_id=problem_id,
        sample=sample,
        transcript=transcript,
        picture_px=pixels[0],
        effective_px=pixels[1],
        cost_usd=cost,
    )
    verdict = Verdict(is_correct=right, rule=rule, answer="42", is_decided=decided, scores=dict(scores or {}))
    return JudgedRollout(rollout=rollout, verdict=verdict)


def lost(problem_id: str, sample: int, *, cost: float | None = None, benchmark: str = "puzzles") -> JudgedRollout:
    """A sample lost to faults of ours."""
    rollout = SampledRollout(
        benchmark=benchmark,
        problem_id=problem_id,
        sample=sample,
        transcript=None,
        fault="the server went away",
        cost_usd=cost,
    )
    return JudgedRollout(rollout=rollout, verdict=Verdict(is_correct=False, rule="lost"))


def _result(call: ToolCall, end: FailureKind | str | None, crop: ImageRef | None) -> ToolResult:
    if isinstance(end, FailureKind):
        return ToolResult(call=call, failure=ToolFailure(kind=end, message=f"Error: {end.value}"))
    picture = (Content(image=crop),) if crop is not None else ()
    return ToolResult(call=call, content=(Content(text="done"), *picture))


def three_questions() -> tuple[tuple[Problem, ...], tuple[JudgedRollout, ...]]:
    """Three questions x four samples: one lost, one without a record, calls of every kind."""
    problems = (
        question("q1", cluster="s1", categories={"subject": "algebra", "level": "2"}),
        question("q2", cluster="s1", categories={"subject": "geometry", "level": "10"}),
        question("q3", cluster="s2", categories={"subject": "algebra"}),
    )
    some, all_of_it = {"pixels": (1000, 250)}, {"pixels": (1000, 1000)}
    error, bad = FailureKind.EXECUTION_ERROR, FailureKind.BAD_ARGUMENTS
    malformed, unknown = FailureKind.MALFORMED_CALL, FailureKind.UNKNOWN_TOOL
    rollouts = (
        answered("q1", 0, right=True, calls=[(ZOOM, None)], scores={"f1": 1.0}, cost=0.01, **some),
        answered("q1", 1, calls=[(ZOOM, error), ("python", bad)], scores={"f1": 0.5}, cost=0.01, **some),
        answered("q1", 2, right=True, scores={"f1": 1.0}, **some),
        lost("q1", 3, cost=0.02),
        answered("q2", 0, right=True, rule="text", scores={"f1": 1.0}, **all_of_it),
        answered("q2", 1, rule="text", **all_of_it),
        answered("q2", 2, rule="no_answer", calls=[("", malformed), (ZOOM, UNANSWERED)], stop=StopReason.TURN_LIMIT),
        answered("q2", 3, rule="judge_failed", decided=False, calls=[("grep", unknown)]),
        answered("q3", 0, rule="no_answer", calls=[(ZOOM, None)], stop=StopReason.TOKEN_LIMIT),
        answered("q3", 1, rule="open", decided=False),
        answered("q3", 2),
    )
    return problems, rollouts
