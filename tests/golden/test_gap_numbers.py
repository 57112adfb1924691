"""The numbers of a diagnosis: counted by hand, and equal to what training logged of the same rollouts."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from axpo.algo import recovery_probability as proposition_1
from axpo.algo import resample_budget as budget_of_the_algorithm
from axpo.algo import thinking_prefixes
from axpo.diagnostics.diagnosis import Numbers, PartDiagnosis, diagnose
from axpo.diagnostics.recorder import read_metrics, rollout_lines
from axpo.diagnostics.recovery import (
    SuccessSums,
    fresh_probability,
    plan_step,
    posterior_recovery_probability,
    resample_budget,
)
from axpo.measures.rates import RATES
from axpo.types import Content, Message, Problem, RolloutGroup, SegmentKind, StopReason
from records import PROMPT, TEXT, THINKING, TOOL_CLOSE, TOOL_OPEN, TOOL_RESULT, build_rollout
from synthetic_run import write_run


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def siblings(question: str, *, tool: list[float], no_tool: list[float], step: int = 1) -> list[dict[str, Any]]:
    shared = {"question": question, "step": step}
    calls = [{"tool": "zoom"}]
    return [{**shared, "reward": reward, "calls": calls} for reward in tool] + [
        {**shared, "reward": reward, "calls": []} for reward in no_tool
    ]


def only_part(*paths: Path, **options: Any) -> PartDiagnosis:
    [part] = diagnose(paths, **options).parts
    return part


# The four questions of `test_rollout_metrics.py`:
#   q0  tool 0 0     direct 1 0      triggered
#   q1  tool 0       direct 0 0 0    triggered, no signal
#   q2  tool 1 0 0   direct 0        a call is right
#   q3  no tool      direct 1 1 1 1  no signal
FOUR = [
    *siblings("q0", tool=[0, 0], no_tool=[1, 0]),
    *siblings("q1", tool=[0], no_tool=[0, 0, 0]),
    *siblings("q2", tool=[1, 0, 0], no_tool=[0]),
    *siblings("q3", tool=[], no_tool=[1, 1, 1, 1]),
]


def test_rates_and_reasons_of_four_questions(tmp_path: Path) -> None:
    part = only_part(write_rows(tmp_path / "four.jsonl", FOUR))
    rates = {name: rate.estimate for name, rate in part.total.rates.items()}
    expected = {
        "tool_use_rate": 6 / 16,
        "tool_use_any": 3 / 4,
        "all_wrong_tool": 2 / 3,  # q0, q1 of q0, q1, q2
        "all_wrong_no_tool": 2 / 4,  # q1, q2 of all
        "accuracy": 6 / 16,
        "accuracy_tool": 1 / 6,
        "accuracy_no_tool": 5 / 10,
        "accuracy_attempted": 2 / 12,  # q0 and q2 have one each of the twelve
        "reward_mean": 6 / 16,
        "zero_signal": 2 / 4,
        "all_right": 1 / 4,
        "all_wrong": 1 / 4,
        "same_first_call": 1.0,  # q0 alone has two tool-using siblings and is triggered
        "calls_per_rollout": 6 / 16,
        "failure_rate": 0.0,
    }
    assert {name: rates[name] for name in expected} == expected
    assert part.total.gap.estimate == pytest.approx(2 / 3 - 1 / 2)
    counts = part.total.counts
    assert (counts["triggered"], counts["candidates"], counts["rollouts"], counts["groups"]) == (2, 3, 16, 4)
    reasons = [counts[f"no_signal_{why}"] for why in ("one_sample", "all_right", "all_wrong")]
    assert reasons == [0, 1, 1]
    assert part.total.tool_counts == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert part.total.group_sizes == {"4": 4}
    assert part.total.tools["zoom"].calls == 6


def test_the_budget_is_spread_breadth_first_within_each_step(tmp_path: Path) -> None:
    # floor(0.25 * 16) = 4: with K = 2 two prefixes, one for q0 and one for q1; with K = 4 one of the two
    path = write_rows(tmp_path / "four.jsonl", FOUR)
    two, one = (only_part(path, num_continuations=count).recovery for count in (2, 4))
    assert (two.num_triggered, two.num_candidates, two.num_prefixes, two.num_questions) == (2, 3, 2, 2)
    assert (one.num_prefixes, one.num_questions) == (1, 1)
    # two steps of eight rollouts: floor(0.25 * 8) // 2 = 1 prefix in the first, nothing is triggered in the second
    rows = [{**row, "step": 1 if row["question"] in ("q0", "q1") else 2} for row in FOUR]
    split = only_part(write_rows(tmp_path / "split.jsonl", rows), num_continuations=2).recovery
    assert (split.num_steps, split.num_prefixes, split.num_questions) == (2, 1, 1)
    # three questions with 1, 2 and 3 candidates, four slots: all get one, then half of the two that want a second
    need = {(1, 1): 1, (2, 2): 1, (3, 3): 1}
    assert plan_step(need, 4) == {(1, 1): 1.0, (2, 1): 0.5, (2, 2): 0.5, (3, 1): 0.5, (3, 2): 0.5}


@pytest.mark.parametrize(("num_rollouts", "frac"), [(100, 0.29), (512, 0.25), (7, 0.3), (10, 1.0), (10, 0.0)])
def test_the_budget_is_the_algorithm_s(num_rollouts: int, frac: float) -> None:
    assert resample_budget(num_rollouts, frac) == budget_of_the_algorithm(num_rollouts, frac)


def test_recovery_follows_proposition_1_when_questions_are_alike() -> None:
    # no spread between questions: both sides are those of the algorithm's own function
    for num in (1, 4, 8):
        ours = posterior_recovery_probability(5, num, mean=0.3, correlation=0.0)
        assert ours == pytest.approx(proposition_1(0.3, num))
        fresh = fresh_probability(5, num, tool_use=0.4, mean=0.3, correlation=0.0)
        assert fresh == pytest.approx(proposition_1(0.4 * 0.3, num))


def test_recovery_of_questions_that_differ() -> None:
    # mean 1/2 and correlation 1/3 is the uniform prior; after k failures p ~ Beta(1, 1 + k)
    # E[(1-p)^n | 0 of k] = (1 + k) / (1 + k + n)
    for failed, num in ((0, 1), (2, 4), (5, 8)):
        expected = 1 - Fraction(1 + failed, 1 + failed + num)
        assert posterior_recovery_probability(failed, num, mean=0.5, correlation=1 / 3) == pytest.approx(
            float(expected)
        )
    # one new rollout that is a tool with q = 1/2, after one failure: 1/2 * E[p | 0 of 1] = 1/2 * 1/3
    assert fresh_probability(1, 1, tool_use=0.5, mean=0.5, correlation=1 / 3) == pytest.approx(1 / 6)
    assert posterior_recovery_probability(1, 4, mean=0.5, correlation=1.0) == 0  # it always fails
    assert posterior_recovery_probability(0, 1, mean=0.5, correlation=2e-313) == 0.5  # too small to divide by


def test_the_spread_between_questions_by_analysis_of_variance() -> None:
    # successes of tries: 3/4, 1/4, 2/4 (MSB = 4 * 2/16 / 2 = 1/4, MSW = (3/4 + 3/4 + 1) / 9 = 5/18)
    sums = SuccessSums()
    for right in (3, 1, 2):
        sums.add(right, 4)
    expected = (Fraction(1, 4) - Fraction(5, 18)) / (Fraction(1, 4) + 3 * Fraction(5, 18))
    assert expected < 0 and sums.correlation == 0  # less spread than chance gives: none
    sums.add(0, 4)
    # MSB = (9/4 + 1/4 + 1 - 36/16) / 3 = 5/12, MSW = (6 - 14/4) / 12 = 5/24
    assert sums.correlation == pytest.approx(float(Fraction(5, 24) / (Fraction(5, 12) + 3 * Fraction(5, 24))))


def test_the_forecast_of_a_dump_by_hand(tmp_path: Path) -> None:
    # q0 0 of 2, q1 0 of 2, q2 2 of 2, q3 1 of 2, no siblings without a tool
    rows = [
        row
        for name, rewards in (("q0", [0, 0]), ("q1", [0, 0]), ("q2", [1, 1]), ("q3", [1, 0]))
        for row in siblings(name, tool=rewards, no_tool=[])
    ]
    recovery = only_part(write_rows(tmp_path / "dump.jsonl", rows), num_continuations=1).recovery
    # s^2/k: 0, 0, 2, 1/2; p = 3/8; MSB = (5/2 - 9/8) / 3 = 11/24; MSW = (3 - 5/2) / 4 = 1/8
    rho = (Fraction(11, 24) - Fraction(1, 8)) / (Fraction(11, 24) + Fraction(1, 8))
    assert recovery.tool_success == 3 / 8 and recovery.correlation == pytest.approx(float(rho))  # 4/7
    strength = (1 - rho) / rho
    per_question = Fraction(3, 8) * strength / (strength + 2)  # one continuation after two failures
    assert recovery.num_prefixes == 2  # floor(0.25 * 8) // 1, one for each of the triggered
    assert recovery.expected_recovered == pytest.approx(float(2 * per_question))
    assert recovery.expected_fresh == pytest.approx(recovery.expected_recovered)  # every rollout uses a tool


# -- our own runs -----------------------------------------------------------------------------------------------------

COUNTS = {
    "rollout/count": "rollouts",
    "resample/triggered": "triggered",
    "resample/candidates": "candidates",
    "resample/used": "continuations",
}


@pytest.mark.parametrize("method", ["axpo", "grpo"])
def test_every_number_of_our_own_run_is_the_one_that_training_logged(tmp_path: Path, method: str) -> None:
    write_run(tmp_path / "run", method=method, num_steps=4, eval_steps=(4,))
    frac = 0.25 if method == "axpo" else 0.0
    diagnosis = diagnose([tmp_path / "run"], budget_frac=frac)
    [part] = [part for part in diagnosis.parts if "train" in part.name]
    logged = {record["step"]: record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"}
    assert [step.step for step in part.steps] == list(logged)
    for step in part.steps:
        compare(step.numbers, logged[step.step or 0])
    planned = sum(record["resample/planned"] for record in logged.values())
    assert part.recovery.num_prefixes * 4 == planned
    assert (planned > 0) == (method == "axpo"), "the run has to resample for this test to mean something"


def test_a_source_that_would_meet_its_limit_at_once_is_no_candidate(tmp_path: Path) -> None:
    # of five wrong tool users: one full right at the tag, one with a token left, one whose first call was one too many,
    # one that had an earlier call answered, one that answered
    full = [PROMPT, THINKING, TOOL_OPEN]
    some = [*full, (SegmentKind.TOOL_CALL, (0.5,))]
    answered = [*some, TOOL_CLOSE, TEXT, TOOL_RESULT, THINKING, TOOL_OPEN]
    ends = [
        (full, StopReason.TOKEN_LIMIT),
        (some, StopReason.TOKEN_LIMIT),
        (some, StopReason.TURN_LIMIT),
        (answered, StopReason.TURN_LIMIT),
        (answered, StopReason.ANSWERED),
    ]
    rollouts = [build_rollout(f"r{n}", layout=layout, stop_reason=stop) for n, (layout, stop) in enumerate(ends)]
    group = RolloutGroup(problem_id="q0", rollouts=tuple(rollouts))
    problem = Problem(id="q0", messages=(Message(role="user", content=(Content(text="?"),)),), answer="A")
    lines = rollout_lines(step=1, phase="train", groups=[group], problems=[problem], decode=lambda ids: "x" * len(ids))
    counts = only_part(write_rows(tmp_path / "train-000001.jsonl", lines)).total.counts
    assert counts["candidates"] == len(thinking_prefixes(group)) == 3


def compare(numbers: Numbers, logged: dict[str, Any]) -> None:
    rules = {name: rule.logged_as for name, rule in RATES.items() if rule.logged_as}
    assert len(rules) >= 14
    for name, key in rules.items():
        estimate = numbers.rates[name].estimate
        assert estimate == (None if logged[key] is None else pytest.approx(logged[key])), (name, key)
    for key, name in COUNTS.items():
        assert numbers.counts[name] == logged[key], key
    assert sum(tool.calls for tool in numbers.tools.values()) == logged["tools/calls"]
    for name, tool in numbers.tools.items():
        assert tool.calls == logged[f"tools/{name}/calls"]
        assert sum(tool.failures.values()) == logged[f"tools/{name}/failures"]
        assert tool.rollouts / numbers.counts["rollouts"] == pytest.approx(logged[f"tools/{name}/use_rate"])
    failures = {key.rpartition("/")[2]: value for key, value in logged.items() if key.startswith("tools/failures/")}
    assert numbers.failures == {kind: count for kind, count in failures.items() if count}
    assert numbers.lengths.max == logged["length/response_max"]
    assert numbers.rates["truncated"].estimate == pytest.approx(1 - logged["stop/answered"])
