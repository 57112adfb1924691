"""One name, one number: the same rollouts through training metrics, diagnose, evaluation, benchmarks and the report."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.algo import all_wrong_rate, plan_resampling, post_resampling_all_wrong_rate, restore_rate, tool_use_rate
from axpo.algo.example import build_continuations
from axpo.diagnostics.diagnosis import Numbers, diagnose
from axpo.diagnostics.metrics import rollout_metrics
from axpo.diagnostics.recorder import RunRecorder, read_metrics, rollout_lines
from axpo.dialogue import Transcript, Verdict
from axpo.evaluation.outcomes import outcome_metrics, question_outcome
from axpo.evaluation.records import JudgedRollout, SampledRollout
from axpo.evaluation.scorecard import BenchmarkSummary
from axpo.evaluation.summary import summarize
from axpo.images import ContentImageStore
from axpo.measures.rates import RATES
from axpo.reports.runs import load_arms
from axpo.reports.tools import tool_rows
from axpo.types import (
    FailureKind,
    Message,
    Problem,
    Rollout,
    RolloutGroup,
    StopReason,
    ToolFailure,
)
from benchmark_records import info
from synthetic_run import World, sample_group

Values = dict[str, float | None]
NUM_ASKED = 8
"""Samples per question; one of each question is lost."""
SHORT = {rule.logged_as: name for name, rule in RATES.items() if rule.logged_as}
PREFIXES = ("rollout/", "zoom/", "eval/")
OTHER_UNITS = ("seconds/", "tokens/", "memory/")


def short(key: str) -> str:
    """The name that a logged key has elsewhere."""
    if key in SHORT:
        return SHORT[key]
    return next((key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)), key)


def damaged(rollout: Rollout, number: int) -> Rollout:
    """Every third tool-using rollout wrote a malformed call, every fifth rollout was cut off."""
    if rollout.tool_results and number % 3 == 0:
        [result] = rollout.tool_results
        failure = ToolFailure(kind=FailureKind.MALFORMED_CALL, message="no JSON")
        call = replace(result.call, name="", arguments={}, parse_error="no JSON")
        broken = replace(result, call=call, failure=failure, content=())
        rollout = replace(rollout, tool_results=(broken,), images=rollout.images[:1], reward=0.0)
    return replace(rollout, stop_reason=StopReason.TOKEN_LIMIT) if number % 5 == 0 else rollout


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[RolloutGroup]]:
    world = World(store=ContentImageStore(tmp_path_factory.mktemp("world") / "images"))
    rng, numbers = random.Random(3), itertools.count()
    found: list[RolloutGroup] = []
    for _ in range(6):
        problem = world.add_problem(rng)
        group = sample_group(world, problem, "s1", rng, size=NUM_ASKED - 1, tool_rate=0.5, jitter=70)
        rollouts = tuple(damaged(rollout, next(numbers)) for rollout in group.rollouts)
        found.append(replace(group, rollouts=rollouts))
    return world, found


@pytest.fixture(scope="module")
def outputs(groups: tuple[World, list[RolloutGroup]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    world, sampled = groups
    folder = tmp_path_factory.mktemp("run")
    recorder = RunRecorder(folder, store=world.store, device="cpu")
    plan = plan_resampling(sampled, budget_frac=0.0, num_continuations=4)
    metrics = rollout_metrics(sampled, [], plan, len(sampled), problems=world.problems, tools=("image_zoom_in",))
    lines = rollout_lines(step=1, phase="train", groups=sampled, problems=world.problems, decode=world.decode)
    recorder.record_step(1, metrics, lines)
    [record] = read_metrics(folder)
    [part] = diagnose([folder]).parts
    outcomes = [
        question_outcome(problem.id, group.rollouts, metadata=problem.metadata, num_samples=NUM_ASKED)
        for problem, group in zip(world.problems, sampled, strict=True)
    ]
    evaluated = outcome_metrics(outcomes)
    return {
        "metrics.jsonl": {short(key): value for key, value in record.items() if not key.startswith(OTHER_UNITS)},
        "diagnose": diagnosed(part.total),
        "evaluation": {short(key): value for key, value in evaluated.items()},
        "benchmark": benchmarked(world.problems, sampled),
        "report": reported(folder),
        "axpo.algo": {
            "tool_use_rate": tool_use_rate(sampled),
            "all_wrong_tool": all_wrong_rate(sampled),
            "all_wrong_no_tool": all_wrong_rate(sampled, "no_tool"),
        },
    }


def diagnosed(numbers: Numbers) -> Values:
    values: Values = {name: rate.estimate for name, rate in numbers.rates.items()}
    values |= {f"tools/failures/{kind}": count for kind, count in numbers.failures.items()}
    values |= {"length/response_max": numbers.lengths.max, "count": numbers.counts["rollouts"]}
    for name, tool in numbers.tools.items():
        values[f"tools/{name}/calls"] = tool.calls
        values[f"tools/{name}/failures"] = sum(tool.failures.values())
    return values


def benchmarked(problems: Sequence[Problem], sampled: Sequence[RolloutGroup]) -> Values:
    summary: BenchmarkSummary = summarize(
        info(),
        problems,
        [judged(rollout, sample) for group in sampled for sample, rollout in enumerate(group.rollouts)],
        num_samples=NUM_ASKED,
        tools=("image_zoom_in",),
    )
    values: Values = {}
    for measure in summary.measures:
        name = {"tool_share/image_zoom_in": "tools/image_zoom_in/share"}.get(measure.name, measure.name)
        interval = measure.interval
        values |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return values


def judged(rollout: Rollout, sample: int) -> JudgedRollout:
    calls = tuple(result.call for result in rollout.tool_results)
    turns = [Message(role="assistant", tool_calls=calls)] if calls else []
    transcript = Transcript(
        id=rollout.id,
        problem_id=rollout.problem_id,
        prompt=(),
        turns=(*turns, Message(role="assistant")),
        tool_results=rollout.tool_results,
        stop_reason=rollout.stop_reason,
        final_text=rollout.final_text,
    )
    tried = SampledRollout(benchmark="puzzles", problem_id=rollout.problem_id, sample=sample, transcript=transcript)
    return JudgedRollout(rollout=tried, verdict=Verdict(is_correct=rollout.is_correct, rule="letter"))


def reported(folder: Path) -> Values:
    """The table of tools on the report's Overview."""
    values: Values = {}
    for row in tool_rows(load_arms([folder])):
        if row.tool == "all calls":
            values |= {"tools/calls": row.num_calls, "failure_rate": row.failed, "tool_use_rate": row.use_rates[0]}
        elif row.tool == "(malformed or unknown)":
            values["tools/failures/malformed_call"] = row.num_calls
        else:
            failed = None if row.failed is None else row.failed * row.num_calls
            values |= {f"tools/{row.tool}/calls": row.num_calls, f"tools/{row.tool}/failures": failed}
    return values


