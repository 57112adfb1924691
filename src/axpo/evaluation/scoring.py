"""Judge what was sampled: pure rules first, a language model where they cannot tell and the user asked for one.

Sampling and judging are two passes, so that a rollout is never sampled again because a rule changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from axpo.dialogue import Verdict
from axpo.evaluation.records import JudgedRollout, SampledRollout
from axpo.threads import run_in_daemon_thread
from axpo.types import Problem

Score = Callable[[Problem, str], Verdict]
AskJudge = Callable[[Problem, Verdict, str], Awaitable[Verdict]]
"""`ask(problem, undecided verdict, final text)`; a judge that fails says so in its verdict and counts as wrong."""

LOST = Verdict(is_correct=False, rule="lost", note="a fault of ours at every try")
NO_ANSWER = Verdict(is_correct=False, rule="no_answer")
MAX_SCORE_S = 60.0
"""A rule that takes longer has a fault; the rollout counts as wrong and its verdict says so."""


async def judge_all(
    problems: Sequence[Problem],
    rollouts: Sequence[SampledRollout],
    *,
    score: Score,
    ask_judge: AskJudge | None = None,
    max_running: int = 16,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[JudgedRollout, ...]:
    """A verdict for every rollout, in their order. Rollouts without a final text are wrong without being read.

    `max_running`: rules at work at once; how many questions a judge takes at once is its own affair.
    """
    by_id = {problem.id: problem for problem in problems}
    gate = asyncio.Semaphore(max_running)

    async def judge(rollout: SampledRollout) -> JudgedRollout:
        final_text = rollout.transcript.final_text if rollout.transcript is not None else ""
        async with gate:
            verdict = await _score(rollout, by_id, score)
        if ask_judge is not None and not verdict.is_decided:
            verdict = await ask_judge(by_id[rollout.problem_id], verdict, final_text)
        on_done()
        return JudgedRollout(rollout=rollout, verdict=verdict)

    return tuple(await asyncio.gather(*(judge(rollout) for rollout in rollouts)))


async def _score(rollout: SampledRollout, by_id: Mapping[str, Problem], score: Score) -> Verdict:
    if rollout.transcript is None:
        return LOST
    final_text = rollout.transcript.final_text
    if not final_text.strip():
        return NO_ANSWER
    problem = by_id[rollout.problem_id]
    try:
        async with asyncio.timeout(MAX_SCORE_S):
            return await run_in_daemon_thread(score, problem, final_text)
    except TimeoutError:
        return Verdict(is_correct=False, rule="rule_timeout", note=f"no verdict within {MAX_SCORE_S:g} s")
