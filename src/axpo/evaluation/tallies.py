"""Judged dialogues -> counts of each sample, and the addends of every number of a benchmark.

Every number is total(numerator) / total(denominator) over questions. Pass@k and scores are over the n samples asked
for, so a lost rollout is wrong. All other shares and means are over finished rollouts, because nothing is known of the
others. `axpo.measures.rates` defines the rates that other outputs have too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from axpo.errors import DataError
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import QuestionResult
from axpo.measures.rates import RATES, Addends, GroupCounts
from axpo.types import FailureKind, Problem, StopReason, ToolResult

EXECUTED = (None, FailureKind.EXECUTION_ERROR, FailureKind.TIMEOUT)
"""Outcomes of calls that the tool really ran."""
INVALID = (FailureKind.MALFORMED_CALL, FailureKind.UNKNOWN_TOOL, FailureKind.BAD_ARGUMENTS)
OTHER_NAMES = "(malformed or unknown)"
"""Under it stand calls of tools that nobody offered: their names are the model's own text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What one sample that ended adds to the numbers."""

    sample: int
    is_correct: bool
    stop_reason: StopReason
    called: tuple[str, ...]
    """Names of the calls it wrote, in order."""
    num_answered: int
    num_executed: int
    num_valid: int
    """Answered calls, those that the tool ran, and those that the model wrote rightly."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    seconds: float
    num_turns: int
    scores: Mapping[str, float]

    @property
    def uses_tool(self) -> bool:
        """True when the policy opened a tool call, whether or not it parsed or ran."""
        return bool(self.called)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionTallies:
    """The samples of one question."""

    problem: Problem
    num_samples: int
    """n: samples asked for."""
    tallies: tuple[Tally, ...]
    """Of those that ended."""
    rollouts: tuple[JudgedRollout, ...]
    """All that have a record, lost ones too."""

    @property
    def cluster(self) -> str:
        """Label of what the question shares with others; its own id when it shares nothing."""
        return str(self.problem.metadata.get("cluster", self.problem.id))

    @property
    def num_correct(self) -> int:
        """Right samples."""
        return sum(tally.is_correct for tally in self.tallies)

    @property
    def counts(self) -> GroupCounts:
        """Counters for the rates of `axpo.measures.rates`."""
        counts = GroupCounts(n=len(self.tallies), truncation_known=len(self.tallies), turns_known=len(self.tallies))
        for tally in self.tallies:
            counts.tool += tally.uses_tool
            counts.add_reward(float(tally.is_correct), is_right=tally.is_correct, uses_tool=tally.uses_tool)
            counts.answered += tally.num_answered
            counts.truncated += tally.stop_reason.is_truncated
            counts.turns += tally.num_turns
        return counts

    @property
    def pixel_ratio(self) -> float | None:
        """Effective pixels over the pictures' own, of the sample that saw the most; None where unknown."""
        ratios = [
            judged.rollout.effective_px / judged.rollout.picture_px
            for judged in self.rollouts
            if judged.rollout.effective_px is not None and judged.rollout.picture_px > 0
        ]
        return max(ratios, default=None)

    def category(self, key: str) -> str:
        """The question's value of a breakdown; a dash when it has none."""
        categories = self.problem.metadata.get("categories")
        value = categories.get(key) if isinstance(categories, Mapping) else None
        return "–" if value is None or value == "" else str(value)

    @property
    def result(self) -> QuestionResult:
        """What the summary keeps of it."""
        using = [tally for tally in self.tallies if tally.uses_tool]
        return QuestionResult(
            problem_id=self.problem.id,
            cluster=self.cluster,
            num_samples=self.num_samples,
            num_ended=len(self.tallies),
            num_correct=self.num_correct,
            num_tool=len(using),
            num_tool_correct=sum(tally.is_correct for tally in using),
            pixel_ratio=self.pixel_ratio,
        )


