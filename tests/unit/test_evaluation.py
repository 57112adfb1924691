"""Evaluation through the real loop with a scripted policy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from axpo.engines.scripted import ScriptedEngine
from axpo.errors import DataError, EngineFault
from axpo.evaluation.run import evaluate
from axpo.images import ContentImageStore
from axpo.measures.estimates import Questions
from axpo.protocols import ParsedTurn, RenderedConversation, RenderedTokens
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.loop import RolloutLimits, RolloutSetup
from axpo.types import (
    Content,
    GenerationRequest,
    Message,
    Problem,
    SamplingParams,
    Segment,
    SegmentKind,
    ToolResult,
    ToolSpec,
)

RIGHT, WRONG = 7, 8


class OneTokenRenderer:
    """A prompt is the question's number, a turn is one answer token."""

    stop_token_ids = (RIGHT, WRONG)
    banned_token_ids = ()

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedTokens:
        return RenderedTokens(token_ids=(int(messages[0].text),), images=())

    def render_tool_results(self, results: Sequence[ToolResult]) -> RenderedTokens:
        raise NotImplementedError

    def render_conversation(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> RenderedConversation:
        raise NotImplementedError

    def parse_turn(self, token_ids: Sequence[int], *, has_open_thinking: bool = True) -> ParsedTurn:
        answer = Segment(kind=SegmentKind.ANSWER, start=0, stop=len(token_ids))
        return ParsedTurn(
            segments=(answer,), tool_calls=(), visible_text="right" if token_ids[-1] == RIGHT else "wrong"
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(token_ids)


def problem(number: int, **metadata: str) -> Problem:
    message = Message(role="user", content=(Content(text=str(number)),))
    return Problem(id=f"q{number}", messages=(message,), answer="right", metadata=metadata)


def build_setup(script: dict[int, list[int | None]]) -> RolloutSetup:
    """`script`: what the samples of question n answer, in turn; None is a fault of ours."""
    pending = {number: list(answers) for number, answers in script.items()}

    def reply(request: GenerationRequest) -> list[int]:
        answer = pending[request.token_ids[0]].pop(0)
        if answer is None:
            raise EngineFault("lost")
        return [answer]

    return RolloutSetup(
        engine=ScriptedEngine(reply),
        renderer=OneTokenRenderer(),
        executor=ToolExecutor(tools={}),
        reward_for=lambda problem: lambda final_text, problem: float(final_text == problem.answer),
        store=ContentImageStore(),
        limits=RolloutLimits(max_tool_turns=0, max_response_tokens=4),
        sampling=SamplingParams(),
        max_fault_retries=0,
    )


def test_a_lost_sample_counts_as_wrong_and_stays_in_n() -> None:
    # q1: 2 of 2 right; q2: 1 right, 1 lost; q3: both lost. Pass@1 = (1 + 1/2 + 0) / 3, Pass@2 = (1 + 1 + 0) / 3.
    setup = build_setup({1: [RIGHT, RIGHT], 2: [RIGHT, None], 3: [None, None]})
    seen: list[str] = []
    result = evaluate(
        [problem(1), problem(2), problem(3)],
        setup=setup,
        num_samples=2,
        seed=0,
        on_rollout=lambda rollout: seen.append(rollout.problem_id),
    )
    assert result.metrics["eval/pass@1"] == pytest.approx(1 / 2)
    assert result.metrics["eval/pass@2"] == pytest.approx(2 / 3)
    assert result.metrics["eval/dropped"] == 3
    assert result.metrics["eval/questions"] == 3
    assert result.metrics["eval/accuracy_no_tool"] == 1.0  # of those that ended
    assert result.metrics["eval/tool_use_rate"] == 0.0
    assert result.metrics["eval/accuracy_tool"] is None
    assert sorted(seen) == ["q1", "q1", "q2"]


def test_questions_about_one_picture_widen_the_interval() -> None:
    # Four questions on two images, one image always right: two independent observations.
    script = {1: [RIGHT], 2: [RIGHT], 3: [WRONG], 4: [WRONG]}
    clustered = [problem(1, cluster="a"), problem(2, cluster="a"), problem(3, cluster="b"), problem(4, cluster="b")]
    metrics = evaluate(clustered, setup=build_setup(script), num_samples=1, seed=0).metrics
    expected = Questions(["a", "b"]).ratio([(1, 1), (0, 1)]).interval
    found = (metrics["eval/pass@1"], metrics["eval/pass@1_low"], metrics["eval/pass@1_high"])
    assert found == pytest.approx((0.5, expected.low, expected.high))


def test_two_questions_with_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="unique ids"):
        evaluate([problem(1), problem(1)], setup=build_setup({}), num_samples=1, seed=0)
