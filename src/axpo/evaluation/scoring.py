"""Judge what was sampled: pure rules first, a language model where they cannot tell and the user asked for one.

Sampling and judging are two passes, so that a rollout is never sampled again because a rule changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from axpo.dialogue import Transcript, Verdict
from axpo.evaluation.records import JudgedRollout, SampledRollout
from axpo.threads import run_in_daemon_thread
from axpo.types import Problem

Score = Callable[[Problem, str], Verdict]
AskJudge = Callable[[Problem, Verdict, str], Awaitable[Verdict]]
"""`ask(problem, undecided verdict, final text)`; a judge that fails says so in its verdict and counts as wrong."""

LOST = Verdict(is_correct=False, rule="lost", note="an infrastructure failure at every try")
NO_ANSWER = Verdict(is_correct=False, rule="no_answer")
MAX_SCORE_S = 60.0
"""A rule that takes longer has a fault; the rollout counts as wrong and its verdict says so."""


async def judge_all(
    problems: Sequence[Problem],
    rollouts: Sequence[SampledRollout],
    *,
    score: Score,
    ask_judge: AskJudge | None = None,
    reads_all_turns: bool = False,
    max_running: int = 16,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[JudgedRollout, ...]:
    """A verdict for every rollout, in their order. Rollouts without a text are wrong; no rule and no judge reads them.

    `reads_all_turns`: the thinking and the text of every turn are read, instead of the final text.
    `max_running`: rules at work at once; how many questions a judge takes at once is its own affair.
    """
    by_id = {problem.id: problem for problem in problems}
    gate = asyncio.Semaphore(max_running)

    async def judge(rollout: SampledRollout) -> JudgedRollout:
        text = _read(rollout.transcript, reads_all_turns=reads_all_turns)
        async with gate:
            verdict = LOST if rollout.transcript is None else await _score(by_id[rollout.problem_id], text, score)
        if ask_judge is not None and not verdict.is_decided:
            verdict = await ask_judge(by_id[rollout.problem_id], verdict, text)
        on_done()
        return JudgedRollout(rollout=rollout, verdict=verdict)

    return tuple(await asyncio.gather(*(judge(rollout) for rollout in rollouts)))


def _read(transcript: Transcript | None, *, reads_all_turns: bool) -> str:
    if transcript is None:
        return ""
    if not reads_all_turns:
        return transcript.final_text
    return "\n".join(f"{turn.reasoning or ''}\n{turn.text}" for turn in transcript.turns)


async def _score(problem: Problem, text: str, score: Score) -> Verdict:
    if not text.strip():
        return NO_ANSWER
    try:
        async with asyncio.timeout(MAX_SCORE_S):
            return await run_in_daemon_thread(score, problem, text)
    except TimeoutError:
        return Verdict(is_correct=False, rule="rule_timeout", note=f"no verdict within {MAX_SCORE_S:g} s")