def tally_questions(
    problems: Sequence[Problem], rollouts: Sequence[JudgedRollout], *, num_samples: int
) -> tuple[QuestionTallies, ...]:
    """Group rollouts by question, in an order that does not depend on theirs.

    Raises:
        DataError: without problems or samples; ids that are not unique; a rollout of another question, a sample outside
            0 .. n-1 or one that is there twice.
    """
    by_id: dict[str, dict[int, JudgedRollout]] = {problem.id: {} for problem in problems}
    if not problems or len(by_id) != len(problems) or num_samples < 1:
        raise DataError(
            f"benchmark numbers: need questions with unique ids and at least one sample of each, got {len(problems)} "
            f"questions with {len(by_id)} ids and {num_samples} samples."
        )
    for judged in rollouts:
        _file(judged, by_id, num_samples)
    return tuple(
        QuestionTallies(
            problem=problem,
            num_samples=num_samples,
            tallies=tuple(_tally(judged) for _, judged in found if judged.rollout.transcript is not None),
            rollouts=tuple(judged for _, judged in found),
        )
        for problem in sorted(problems, key=lambda problem: problem.id)
        for found in [sorted(by_id[problem.id].items())]
    )


def _file(judged: JudgedRollout, by_id: dict[str, dict[int, JudgedRollout]], num_samples: int) -> None:
    problem_id, sample = judged.rollout.problem_id, judged.rollout.sample
    name = f"rollout {problem_id}/{sample} of {judged.rollout.benchmark}"
    if problem_id not in by_id:
        raise DataError(f"{name}: no question has this id. Were the questions loaded with other options?")
    if not 0 <= sample < num_samples:
        raise DataError(f"{name}: expected samples 0 to {num_samples - 1}. Was it made with another number of samples?")
    if sample in by_id[problem_id]:
        raise DataError(f"{name}: is there twice. Each sample of a question counts once.")
    by_id[problem_id][sample] = judged


def _tally(judged: JudgedRollout) -> Tally:
    transcript = judged.rollout.transcript
    assert transcript is not None
    results = transcript.tool_results
    return Tally(
        sample=judged.rollout.sample,
        is_correct=judged.is_correct,
        stop_reason=transcript.stop_reason,
        called=tuple(call.name for turn in transcript.turns for call in turn.tool_calls),
        num_answered=len(results),
        num_executed=sum(failure_kind(result) in EXECUTED for result in results),
        num_valid=sum(failure_kind(result) not in INVALID for result in results),
        prompt_tokens=transcript.usage.prompt_tokens,
        completion_tokens=transcript.usage.completion_tokens,
        cost_usd=judged.rollout.cost_usd,
        seconds=transcript.wall_time_s,
        num_turns=len(transcript.turns),
        scores=judged.verdict.scores,
    )


def failure_kind(result: ToolResult) -> FailureKind | None:
    """Why a call has no result; None when it has one."""
    return None if result.failure is None else result.failure.kind


# -- addends ----------------------------------------------------------------------------------------------------------

AddendsOf = Callable[[QuestionTallies], Addends]
Value = Callable[[Tally], float]


def passes(num_samples: int) -> dict[str, AddendsOf]:
    """Pass@k for the powers of two up to n, and for n."""
    powers = {2**power for power in range(num_samples.bit_length())}
    ks = sorted({k for k in powers if k <= num_samples} | {num_samples})
    return {f"pass@{k}": _pass_at(k) for k in ks}


def headline(num_samples: int) -> dict[str, AddendsOf]:
    """The three numbers that every table has."""
    return {
        "pass@1": _pass_at(1),
        f"pass@{num_samples}": _pass_at(num_samples),
        "tool_use_rate": _shared("tool_use_rate"),
    }


def measures_of(questions: Sequence[QuestionTallies]) -> dict[str, AddendsOf]:
    """All numbers these questions allow, by name."""
    scores = sorted({name for question in questions for tally in question.tallies for name in tally.scores})
    return (
        passes(questions[0].num_samples)
        | {f"score/{name}": _per_sample(_score(name)) for name in scores}
        | MEASURES
        | {f"stop/{reason.value}": _mean(_stopped(reason)) for reason in StopReason}
    )


