"""Sample what is missing: n tries at every question of a benchmark, by any policy, resumable at every try."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from axpo.dialogue import Transcript
from axpo.errors import EngineFault, RolloutFault
from axpo.evaluation.log import RolloutLog
from axpo.evaluation.records import SampledRollout
from axpo.rollout.seeding import derive_seed
from axpo.threads import run_in_daemon_thread
from axpo.types import Problem

MAX_LOST_IN_A_ROW = 16
"""Tries that end in a fault of ours one after the other: then nothing answers any more, and the run stops."""

_log = logging.getLogger(__name__)


class Sampler(Protocol):
    """Plays one dialogue with whatever is evaluated."""

    async def sample(self, problem: Problem, *, rollout_id: str, seed: int) -> Transcript:
        """One whole dialogue. Raises `RolloutFault` for a fault of ours."""
        ...

    def effective_px(self, problem: Problem, transcript: Transcript) -> int | None:
        """How many pixels of the question's pictures reached the model at most; None when nobody can tell."""
        ...

    def cost_usd(self, transcript: Transcript) -> float | None:
        """What the dialogue cost; None without prices."""
        ...

    def forget(self, rollout_id: str) -> None:
        """The dialogue is on the disk: whatever was kept to go on with it is not needed any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is tried at once and again."""

    num_samples: int
    """n tries at each question."""
    seed: int
    max_running: int
    """Dialogues under way at once."""
    max_fault_retries: int
    """How often a dialogue is started again after a fault of ours before it is lost."""


async def sample_missing(
    benchmark: str,
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    log: RolloutLog,
    effort: Effort,
    on_done: Callable[[SampledRollout], None],
    persist: Callable[[Transcript], None],
) -> None:
    """Play every try that `log` does not have yet, and append it as soon as it has ended.

    A try lost to faults of ours is written last, as lost: it counts as wrong. `persist` makes durable what a record
    refers to (pictures); it and the writing happen beside the event loop. Raises `EngineFault` when
    `MAX_LOST_IN_A_ROW` tries in a row were lost, or all of a benchmark that has no answer yet: what was answered is on
    the disk, what was lost will be tried again by the next run. Other errors, too, leave the log as good as it is.
    """
    wanted = [
        (problem, sample)
        for problem in problems  # the samples of a question together: servers keep the prefix they share
        for sample in range(effort.num_samples)
        if (problem.id, sample) not in log.done
    ]
    queue = iter(wanted)
    lost: list[SampledRollout] = []
    lost_in_a_row = 0

    async def work() -> None:
        nonlocal lost_in_a_row
        for problem, sample in queue:
            record = await _try(benchmark, problem, sample, sampler=sampler, effort=effort)
            if record.transcript is None:
                lost.append(record)
                lost_in_a_row += 1
                if lost_in_a_row >= MAX_LOST_IN_A_ROW:
                    raise EngineFault(
                        f"{benchmark}: {lost_in_a_row} rollouts in a row were lost, the last one to: {record.fault}. "
                        "Run the same command again once this is mended; what was answered is kept."
                    )
                continue
            lost_in_a_row = 0
            await run_in_daemon_thread(_write, record, record.transcript, log, persist)
            sampler.forget(record.transcript.id)
            on_done(record)

    await _run_all([work() for _ in range(min(effort.max_running, len(wanted)))])
    if lost and len(lost) == len(wanted) and log.done == log.lost:
        raise EngineFault(
            f"{benchmark}: every rollout was lost, the last one to: {lost[-1].fault}. Run the same command again once "
            "this is mended."
        )
    for record in lost:
        log.append(record)
        on_done(record)


def _write(
    record: SampledRollout, transcript: Transcript, log: RolloutLog, persist: Callable[[Transcript], None]
) -> None:
    persist(transcript)
    log.append(record)


async def _try(benchmark: str, problem: Problem, sample: int, *, sampler: Sampler, effort: Effort) -> SampledRollout:
    rollout_id = f"{benchmark}/{problem.id}/{sample}"
    picture_px = sum(image.width_px * image.height_px for image in problem.images)
    fault = ""
    for attempt in range(effort.max_fault_retries + 1):
        seed = derive_seed(effort.seed, rollout_id, attempt)
        try:
            transcript = await sampler.sample(problem, rollout_id=rollout_id, seed=seed)
        except RolloutFault as error:
            fault = str(error) or type(error).__name__
            _log.warning("rollout %s: try %d of %d: %s", rollout_id, attempt + 1, effort.max_fault_retries + 1, fault)
            continue
        return SampledRollout(
            benchmark=benchmark,
            problem_id=problem.id,
            sample=sample,
            transcript=transcript,
            picture_px=picture_px,
            effective_px=sampler.effective_px(problem, transcript) if problem.images else None,
            cost_usd=sampler.cost_usd(transcript),
        )
    return SampledRollout(
        benchmark=benchmark, problem_id=problem.id, sample=sample, transcript=None, fault=fault, picture_px=picture_px
    )


async def _run_all(workers: Sequence[Awaitable[None]]) -> None:
    """All to their end; the first error cancels the rest and is raised."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
