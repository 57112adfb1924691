"""Numbers of a benchmark: what never changes them, what is refused, what raises an alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.cli.benchmark_results import Scores, print_comparison
from axpo.codec import from_json, to_json
from axpo.errors import ConfigError, DataError
from axpo.evaluation.averages import common_k, macro_average, question_addends
from axpo.evaluation.compare import compare, comparison_markdown
from axpo.evaluation.folder import Manifest
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import BenchmarkSummary
from axpo.evaluation.summary import summarize
from axpo.types import StopReason
from benchmark_records import UNANSWERED, ZOOM, answered, info, lost, question, three_questions

KEYS = ("subject", "level")


def _summary(rollouts: Any = None, **changes: Any) -> BenchmarkSummary:
    problems, every = three_questions()
    return summarize(info(breakdowns=KEYS), problems, every if rollouts is None else rollouts, num_samples=4, **changes)


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_of_questions_and_rollouts_changes_nothing(random: Any) -> None:
    problems, rollouts = (list(items) for items in three_questions())
    random.shuffle(problems)
    random.shuffle(rollouts)
    assert summarize(info(breakdowns=KEYS), problems, rollouts, num_samples=4) == _summary()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4), st.permutations(range(4)))
def test_the_order_of_samples_changes_no_headline(right: list[list[bool]], order: list[int]) -> None:
    def numbers(samples: Any) -> dict[str, Any]:
        problems = [question(f"q{i}") for i in range(len(right))]
        rollouts = [
            answered(f"q{i}", samples[sample], right=is_right, calls=[(ZOOM, None)] if sample % 2 else [])
            for i, row in enumerate(right)
            for sample, is_right in enumerate(row)
        ]
        summary = summarize(info(), problems, rollouts, num_samples=4)
        kept = ("pass@1", "pass@2", "pass@4", "tool_use_rate", "accuracy_tool", "all_wrong_tool")
        return {name: summary.number(name) for name in kept}

    assert numbers(range(4)) == numbers(order)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10), st.booleans())
def test_a_rollout_that_is_gone_or_lost_is_wrong_and_stays_in_n(position: int, has_record: bool) -> None:
    _, rollouts = three_questions()
    gone = rollouts[position]
    rest = [rollout for rollout in rollouts if rollout is not gone]
    if has_record:
        rest.append(lost(gone.rollout.problem_id, gone.rollout.sample))
    before, after = _summary(), _summary(rest)
    change = (after.number("pass@1").estimate or 0.0) - (before.number("pass@1").estimate or 0.0)
    assert change == pytest.approx(-1 / 12 if gone.is_correct else 0.0, abs=1e-12)
    assert (after.num_questions, after.num_samples) == (before.num_questions, before.num_samples)
    assert after.num_lost - before.num_lost == (gone.rollout.transcript is not None)


def test_a_question_without_tool_users_says_nothing_about_them() -> None:
    problems = [question("a"), question("b")]
    rollouts = [answered("a", 0, calls=[(ZOOM, None)]), answered("b", 0)]
    summary = summarize(info(), problems, rollouts, num_samples=1)
    assert (summary.number("all_wrong_tool").estimate, summary.number("all_wrong_no_tool").estimate) == (1.0, 1.0)


def test_one_question_tells_a_number_and_no_interval() -> None:
    number = summarize(info(), [question("q")], [answered("q", 0, right=True)], num_samples=1).number("pass@1")
    assert (number.estimate, number.low, number.high) == (1.0, None, None)
    geometry = _summary().breakdowns[0].rows[1].number("pass@1")
    assert (geometry.estimate, geometry.low, geometry.high) == (1 / 4, None, None)


def test_a_summary_survives_json() -> None:
    summary = _summary(tools=(ZOOM,), judge="some-judge")
    assert from_json(BenchmarkSummary, json.loads(json.dumps(to_json(summary), allow_nan=False))) == summary


def test_pass_at_k_has_the_powers_of_two_and_n() -> None:
    names = [m.name for m in summarize(info(), [question("q")], [], num_samples=6).measures if "pass@" in m.name]
    assert names == ["pass@1", "pass@2", "pass@4", "pass@6"]


def test_nothing_but_losses_still_has_numbers() -> None:
    summary = summarize(info(breakdowns=KEYS), [question("q")], [lost("q", 0)], num_samples=1)
    assert summary.number("pass@1").estimate == 0.0
    assert summary.number("accuracy_tool").estimate is None
    assert summary.number("completion_tokens").estimate is None
    assert summary.totals.cost_usd is None
    assert summary.pixels is None


@pytest.mark.parametrize(
    ("problems", "rollouts", "num_samples", "words"),
    [
        ([], [], 1, "got 0 questions"),
        ([question("q"), question("q")], [], 1, "2 questions with 1 ids"),
        ([question("q")], [], 0, "0 samples"),
        ([question("q")], [answered("other", 0)], 1, "rollout other/0 of puzzles: no question"),
        ([question("q")], [answered("q", 4)], 4, "q/4 of puzzles: expected samples 0 to 3"),
        ([question("q")], [answered("q", 0), lost("q", 0)], 4, "q/0 of puzzles: is there twice"),
    ],
)
def test_what_does_not_fit_together_is_refused(problems: Any, rollouts: Any, num_samples: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        summarize(info(), problems, rollouts, num_samples=num_samples)


# -- alarms -----------------------------------------------------------------------------------------------------------


def _alarms(rollouts: list[JudgedRollout], *, described: Any = None, **changes: Any) -> dict[str, str]:
    problems = [question(f"q{i}") for i in range(50)]
    summary = summarize(described or info(), problems, rollouts, num_samples=1, **changes)
    return {alarm.name: alarm.text for alarm in summary.alarms}


def _fine(count: int = 50, **changes: Any) -> list[JudgedRollout]:
    return [answered(f"q{i}", 0, **changes) for i in range(count)]


def test_a_sound_evaluation_has_no_alarm() -> None:
    described = info(needs_judge=True, needs_tool="search", expected_size=50)
    rollouts = _fine(calls=[("web_search", None)], pixels=(100, 50))
    assert _alarms(rollouts, described=described, judge="some-judge", tools=("web_search",)) == {}


def test_a_benchmark_without_the_judge_or_the_tool_it_needs_is_a_lower_bound() -> None:
    described = info(needs_judge=True, needs_tool="search")
    alarms = _alarms(_fine(rule="open", decided=False, calls=[(ZOOM, None)]), described=described, tools=(ZOOM,))
    assert set(alarms) == {"no_judge", "missing_tool"}
    assert "50 verdicts are open" in alarms["no_judge"]
    assert f"offered: {ZOOM}" in alarms["missing_tool"]


def test_a_slice_is_no_published_set() -> None:
    assert (
        "50 questions, while the preset axpo has 304"
        in _alarms(_fine(), described=info(expected_size=304))["other_size"]
    )


@pytest.mark.parametrize(
    ("name", "few", "many", "spoilt"),
    [
        # Limits: more than 5 %, 2 %, 10 %, 1 %, 5 % of 50.
        ("scaled_pictures", 2, 3, lambda i: answered(f"q{i}", 0, pixels=(100, 49))),
        ("lost_rollouts", 1, 2, lambda i: lost(f"q{i}", 0)),
        ("truncated", 5, 6, lambda i: answered(f"q{i}", 0, stop=StopReason.TURN_LIMIT)),
        ("judge_failures", 0, 1, lambda i: answered(f"q{i}", 0, rule="judge_failed", decided=False)),
        ("undecided", 2, 3, lambda i: answered(f"q{i}", 0, rule="open", decided=False)),
    ],
)
def test_an_alarm_starts_right_above_its_limit(name: str, few: int, many: int, spoilt: Any) -> None:
    for count, expected in ((few, set[str]()), (many, {name})):
        rollouts = [spoilt(i) for i in range(count)] + [
            answered(f"q{i}", 0, pixels=(100, 50)) for i in range(count, 50)
        ]
        assert set(_alarms(rollouts)) == expected


def test_tools_that_nobody_calls_are_an_alarm_unless_others_are_called() -> None:
    tools = ("web_search", ZOOM)
    assert "web_search, image_zoom_in" in _alarms(_fine(), tools=tools)["unused_tool"]
    zooming = _fine(calls=[(ZOOM, None)])
    assert _alarms(zooming, tools=tools) == {}
    needing = _alarms(zooming, described=info(needs_tool="search"), tools=tools)
    assert needing == {"unused_tool": "Offered and never called: web_search."}


def test_names_that_a_model_made_up_are_counted_as_one() -> None:
    calls = [(f"tool {i}" * 100, UNANSWERED) for i in range(20)]
    splits = summarize(
        info(), [question("q")], [answered("q", 0, calls=calls)], num_samples=1, tools=(ZOOM,)
    ).tool_splits
    assert [(split.name, split.num_calls) for split in splits] == [(ZOOM, 0), ("(malformed or unknown)", 20)]


# -- comparing --------------------------------------------------------------------------------------------------------


def _solving(right: str, *, asked: str = "abcd", name: str = "puzzles", **changes: Any) -> BenchmarkSummary:
    rollouts = [answered(problem_id, 0, right=problem_id in right) for problem_id in asked]
    described = info(name=name, title=name.title(), **changes)
    return summarize(described, [question(problem_id) for problem_id in asked], rollouts, num_samples=1)


def test_only_questions_that_both_were_asked_are_compared() -> None:
    (one,) = compare([[_solving("ab", asked="abcd")]], [[_solving("bcx", asked="bcxyz")]]).benchmarks
    assert (one.num_shared, one.num_only_a, one.num_only_b) == (2, 2, 3)
    assert (one.solved_by_both, one.only_a_ids, one.only_b_ids, one.solved_by_none) == (1, (), ("c",), 0)
    gap = one.differences[0]
    assert (gap.name, gap.a, gap.b, gap.difference.estimate) == ("pass@1", 0.5, 1.0, -0.5)


def test_a_system_against_itself_is_no_difference() -> None:
    summaries = [_solving("ab"), _solving("c", name="riddles", area="Search")]
    comparison = compare([summaries], [summaries])
    for part in (*comparison.benchmarks, *comparison.averages):
        for difference in part.differences:
            interval = difference.difference
            assert interval.estimate == 0.0 and interval.low is not None and interval.high is not None
            assert interval.low < 0 < interval.high  # a few equal verdicts do not prove that systems are equal


def test_averages_are_unweighted_over_benchmarks() -> None:
    ours = [_solving("abcd"), _solving("ab", name="riddles"), _solving("", name="maps", area="Perception")]
    theirs = [_solving(""), _solving("", name="riddles"), _solving("", name="maps", area="Perception")]
    averages = {average.title: average for average in compare([ours], [theirs]).averages}
    assert set(averages) == {"Reasoning", "Overall"}  # an area of one benchmark is that benchmark
    assert averages["Reasoning"].differences[0].difference.estimate == pytest.approx((1 + 1 / 2) / 2)
    assert averages["Overall"].differences[0].difference.estimate == pytest.approx((1 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ([_solving("")], [_solving("", name="riddles")], "Mine has puzzles, Yours has riddles"),
        ([_solving("", asked="ab")], [_solving("", asked="xyz")], "Puzzles: Mine was asked 2 questions, Yours 3"),
        ([], [_solving("")], "no benchmark"),
        ([_solving(""), _solving("")], [_solving("")], "Mine: benchmark 'puzzles' is there twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(ours: Any, theirs: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare([ours], [theirs], labels=("Mine", "Yours"))


def test_the_text_of_a_comparison_marks_what_is_told_apart() -> None:
    ours, theirs = _solving("abcd"), _solving("")
    text = comparison_markdown(compare([[ours]], [[theirs]], labels=("tools | on", "tools <off>")))
    assert "| Puzzles | 4 | **+100.0 [+30.7, +100.0]** (100.0 / 0.0) |" in text
    assert "# tools \\| on against tools &lt;off>" in text
    assert "| Puzzles | 0 | 4 | 0 | 0 |" in text
    assert "left out" not in text


def test_the_text_of_a_comparison_says_what_was_left_out() -> None:
    many = replace(_solving("ab", asked="abx"), num_samples=1)
    text = comparison_markdown(compare([[many, _solving("", name="riddles")]], [[_solving("", asked="abyz")]]))
    assert "Puzzles: 1 of A's questions and 2 of B's have no counterpart and are left out." in text
    assert "Only A has riddles." in text


def test_the_text_of_a_comparison_says_when_the_sides_were_judged_differently() -> None:
    ours, theirs = _solving("ab", is_official=True, needs_judge=True), _solving("a", needs_judge=True)
    text = comparison_markdown(compare([[replace(ours, judge="reader")]], [[theirs]]))
    assert "Puzzles: A was judged by the authors' rules with reader, B by axpo's rules without a judge" in text
    assert "was judged" not in comparison_markdown(compare([[theirs]], [[theirs]]))


def test_numbers_over_benchmarks_say_what_they_lack() -> None:
    assert common_k([_solving(""), _summary()]) == 1
    with pytest.raises(DataError, match="no benchmark"):
        common_k([])
    with pytest.raises(DataError, match="'pass@x' is none of"):
        question_addends("pass@x")
    with pytest.raises(DataError, match="k=4"):
        macro_average([_solving("")], "pass@4")


def test_folders_with_one_label_are_runs_of_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders: list[Path] = []
    for number, (label, solved) in enumerate([("ours", "abc"), ("ours", "abd"), ("theirs", "a"), ("theirs", "b")]):
        manifest = Manifest(
            label=label,
            benchmarks=(info(),),
            sources={},
            preset="axpo",
            limit=None,
            is_official=False,
            num_samples=1,
            seed=number,
            has_judge=False,
            tools=(),
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        scores = Scores(manifest=manifest, summaries=(_solving(solved),))
        (folder / "summary.json").write_text(json.dumps(to_json(scores)))
        folders.append(folder)
    print_comparison(folders, out=tmp_path / "comparison.json")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["num_runs_a"], written["num_runs_b"], written["includes_training_seeds"]) == (2, 2, True)
    print_comparison([folders[0], folders[2]], out=None)
    assert "do not include the variance between training seeds" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected two methods, got 1: ours"):
        print_comparison([folders[0], folders[1], folders[0]], out=None)