def tool_measures(name: str, known: Sequence[str]) -> dict[str, AddendsOf]:
    """Share of rollouts that call a tool, and right ones among them."""
    calls = _calls(name, frozenset(known))
    return {f"tool_share/{name}": _mean(calls), f"tool_accuracy/{name}": _given(_is_correct, calls)}


def tool_of(name: str, known: Sequence[str]) -> str:
    """Under which name a call is counted."""
    return name if name in known else OTHER_NAMES


def _pass_at(k: int) -> AddendsOf:
    return lambda question: (pass_at_k(question.num_samples, question.num_correct, k), 1.0)


def _shared(name: str) -> AddendsOf:
    """A rate that other outputs have too."""
    return lambda question: RATES[name].addends(question.counts)


def _per_sample(value: Value) -> AddendsOf:
    """Mean over the n samples asked for; a lost one adds nothing."""
    return lambda question: (float(sum(value(tally) for tally in question.tallies)), float(question.num_samples))


def _mean(value: Value) -> AddendsOf:
    """Mean over the finished rollouts."""
    return lambda question: (float(sum(value(tally) for tally in question.tallies)), float(len(question.tallies)))


def _given(value: Value, condition: Value) -> AddendsOf:
    """Mean over the finished rollouts that fulfill `condition`."""

    def addends(question: QuestionTallies) -> Addends:
        fitting = [tally for tally in question.tallies if condition(tally)]
        return float(sum(value(tally) for tally in fitting)), float(len(fitting))

    return addends


def _any(condition: Value) -> AddendsOf:
    """Share of questions with at least one such rollout, of those with a finished rollout."""
    return lambda question: (float(any(map(condition, question.tallies))), float(bool(question.tallies)))


def _per_call(value: Value) -> AddendsOf:
    """Over the calls that were answered."""
    return lambda question: (
        float(sum(value(tally) for tally in question.tallies)),
        float(sum(tally.num_answered for tally in question.tallies)),
    )


def _calls(name: str, known: frozenset[str]) -> Value:
    if name == OTHER_NAMES:
        return lambda tally: any(called not in known for called in tally.called)
    return lambda tally: name in tally.called


def _score(name: str) -> Value:
    return lambda tally: float(tally.scores.get(name, 0.0))


def _stopped(reason: StopReason) -> Value:
    return lambda tally: tally.stop_reason is reason


def _is_correct(tally: Tally) -> bool:
    return tally.is_correct


def _runs_tool(tally: Tally) -> bool:
    return tally.num_executed > 0


def _lost(question: QuestionTallies) -> Addends:
    """Lost samples, of the n asked for."""
    return float(question.num_samples - len(question.tallies)), float(question.num_samples)


def _has_cost(tally: Tally) -> bool:
    return tally.cost_usd is not None


SHARED = (
    "tool_use_rate",
    "tool_use_any",
    "calls_per_rollout",
    "accuracy_tool",
    "accuracy_no_tool",
    "all_wrong_tool",
    "all_wrong_no_tool",
    "truncated",
    "turns",
)
"""Names of `RATES` that a benchmark has."""
MEASURES: dict[str, AddendsOf] = {name: _shared(name) for name in SHARED} | {
    "executed_rate": _mean(_runs_tool),
    "executed_any": _any(_runs_tool),
    "valid_call_rate": _per_call(lambda tally: tally.num_valid),
    "lost": _lost,
    "prompt_tokens": _mean(lambda tally: tally.prompt_tokens),
    "completion_tokens": _mean(lambda tally: tally.completion_tokens),
    "cost_usd": _given(lambda tally: tally.cost_usd or 0.0, _has_cost),
    "seconds": _mean(lambda tally: tally.seconds),
}
AMOUNTS = ("calls_per_rollout", "turns", "prompt_tokens", "completion_tokens", "cost_usd", "seconds")
"""Measures that are no shares."""
