"""Every number of a benchmark on three questions of four samples, derived by hand.

              sample 0          sample 1                   sample 2                       sample 3
    q1  s1    right, zoom       wrong, zoom failed,        right                          lost
                                python refused
    q2  s1    right             wrong                      wrong, malformed, zoom         wrong, unknown tool
                                                           unanswered (turn limit)
    q3  s2    wrong, zoom       wrong                      wrong                          no record
              (token limit)

10 of 12 samples ended. Tool users: q1 two, q2 two, q3 one. Right: q1 two, q2 one, q3 none.
"""

from __future__ import annotations

from fractions import Fraction as F

import pytest

from axpo.evaluation.averages import macro_average
from axpo.evaluation.compare import compare, comparison_markdown
from axpo.evaluation.scorecard import BenchmarkSummary
from axpo.evaluation.summary import summarize
from axpo.measures.estimates import Questions
from benchmark_records import ZOOM, answered, info, question, three_questions


@pytest.fixture(scope="module")
def summary() -> BenchmarkSummary:
    problems, rollouts = three_questions()
    described = info(breakdowns=("subject", "level"))
    return summarize(described, problems, rollouts, num_samples=4, tools=(ZOOM, "python"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pass@1", F(2 + 1 + 0, 12)),
        # 1 - C(4-c, 2)/C(4, 2): c = 2 gives 1 - 1/6, c = 1 gives 1 - 3/6, c = 0 gives 0.
        ("pass@2", (F(5, 6) + F(1, 2) + 0) / 3),
        ("pass@4", F(2, 3)),
        ("score/f1", (1 + F(1, 2) + 1 + 1) / 12),  # what is lost or has no score adds 0
        ("tool_use_rate", F(5, 10)),  # of the rollouts that finished
        ("tool_use_any", F(1)),
        ("executed_rate", F(3, 10)),  # q1/0, q1/1 (it ran and raised), q3/0
        ("executed_any", F(2, 3)),
        # Answered: 1 + 2 + 1 + 1 + 1 = 6; written rightly: the three zooms among them.
        ("valid_call_rate", F(3, 6)),
        ("calls_per_rollout", F(1 + 2 + 1 + 1 + 1, 10)),  # answered ones
        ("accuracy_tool", F(1, 5)),
        ("accuracy_no_tool", F(2, 5)),  # ended without: q1/2, q2/0 right; q2/1, q3/1, q3/2 wrong
        ("all_wrong_tool", F(2, 3)),  # q2, q3
        ("all_wrong_no_tool", F(1, 3)),  # q3
        ("all_wrong_gap", F(2, 3) - F(1, 3)),
        ("stop/answered", F(8, 10)),
        ("stop/turn_limit", F(1, 10)),
        ("stop/token_limit", F(1, 10)),
        ("stop/time_limit", F(0)),
        ("truncated", F(2, 10)),
        ("lost", F(2, 12)),
        ("prompt_tokens", F(100)),
        ("completion_tokens", F((10 + 11 + 12) + (10 + 11 + 12 + 13) + (10 + 11 + 12), 10)),
        ("cost_usd", F(1, 100)),
        ("seconds", F(2)),
        ("turns", F(5 * 2 + 5 * 1, 10)),
        (f"tool_share/{ZOOM}", F(4, 10)),
        (f"tool_accuracy/{ZOOM}", F(1, 4)),
        ("tool_share/python", F(1, 10)),
        ("tool_accuracy/python", F(0)),
        ("tool_share/(malformed or unknown)", F(2, 10)),
    ],
)
def test_every_number_by_hand(summary: BenchmarkSummary, name: str, expected: F) -> None:
    assert summary.number(name).estimate == pytest.approx(float(expected), abs=1e-12)


