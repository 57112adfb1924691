"""Judged rollouts of a benchmark -> its numbers, each with a 95% interval clustered by `metadata["cluster"]`.

Names of the measures (n: samples asked for; a rollout is one that finished; `axpo.measures.rates` defines those that
training and `axpo diagnose` have too):

    pass@k               k in 1, 2, 4, ... and n: unbiased estimate; a lost or missing sample is wrong
    score/NAME           mean of a scorer's further number over n samples; 0 for a lost one
    tool_use_rate        share of rollouts that open a tool call;      tool_use_any    share of questions with one
    executed_rate        share of rollouts with a call that a tool ran; executed_any   share of questions with one
    valid_call_rate      share of answered calls that the model wrote correctly
    calls_per_rollout    answered calls per rollout
    accuracy_tool        share of right rollouts among those that call a tool;  accuracy_no_tool   among the others
    all_wrong_tool       of the questions with tool-using rollouts, those where all of these are wrong
    all_wrong_no_tool    the same for rollouts without;                all_wrong_gap   their difference
    stop/REASON          share of rollouts that ended so;              truncated   all but `answered`
    lost                 share of the n samples without a transcript
    tool_share/TOOL      share of rollouts that call it;               tool_accuracy/TOOL   right ones among them
    prompt_tokens completion_tokens seconds turns      mean over rollouts
    cost_usd             mean over the rollouts whose cost is known
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from axpo.evaluation.benchmark_alarms import with_alarms
from axpo.evaluation.breakdowns import break_down, find_variants, rotate
from axpo.evaluation.letters import count_letters
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import (
    BenchmarkInfo,
    BenchmarkSummary,
    Count,
    Measure,
    PixelCheck,
    ToolSplit,
    Totals,
)
from axpo.evaluation.tallies import (
    AMOUNTS,
    EXECUTED,
    OTHER_NAMES,
    QuestionTallies,
    failure_kind,
    measures_of,
    tally_questions,
    tool_measures,
    tool_of,
)
from axpo.measures.estimates import Estimate, Questions
from axpo.types import Problem, ToolResult

JUDGE_FAILED = "judge_failed"
"""Rule of a verdict that the judge should have given and did not."""
MIN_PIXEL_RATIO = 0.5
"""Below it a picture counts as scaled down."""


def summarize(
    info: BenchmarkInfo,
    problems: Sequence[Problem],
    rollouts: Sequence[JudgedRollout],
    *,
    num_samples: int,
    tools: Sequence[str] = (),
    judge: str = "",
) -> BenchmarkSummary:
    """All numbers of one benchmark.

    Args:
        info: what is evaluated.
        problems: its questions, those without a rollout too.
        rollouts: with their verdicts, in any order. What is missing counts as lost.
        num_samples: n, asked of every question.
        tools: names of the tools that were offered.
        judge: name of the model that judged; empty for none.

    Raises:
        DataError: when questions and rollouts do not fit together, see `axpo.evaluation.tallies`.
    """
    questions = tally_questions(problems, rollouts, num_samples=num_samples)
    known = known_tools(questions, tools)
    estimates = _measure(questions, known)
    judged = [judged for question in questions for judged in question.rollouts if judged.rollout.transcript is not None]
    summary = BenchmarkSummary(
        info=info,
        tools=tuple(tools),
        judge=judge,
        num_questions=len(questions),
        num_samples=num_samples,
        num_lost=len(questions) * num_samples - len(judged),
        num_missing=len(questions) * num_samples - len(rollouts),
        measures=tuple(Measure(name=name, interval=estimate.interval) for name, estimate in estimates.items()),
        totals=_add_up(questions),
        rules=_counts(judged.verdict.rule for judged in judged),
        num_undecided=sum(not j.verdict.is_decided and j.verdict.rule != JUDGE_FAILED for j in judged),
        num_judge_failed=sum(j.verdict.rule == JUDGE_FAILED for j in judged),
        tool_splits=_split_tools(questions, known, estimates),
        breakdowns=tuple(break_down(questions, key) for key in info.breakdowns),
        rotations=rotate(questions),
        variants=find_variants(questions),
        pixels=_check_pixels(questions),
        letters=count_letters(questions),
        alarms=(),
        questions=tuple(question.result for question in questions),
    )
    return with_alarms(summary)


def known_tools(questions: Sequence[QuestionTallies], offered: Sequence[str]) -> tuple[str, ...]:
    """Tools that exist: what was offered, what questions name, and what ran a call; a model can write any name."""
    named = {name for question in questions for name in question.problem.tools or ()}
    ran = {result.call.name for result in _results(questions) if failure_kind(result) in EXECUTED}
    return tuple(dict.fromkeys((*offered, *sorted(named | ran))))


def _measure(questions: Sequence[QuestionTallies], known: Sequence[str]) -> dict[str, Estimate]:
    named = measures_of(questions)
    for tool in (*known, OTHER_NAMES):
        named |= tool_measures(tool, known)
    asked = Questions([question.cluster for question in questions])
    estimates = {
        name: asked.ratio(list(map(addends, questions)), is_share=name not in AMOUNTS)
        for name, addends in named.items()
    }
    return estimates | {"all_wrong_gap": estimates["all_wrong_tool"] - estimates["all_wrong_no_tool"]}


def _results(questions: Sequence[QuestionTallies]) -> Iterable[ToolResult]:
    for question in questions:
        for judged in question.rollouts:
            yield from judged.rollout.transcript.tool_results if judged.rollout.transcript is not None else ()


def _split_tools(
    questions: Sequence[QuestionTallies], known: Sequence[str], estimates: Mapping[str, Estimate]
) -> tuple[ToolSplit, ...]:
    calls = Counter(tool_of(name, known) for q in questions for tally in q.tallies for name in tally.called)
    failures: dict[str, list[str]] = {}
    for result in _results(questions):
        if result.failure is not None:
            failures.setdefault(tool_of(result.call.name, known), []).append(result.failure.kind.value)
    names = [*known, *([OTHER_NAMES] if calls[OTHER_NAMES] else [])]
    return tuple(
        ToolSplit(
            name=name,
            num_calls=calls[name],
            failures=_counts(failures.get(name, ())),
            share=estimates[f"tool_share/{name}"].interval,
            accuracy=estimates[f"tool_accuracy/{name}"].interval,
        )
        for name in names
    )


def _add_up(questions: Sequence[QuestionTallies]) -> Totals:
    tallies = [tally for question in questions for tally in question.tallies]
    costs = [j.rollout.cost_usd for q in questions for j in q.rollouts if j.rollout.cost_usd is not None]
    return Totals(
        prompt_tokens=sum(tally.prompt_tokens for tally in tallies),
        completion_tokens=sum(tally.completion_tokens for tally in tallies),
        seconds=math.fsum(tally.seconds for tally in tallies),
        cost_usd=math.fsum(costs) if costs else None,
    )


def _check_pixels(questions: Sequence[QuestionTallies]) -> PixelCheck | None:
    known = [(question.cluster, ratio) for question in questions if (ratio := question.pixel_ratio) is not None]
    if not known:
        return None
    scaled = Questions([cluster for cluster, _ in known]).ratio(
        [(float(ratio < MIN_PIXEL_RATIO), 1.0) for _, ratio in known]
    )
    return PixelCheck(
        num_known=len(known),
        median_ratio=statistics.median(ratio for _, ratio in known),
        scaled_share=scaled.interval,
    )


def _counts(names: Iterable[str]) -> tuple[Count, ...]:
    """The most frequent first, equals by name."""
    counted = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return tuple(Count(name=name, count=count) for name, count in counted)
