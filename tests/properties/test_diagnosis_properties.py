"""A diagnosis for any rollouts: equal to the algorithm's statistics, whatever the order; and for any file: no crash."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axpo.algo import all_wrong_rate, plan_resampling, tool_use_rate
from axpo.algo.example import build_group
from axpo.diagnostics.diagnosis import diagnose
from axpo.diagnostics.gap_sums import DumpSums
from axpo.diagnostics.importers import FORMATS, Problems, find_dumps, open_dump
from axpo.diagnostics.importers.dialogue import read_messages, read_text
from axpo.diagnostics.importers.seen import SeenRollout
from axpo.diagnostics.metrics import rollout_metrics
from axpo.diagnostics.recorder import rollout_lines
from axpo.diagnostics.recovery import forecast, fresh_probability, plan_step, posterior_recovery_probability
from axpo.errors import DataError
from axpo.measures.rates import RATES
from axpo.measures.sums import RatioSums
from axpo.types import Content, Message, Problem
from records import Step, steps

rewards = st.lists(st.sampled_from([0.0, 1.0]), max_size=4)
questions = st.lists(st.tuples(rewards, rewards), min_size=1, max_size=6)


def as_seen(drawn: list[tuple[list[float], list[float]]]) -> list[SeenRollout]:
    return [
        SeenRollout(question=f"q{index}", step=1, reward=reward, uses_tool=uses_tool)
        for index, pair in enumerate(drawn)
        for uses_tool, of_kind in zip((True, False), pair, strict=True)
        for reward in of_kind
    ]


def sums_of(seen: list[SeenRollout], *, files: int = 1) -> DumpSums:
    sums = DumpSums()
    for number in range(files):
        for rollout in seen[number::files]:
            sums.add(rollout)
        sums.end_file()
    return sums


@given(questions, st.integers(0, 2**32))
def test_rates_and_plan_are_those_of_the_algorithm_in_any_order(
    drawn: list[tuple[list[float], list[float]]], seed: int
) -> None:
    groups = [build_group(f"q{n}", tool=tool, no_tool=no_tool) for n, (tool, no_tool) in enumerate(drawn)]
    seen = as_seen(drawn)
    random.Random(seed).shuffle(seen)
    total = sums_of(seen).total()
    assert total.rates["tool_use_rate"].estimate == tool_use_rate(groups)
    assert total.rates["all_wrong_tool"].estimate == all_wrong_rate(groups, "tool")
    assert total.rates["all_wrong_no_tool"].estimate == all_wrong_rate(groups, "no_tool")
    for budget_frac, num_continuations in ((0.25, 4), (0.5, 2), (1.0, 1)):
        plan = plan_resampling(groups, budget_frac=budget_frac, num_continuations=num_continuations)
        planned = forecast(
            {1: total.need}, {1: total.counts["rollouts"]}, budget_frac=budget_frac,
            num_continuations=num_continuations, tool_use_rate=0.5, successes=total.successes,
        )  # fmt: skip
        assert planned.num_prefixes == len(plan.prefixes)
        assert planned.num_triggered == plan.num_triggered and planned.num_candidates == plan.num_candidates
        assert planned.num_questions == len({prefix.source.problem_id for prefix in plan.prefixes})


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20), st.integers(1, 4))
def test_sums_merge_and_intervals_hold_the_estimate(pairs: list[tuple[int, int]], pieces: int) -> None:
    whole, merged = RatioSums(), RatioSums()
    for wrong, right in pairs:
        whole.add(wrong, wrong + right)
    for piece in range(pieces):
        part = RatioSums()
        for wrong, right in pairs[piece::pieces]:
            part.add(wrong, wrong + right)
        merged.merge(part)
    assert merged == whole
    rate = whole.rate(is_share=True)
    if rate.low is not None and rate.high is not None and rate.estimate is not None:
        assert -1e-12 <= rate.low <= rate.estimate + 1e-12 and rate.estimate - 1e-12 <= rate.high <= 1 + 1e-12


@given(st.integers(0, 8), st.integers(0, 40), st.floats(0.001, 0.999), st.floats(0, 1), st.floats(0, 1))
def test_chances_are_chances_and_continuing_is_never_worse_than_starting_anew(
    failed: int, num: int, mean: float, correlation: float, tool_use: float
) -> None:
    spread = {"mean": mean, "correlation": correlation}
    ours = posterior_recovery_probability(failed, num, **spread)
    fresh = fresh_probability(failed, num, tool_use=tool_use, **spread)
    assert -1e-9 <= fresh <= ours + 1e-9 and ours <= 1 + 1e-9  # Proposition 1 with p(t_1) = p_tool >= q p_tool
    assert posterior_recovery_probability(failed, num + 1, **spread) >= ours - 1e-9
    assert posterior_recovery_probability(failed + 1, num, **spread) <= ours + 1e-9


@given(
    st.dictionaries(st.tuples(st.integers(1, 8), st.integers(0, 8)), st.integers(1, 20), max_size=6),
    st.integers(0, 200),
)
def test_a_plan_spends_its_slots_breadth_first(need: dict[tuple[int, int], int], slots: int) -> None:
    plan = plan_step(need, slots)
    spent = sum(prefixes * count for (_, prefixes), count in plan.items())
    assert spent == pytest.approx(min(slots, sum(c * count for (_, c), count in need.items())))
    given_to: dict[int, set[int]] = {}
    for tools, prefixes in plan:
        given_to.setdefault(tools, set()).add(prefixes)
    deepest = max((prefixes for _, prefixes in plan), default=0)
    waiting = sum(count for (_, candidates), count in need.items() if candidates)
    if deepest > 1:  # nobody has a second prefix while somebody waits for the first
        assert sum(plan.values()) == pytest.approx(waiting)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps())
def test_a_recorded_step_gives_the_numbers_that_training_logs(tmp_path: Path, step: Step) -> None:
    ids = {group.problem_id for group in step.groups}
    user = Message(role="user", content=(Content(text="?"),))
    problems = [Problem(id=problem_id, messages=(user,), answer="A") for problem_id in ids]
    lines = rollout_lines(
        step=1, phase="train", groups=step.groups, problems=problems, decode=lambda tokens: "x" * len(tokens),
        continuations=step.continuation_groups,
    )  # fmt: skip
    path = tmp_path / "train-000001.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    logged = rollout_metrics(step.groups, step.continuation_groups, step.plan, 0)
    if not lines:
        return
    total = diagnose([path]).parts[0].total
    for name, rule in RATES.items():
        if rule.logged_as and not rule.logged_as.startswith("tools/"):  # these rollouts carry no results of tools
            estimate, expected = total.rates[name].estimate, logged[rule.logged_as]
            assert estimate == (None if expected is None else pytest.approx(expected)), name
    assert total.counts["candidates"] == logged["resample/candidates"]


# -- any file ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "question", "reward", "text", "messages", "calls", "uses_tool", "step", "input", "output", "score", "gts",
    "prompt", "completion", "advantage", "status", "response", "group_index", "samples", "rollout_id", "example_id",
    "traces", "task", "group", "epoch", "scores", "id", "phase", "segment_texts", "rollout", "verdict", "benchmark",
    "problem_id", "sample", "transcript", "nodes", "role", "content", "tool_calls", "function", "arguments", "name",
)  # fmt: skip
rows = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=10)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(rows, min_size=1, max_size=5), st.sampled_from([None, *FORMATS]))
def test_no_row_of_any_shape_crashes_an_importer(tmp_path: Path, drawn: list[dict[str, Any]], name: str | None) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in drawn))
    problems = Problems()
    [file] = find_dumps(path, problems)
    sums = DumpSums()
    try:
        for seen in open_dump(file, problems, format=name).rollouts:
            sums.add(seen)
    except DataError:
        assert name is None, "only detection may give up"
    sums.end_file()
    total = sums.total()
    numbers = [total.rates[name].rate(is_share=rule.is_share) for name, rule in RATES.items()]
    known = (value for rate in numbers for value in (rate.estimate, rate.low, rate.high) if value is not None)
    assert all(math.isfinite(value) for value in known)


tags = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "\n", "x",
     '{"name": "a", "arguments": {}}', "<function=f>", "assistant"]
)  # fmt: skip


@given(st.lists(tags, max_size=30))
def test_any_order_of_tags_is_read(pieces: list[str]) -> None:
    text = "".join(pieces)
    heard = read_text(text)
    assert len(heard.calls) + heard.num_in_thinking <= text.count("<tool_call>")
    assert sum(call.is_answered for call in heard.calls) <= text.count("<tool_response>")
    assert (heard.num_turns > 0) == bool(text)


@given(st.lists(json_values | rows, max_size=6))
def test_any_list_is_read_as_messages(messages: list[Any]) -> None:
    heard = read_messages(messages)
    assert heard.num_turns <= len(messages)