def test_the_interval_takes_questions_of_one_seed_together(summary: BenchmarkSummary) -> None:
    # Two clusters: s1 has 3 right of 8, s2 has 0 of 4.
    expected = Questions(["s1", "s2"]).ratio([(3 / 4, 2), (0, 1)]).interval
    interval = summary.number("pass@1")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_what_was_counted(summary: BenchmarkSummary) -> None:
    assert (summary.num_questions, summary.num_samples) == (3, 4)
    assert (summary.num_lost, summary.num_missing) == (2, 1)
    assert (summary.num_undecided, summary.num_judge_failed) == (1, 1)
    rules = [(rule.name, rule.count) for rule in summary.rules]
    assert rules == [("letter", 4), ("no_answer", 2), ("text", 2), ("judge_failed", 1), ("open", 1)]


def test_totals_add_up_what_is_known(summary: BenchmarkSummary) -> None:
    totals = summary.totals
    assert (totals.prompt_tokens, totals.completion_tokens, totals.seconds) == (1000, 112, 20.0)
    assert totals.cost_usd == pytest.approx(0.01 + 0.01 + 0.02)  # a lost try was paid for


def test_each_tool_has_its_calls_and_failures(summary: BenchmarkSummary) -> None:
    table = {s.name: (s.num_calls, {f.name: f.count for f in s.failures}) for s in summary.tool_splits}
    assert table == {
        ZOOM: (4, {"execution_error": 1}),
        "python": (1, {"bad_arguments": 1}),
        "(malformed or unknown)": (2, {"malformed_call": 1, "unknown_tool": 1}),
    }


def test_breakdowns_by_hand(summary: BenchmarkSummary) -> None:
    subject, level = summary.breakdowns
    rows = {
        row.value: (row.num_questions, *(row.number(n).estimate for n in ("pass@1", "pass@4", "tool_use_rate")))
        for row in subject.rows
    }
    assert rows == {
        "algebra": (2, 2 / 8, 1 / 2, 3 / 6),
        "geometry": (1, 1 / 4, 1.0, 2 / 4),
    }
    assert [row.value for row in level.rows] == ["2", "10", "–"]  # numbers by size, not by letters


def test_average_and_worst_case_by_hand(summary: BenchmarkSummary) -> None:
    # s1: q1 is right in samples {0, 2}, q2 in {0}: both in one of four. s2: q3 never. Mean (1/4 + 0) / 2.
    variants = summary.variants
    assert variants is not None
    assert (variants.num_groups, variants.min_size, variants.max_size) == (2, 1, 2)
    assert variants.average_case.estimate == pytest.approx(3 / 12)
    assert variants.worst_case.estimate == pytest.approx(1 / 8)
    expected = Questions(["s1", "s2"]).ratio([(1, 4), (0, 4)]).interval
    assert variants.worst_case.high == pytest.approx(expected.high)


def test_questions_that_share_nothing_have_no_worst_case() -> None:
    problems = (question("a"), question("b"))
    assert summarize(info(), problems, [], num_samples=1).variants is None


def test_effective_pixels_by_hand(summary: BenchmarkSummary) -> None:
    # q1 saw 250 of 1000 pixels, q2 all of them, q3 has no picture.
    assert summary.pixels is not None
    assert summary.pixels.num_known == 2
    assert summary.pixels.scaled_share.estimate == 1 / 2
    assert summary.pixels.median_ratio == (0.25 + 1.0) / 2


def test_rotations_by_hand() -> None:
    # Rotation 0: single 1/1, cross 0/1. Rotation 1: single 0/1, cross 0/1 and 1/1 of another question.
    rows = [("a", "0", "single", 1), ("b", "0", "cross", 0)]
    rows += [("a", "1", "single", 0), ("b", "1", "cross", 0), ("c", "1", "cross", 1)]
    problems, rollouts = [], []
    for base, rotation, category, is_right in rows:
        name = f"{base}-{rotation}"
        problems.append(question(name, cluster=base, categories={"rotation": rotation, "category": category}))
        rollouts.append(answered(name, 0, right=bool(is_right)))
    table = summarize(info(), problems, rollouts, num_samples=1).rotations
    numbers = {
        row.value: (row.num_questions, *(row.number(n).estimate for n in ("single", "cross", "all"))) for row in table
    }
    assert numbers == {
        "0": (2, 1.0, 0.0, 1 / 2),
        "1": (3, 0.0, 1 / 2, pytest.approx(1 / 3)),
        "mean": (5, 1 / 2, 1 / 4, pytest.approx((1 / 2 + 1 / 3) / 2)),  # over rotations, not over rows
    }