def test_every_name_that_two_outputs_have_is_one_number(outputs: dict[str, Values]) -> None:
    pairs = list(itertools.combinations(outputs, 2))
    compared: set[str] = set()
    for first, second in pairs:
        for name in outputs[first].keys() & outputs[second].keys():
            ours, theirs = outputs[first][name], outputs[second][name]
            assert ours == (None if theirs is None else pytest.approx(theirs)), (name, first, second)
            compared.add(name)
    # these were different once
    assert {"tool_use_rate", "truncated", "calls_per_rollout", "failure_rate", "stop/answered"} <= compared
    assert {"pass@1", "pass@1_low", "accuracy_tool", "all_wrong_tool", "box_hit_rate"} <= compared
    assert len(compared) > 30


def test_the_rollouts_tell_the_definitions_apart(outputs: dict[str, Values]) -> None:
    metrics = outputs["metrics.jsonl"]
    finished, lost = 6 * (NUM_ASKED - 1), 6
    assert metrics["count"] == finished and outputs["benchmark"]["lost"] == pytest.approx(lost / (finished + lost))
    assert metrics["tools/failures/malformed_call"] and outputs["diagnose"]["truncated"]
    assert outputs["benchmark"]["tool_use_rate"] == pytest.approx(metrics["tool_use_rate"])


def test_rates_after_resampling_are_those_of_the_algorithm(groups: tuple[World, list[RolloutGroup]]) -> None:
    _, sampled = groups
    plan = plan_resampling(sampled, budget_frac=0.5, num_continuations=2)
    assert len(plan.prefixes) > 1
    branches = [build_continuations(prefix, [0.0, float(n % 2)]) for n, prefix in enumerate(plan.prefixes)]
    metrics = rollout_metrics(sampled, branches, plan, 0)
    assert metrics["rollout/all_wrong_tool_post"] == post_resampling_all_wrong_rate(sampled, branches)
    assert metrics["resample/restore_rate"] == restore_rate(sampled, branches)
    assert metrics["resample/restore_rate_all"] == restore_rate(sampled, branches, over="triggered")
