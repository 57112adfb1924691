"""Sampling what is missing, the log of what is done, and judging it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from axpo.dialogue import TokenUsage, Transcript, Verdict
from axpo.errors import DataError, EngineFault, QuotaError
from axpo.evaluation.log import RolloutLog, drop_lost, read_log
from axpo.evaluation.records import SampledRollout
from axpo.evaluation.sampling import MAX_LOST_IN_A_ROW, Effort, sample_missing
from axpo.evaluation.scoring import judge_all
from axpo.types import Content, Message, Problem, StopReason

EFFORT = Effort(num_samples=3, seed=7, max_running=2, max_fault_retries=1)


def problem(name: str) -> Problem:
    return Problem(id=name, messages=(Message(role="user", content=(Content(text="?"),)),), answer="4")


def transcript(rollout_id: str, problem_id: str, text: str = "4") -> Transcript:
    return Transcript(
        id=rollout_id,
        problem_id=problem_id,
        prompt=problem(problem_id).messages,
        turns=(Message(role="assistant", content=(Content(text=text),)),),
        tool_results=(),
        stop_reason=StopReason.ANSWERED,
        final_text=text,
        usage=TokenUsage(prompt_tokens=5, completion_tokens=1),
    )


@dataclass
class FakeSampler:
    fails: Callable[[str, int], bool] = lambda rollout_id, attempt: False
    asked: list[tuple[str, int]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    async def sample(self, problem: Problem, *, rollout_id: str, seed: int) -> Transcript:
        attempt = sum(known == rollout_id for known, _ in self.asked)
        self.asked.append((rollout_id, seed))
        await asyncio.sleep(0)
        if self.fails(rollout_id, attempt):
            raise EngineFault("down")
        return transcript(rollout_id, problem.id)

    def effective_px(self, problem: Problem, transcript: Transcript) -> int | None:
        return 10

    def cost_usd(self, transcript: Transcript) -> float | None:
        return 0.5

    def forget(self, rollout_id: str) -> None:
        self.forgotten.append(rollout_id)


def sample(path: Path, sampler: FakeSampler, names: str = "ab", effort: Effort = EFFORT) -> list[SampledRollout]:
    log = RolloutLog(path)
    done: list[SampledRollout] = []
    try:
        asyncio.run(
            sample_missing(
                "bench",
                [problem(name) for name in names],
                sampler=sampler,
                log=log,
                effort=effort,
                on_done=done.append,
                persist=lambda transcript: None,
            )
        )
    finally:
        log.close()
    return done


def test_every_try_is_sampled_once_with_a_seed_of_its_own_and_forgotten_when_it_is_on_the_disk(tmp_path: Path) -> None:
    path, sampler = tmp_path / "log.jsonl", FakeSampler()
    sample(path, sampler)
    assert sorted(sampler.forgotten) == [f"bench/{name}/{i}" for name in "ab" for i in range(3)]
    assert len({seed for _, seed in sampler.asked}) == 6
    assert {record.cost_usd for record in read_log(path)} == {0.5}
    again = FakeSampler()
    assert sample(path, again) == [] and again.asked == []
    more = FakeSampler()
    sample(path, more, names="abc")
    assert {rollout_id for rollout_id, _ in more.asked} == {"bench/c/0", "bench/c/1", "bench/c/2"}


def test_a_fault_is_tried_again_with_another_seed_and_a_lost_try_stays_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    sampler = FakeSampler(fails=lambda rollout_id, attempt: rollout_id.startswith("bench/a/0") or attempt == 0)
    sample(path, sampler)
    records = list(read_log(path))
    assert [(r.problem_id, r.sample, r.fault) for r in records if r.transcript is None] == [("a", 0, "down")]
    assert records[-1].transcript is None, "lost tries are written last"
    seeds = [seed for rollout_id, seed in sampler.asked if rollout_id == "bench/b/1"]
    assert len(seeds) == 2 and seeds[0] != seeds[1]
    assert FakeSampler().asked == [] and sample(path, FakeSampler()) == []
    assert drop_lost(path) == 1
    assert [record.problem_id for record in sample(path, FakeSampler())] == ["a"]


def test_when_nothing_answers_any_more_the_run_stops_and_writes_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    sampler = FakeSampler(fails=lambda rollout_id, attempt: not rollout_id.startswith("bench/a"))
    with pytest.raises(EngineFault, match=f"{MAX_LOST_IN_A_ROW} rollouts in a row"):
        sample(path, sampler, names="abcdefghij")
    assert {record.problem_id for record in read_log(path)} == {"a"}


def test_an_error_that_ends_the_run_keeps_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    class Broke(FakeSampler):
        async def sample(self, problem: Problem, *, rollout_id: str, seed: int) -> Transcript:
            if problem.id == "b":
                raise QuotaError("used up")
            return await super().sample(problem, rollout_id=rollout_id, seed=seed)

    with pytest.raises(QuotaError):
        sample(path, Broke(), effort=Effort(num_samples=2, seed=0, max_running=1, max_fault_retries=0))
    assert [(r.problem_id, r.sample) for r in read_log(path)] == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("end", [b"{", b'{"benchmark": "bench"', b'{"a": "\xff', b"x" * 200_000])
def test_what_an_interrupted_write_left_is_cut_off(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "log.jsonl"
    sample(path, FakeSampler(), names="a")
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    assert len(list(read_log(path))) == 3
    RolloutLog(path).close()
    assert path.read_bytes() == whole
    path.write_bytes(end)
    RolloutLog(path).close()
    assert path.read_bytes() == b""


def test_a_broken_line_and_a_try_that_is_there_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    sample(path, FakeSampler(), names="a")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"benchmark": 1}\n' + lines[1])
    with pytest.raises(DataError, match=r"log\.jsonl:2: not a rollout"):
        RolloutLog(path)
    path.write_bytes(lines[0] + lines[0])
    with pytest.raises(DataError, match=r"log\.jsonl:2: sample 0 of a is there twice|log\.jsonl:2: sample"):
        list(read_log(path))


def test_half_of_a_surrogate_pair_from_a_model_does_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RolloutLog(path)
    log.append(SampledRollout(benchmark="b", problem_id="a", sample=0, transcript=transcript("r", "a", "4 \ud800")))
    log.close()
    (record,) = read_log(path)
    assert record.transcript is not None and record.transcript.final_text == "4 ?"


# -- judging ----------------------------------------------------------------------------------------------------------


def rollouts_of(*texts: str | None) -> list[SampledRollout]:
    return [
        SampledRollout(
            benchmark="b",
            problem_id="a",
            sample=index,
            transcript=None if text is None else transcript(f"r{index}", "a", text),
            fault="down" if text is None else "",
        )
        for index, text in enumerate(texts)
    ]


def score(of: Problem, final_text: str) -> Verdict:
    if final_text == "hm":
        return Verdict(is_correct=False, rule="undecided", is_decided=False, answer="hm")
    return Verdict(is_correct=final_text == of.answer, rule="equal", answer=final_text)


def test_lost_and_empty_ones_are_wrong_without_being_read_and_the_order_stays() -> None:
    judged = asyncio.run(judge_all([problem("a")], rollouts_of("4", None, " ", "5", "hm"), score=score))
    assert [(j.rollout.sample, j.is_correct, j.verdict.rule) for j in judged] == [
        (0, True, "equal"),
        (1, False, "lost"),
        (2, False, "no_answer"),
        (3, False, "equal"),
        (4, False, "undecided"),
    ]


def test_a_judge_is_asked_only_where_no_rule_decides() -> None:
    asked: list[str] = []

    async def ask(of: Problem, undecided: Verdict, final_text: str) -> Verdict:
        asked.append(final_text)
        return Verdict(is_correct=True, rule="judge")

    judged = asyncio.run(judge_all([problem("a")], rollouts_of("4", "hm", "hm", None), score=score, ask_judge=ask))
    assert asked == ["hm", "hm"]
    assert [j.is_correct for j in judged] == [True, True, True, False]


def test_a_judge_takes_as_many_questions_at_once_as_it_likes() -> None:
    async def judge() -> int:
        asked, everybody = [0], asyncio.Event()

        async def ask(of: Problem, undecided: Verdict, final_text: str) -> Verdict:
            asked[0] += 1
            if asked[0] == 40:
                everybody.set()
            await asyncio.wait_for(everybody.wait(), timeout=5)
            return Verdict(is_correct=True, rule="judge")

        return len(await judge_all([problem("a")], rollouts_of(*["hm"] * 40), score=score, ask_judge=ask))

    assert asyncio.run(judge()) == 40


def test_verdicts_are_json(tmp_path: Path) -> None:
    from axpo.evaluation.folder import write_verdicts

    judged = asyncio.run(judge_all([problem("a")], rollouts_of("4"), score=score))
    write_verdicts(tmp_path, "b", judged)
    (line,) = (tmp_path / "verdicts" / "b.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"]["is_correct"] is True