def test_an_average_over_benchmarks_is_unweighted(summary: BenchmarkSummary) -> None:
    solved = [answered(name, 0, right=True) for name in ("a", "b")]
    one = summarize(info(name="one"), (question("a"), question("b")), solved, num_samples=1)
    # 3/12 of the one and 2/2 of the other; the distances to the upper bounds add up in squares.
    mean = macro_average((summary, one), "pass@1")
    assert mean.estimate == pytest.approx((F(1, 4) + 1) / 2)
    upper = summary.number("pass@1").high
    assert upper is not None and mean.high == pytest.approx(5 / 8 + (upper - 1 / 4) / 2)


def test_a_difference_is_paired(summary: BenchmarkSummary) -> None:
    # B is A with one more right sample of every question.
    problems, rollouts = three_questions()
    first_wrong = {"q1": 1, "q2": 1, "q3": 0}
    better = [
        answered(r.rollout.problem_id, r.rollout.sample, right=True)
        if r.rollout.sample == first_wrong[r.rollout.problem_id]
        else r
        for r in rollouts
    ]
    other = summarize(info(), problems, better, num_samples=4)
    (one,) = compare([[other]], [[summary]]).benchmarks
    by_name = {difference.name: difference for difference in one.differences}
    gain = by_name["pass@1"]
    assert (gain.a, gain.b) == (pytest.approx(1 / 2), pytest.approx(1 / 4))
    assert gain.difference.estimate == pytest.approx(1 / 4)
    assert by_name["pass@4"].difference.estimate == pytest.approx(1 / 3)  # only q3 was solved by none
    assert (one.solved_by_both, one.solved_only_by_a, one.solved_only_by_b, one.solved_by_none) == (2, 1, 0, 0)
    assert one.only_a_ids == ("q3",)


def test_a_difference_has_the_interval_of_a_paired_estimate(summary: BenchmarkSummary) -> None:
    problems, rollouts = three_questions()
    other = summarize(info(), problems, [r for r in rollouts if r.rollout.problem_id != "q1"], num_samples=4)
    (one,) = compare([[summary]], [[other]]).benchmarks
    questions = Questions(["s1", "s1", "s2"])
    ours, theirs = [(2 / 4, 1), (1 / 4, 1), (0, 1)], [(0, 1), (1 / 4, 1), (0, 1)]
    expected = (questions.ratio(ours, method="a") - questions.ratio(theirs, method="b")).interval
    assert one.differences[0].difference == expected


def test_several_runs_of_a_side_include_the_variance_between_them(summary: BenchmarkSummary) -> None:
    problems, rollouts = three_questions()
    worse = summarize(info(), problems, [r for r in rollouts if not r.is_correct], num_samples=4)
    single, several = compare([[summary]], [[worse]]), compare([[summary], [worse]], [[worse], [summary]])
    assert (single.includes_training_seeds, several.includes_training_seeds) == (False, True)
    assert (several.num_runs_a, several.num_runs_b) == (2, 2)
    assert "do not include the variance between training seeds" in comparison_markdown(single)
    assert "include the variance between training runs" in comparison_markdown(several)
    difference = several.benchmarks[0].differences[0].difference
    assert difference.estimate == pytest.approx(0)
    assert difference.low is not None and difference.low < -0.25  # two runs a side tell little
    assert several.benchmarks[0].num_samples_a == 8
