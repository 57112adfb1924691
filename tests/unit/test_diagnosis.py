"""What `axpo diagnose` prints and returns, and what keeps it flat."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.diagnose import EXIT_CONDITION, add_arguments, parse_condition, parse_mapping, run_diagnose
from axpo.diagnostics import gap_sums
from axpo.diagnostics.diagnosis import Diagnosis, PartDiagnosis, diagnose
from axpo.diagnostics.gap_sums import DumpSums, length_bin, quantile
from axpo.diagnostics.gap_text import verdict
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout
from axpo.errors import ConfigError, DataError
from axpo.measures.rates import RATES
from axpo.types import FailureKind


def rollout(question: str, *, reward: float | None = 0.0, calls: int = 0, **fields: Any) -> dict[str, Any]:
    return {"question": question, "reward": reward, "calls": [{"tool": "zoom"}] * calls, **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gap_rows(num_questions: int) -> list[dict[str, Any]]:
    """Acting fails on three of four questions, thinking on one of four."""
    return [
        rollout(f"q{index}", calls=calls, reward=reward, step=index % 4)
        for index in range(num_questions)
        for calls, reward in ((1, float(index % 4 == 0)), (1, 0.0), (0, float(index % 4 != 1)), (0, 0.0))
    ]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write(tmp_path / "dump.jsonl", gap_rows(80))


def part_of(path: Path, **options: Any) -> PartDiagnosis:
    [part] = diagnose([path], **options).parts
    return part


# -- verdict ----------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "a gap": (gap_rows(80), "The thinking-acting gap is there: 50.0 % of", "recover about"),
    "too few to tell": (gap_rows(4), "No gap can be told", "which may be chance"),
    "no tool": ([rollout("q"), rollout("q")], "None of the 2 rollouts calls a tool.", "nothing to resample"),
    "no reward": (
        [rollout("q", calls=1, reward=None, text="x"), rollout("q", reward=None)],
        "no rollout has a reward",
        "would resample nothing",
    ),
    "single rollouts": ([rollout(f"q{n}", calls=1) for n in range(40)], "every question has a single", "cannot be"),
    "a budget below one prefix": (
        [rollout("q", calls=1), rollout("q", reward=1.0), rollout("p", reward=1.0), rollout("p")],
        "too few groups to tell",
        "a budget of r = 0.25 with K = 4 is less than one prefix",
    ),
    "always a tool": (
        [rollout(f"q{n}", calls=1, reward=r) for n in range(9) for r in (1.0, 0.0)],
        "every rollout calls a tool",
        "would resample nothing here",
    ),
    "no gap but the reverse": (
        [
            rollout(f"q{n}", calls=calls, reward=float(bool(calls) and number == 0))
            for n in range(40)
            for calls in (1, 0)
            for number in (0, 1)
        ],
        "There is no gap, acting does better",
        "would resample nothing",
    ),
    "broken tools": (
        [{**row, "calls": [{"tool": "zoom", "failure": "timeout"}] * len(row["calls"])} for row in gap_rows(80)],
        "The thinking-acting gap",
        "First mend the tools: 100.0 % of the answered calls fail, most of them by timeout",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_says_what_was_found_and_what_follows(tmp_path: Path, case: str) -> None:
    rows, finding, consequence = CASES[case]
    format = "minimal"  # a reward of null alone does not show which format it is
    text = verdict(part_of(write(tmp_path / "dump.jsonl", rows), format=format))
    assert finding in text and consequence in text, text


# -- the command ------------------------------------------------------------------------------------------------------


def test_everything_is_printed_and_written(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dump.open("a") as file:
        file.write("[bold]broken[/bold] \x1b[31m\n")
    out = tmp_path / "diagnosis.json"
    assert run_diagnose([dump], json_path=out) == 0
    printed = capsys.readouterr().out
    for words in (
        "The thinking-acting gap is there",
        "all wrong among tool-using siblings",
        "75.0 %",
        "D3 cannot be computed",
        "Needed: the checkpoint",
        "Skipped 1 malformed row, first:",
        f"{dump}:321",
        "Groups without signal: 0 one sample, 0 all right, 20 all wrong",
        "Under r = 0.25, K = 4: 60 triggered questions with 120 candidates, 15 prefixes chosen in 4 steps.",
    ):
        assert words in printed, words
    assert "\x1b[31m" not in printed
    [part] = json.loads(out.read_text())["parts"]
    assert part["total"]["rates"]["all_wrong_tool"]["estimate"] == 0.75
    assert [step["step"] for step in part["steps"]] == [0, 1, 2, 3]
    definitions = json.loads(out.read_text())["definitions"]
    assert definitions["all_wrong_tool"]["paper"] == "D2" and set(definitions) == set(part["total"]["rates"])


def test_json_alone_on_standard_output(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_diagnose([dump], json_path=Path("-")) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["format"] == "minimal"


@pytest.mark.parametrize(
    ("condition", "code", "line"),
    [
        ("all_wrong_tool>0.5", EXIT_CONDITION, "--fail-if all_wrong_tool>0.5: it is 0.75 in"),
        ("all_wrong_tool > 0.75", 0, ""),
        ("all_wrong_tool>=0.75", EXIT_CONDITION, "it is 0.75"),
        ("all_wrong_tool.low>0.7", 0, ""),
        ("all_wrong_tool.high>0.7", EXIT_CONDITION, "all_wrong_tool.high>0.7: it is 0.8"),
        ("tool_use_rate<0.6", EXIT_CONDITION, "it is 0.5"),
        ("gap<=0", 0, ""),
        ("restore_rate<0.1", EXIT_CONDITION, "cannot be checked, no dump has a value"),
    ],
)
def test_a_condition_decides_the_exit_code(
    dump: Path, capsys: pytest.CaptureFixture[str], condition: str, code: int, line: str
) -> None:
    assert run_diagnose([dump], fail_if=["accuracy>2", condition]) == code
    errors = capsys.readouterr().err
    assert line in errors and errors.count("\n") == (1 if line else 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("all_wrong_tool", "expected NAME>NUMBER"),
        ("all_wrong_tool==1", "expected NAME>NUMBER"),
        ("__import__('os')>1", "expected NAME>NUMBER"),
        ("all_wrong_tools>1", "no number is called all_wrong_tools. Known: tool_use_rate, "),
        ("gap>1e", "'1e' is no number"),
        ("gap.mean>1", "expected NAME>NUMBER"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_condition(text)


@pytest.mark.parametrize("words", [["reward"], ["=x"], ["reward="], ["reward=a", "reward=b"]])
def test_what_is_no_mapping_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--map"):
        parse_mapping(words)


def test_every_option_reaches_the_command() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = "a b --format verl --map reward=acc --map text=out --correct-at 0.5 --budget-frac 0.1 --num-continuations 2"
    given = parser.parse_args([*words.split(), "--fail-if", "gap>0", "--json", "-"])
    assert given.paths == [Path("a"), Path("b")] and given.fail_if == ["gap>0"]
    assert parse_mapping(given.mapping) == {"reward": "acc", "text": "out"}
    assert (given.format, given.correct_at, given.budget_frac, given.num_continuations) == ("verl", 0.5, 0.1, 2)


def test_a_budget_out_of_range_or_an_unwritable_file_is_refused(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget of 0\.\.1"):
        run_diagnose([dump], budget_frac=2.0)
    with pytest.raises(ConfigError, match="--json"):
        run_diagnose([dump], json_path=tmp_path / "no" / "folder" / "out.json")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_directory_is_one_dump_and_named_files_are_each_their_own(tmp_path: Path) -> None:
    for step in (1, 2):
        rows = [{"input": "q", "output": "o", "score": s, "step": step} for s in (0, 1)]
        write(tmp_path / f"{step}.jsonl", rows)
    (tmp_path / "notes.json").write_text('{"a": 1}')
    diagnosis = diagnose([tmp_path])
    [part] = diagnosis.parts
    assert (part.num_files, part.total.counts["groups"], len(part.steps)) == (2, 2, 2)
    assert diagnosis.num_skipped == 1 and "fits no known format" in diagnosis.skipped[0]
    named = diagnose([tmp_path / "1.jsonl", tmp_path / "2.jsonl"])
    assert [p.total.counts["rollouts"] for p in named.parts] == [2, 2]


def test_rollouts_of_one_question_in_two_files_are_two_groups(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path / f"seed{seed}.jsonl", [rollout("q", reward=1.0), rollout("q", reward=float(seed == 1))])
    part = part_of(tmp_path)
    assert part.total.group_sizes == {"2": 2} and part.total.counts["no_signal_all_right"] == 1


def test_a_directory_without_rollouts_says_what_it_saw(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("broken\n")
    (tmp_path / "b.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"no rollouts were found. Malformed: 1, files passed over: 2\."):
        diagnose([tmp_path])


def test_a_file_that_breaks_off_keeps_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axpo.diagnostics.importers import files

    def read(path: Path, problems: object) -> Any:
        yield from ((f"{path}:{n}", row) for n, row in enumerate(gap_rows(30)))
        raise OSError(5, "Input/output error")

    path = write(tmp_path / "dump.jsonl", [])
    monkeypatch.setitem(files._READERS, ".jsonl", read)  # pyright: ignore[reportPrivateUsage]
    diagnosis = diagnose([path])
    assert diagnosis.parts[0].total.counts["rollouts"] == 120
    assert diagnosis.num_skipped == 1 and "Input/output error" in diagnosis.skipped[0]


def test_the_threshold_of_right_is_an_option(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.jsonl", [rollout("q", reward=0.5, calls=1), rollout("q", reward=0.2, calls=1)])
    assert part_of(path).total.rates["all_wrong_tool"].estimate == 1
    assert part_of(path, correct_at=0.5).total.rates["accuracy"].estimate == 0.5


def test_unscored_rollouts_count_for_tool_use_only(tmp_path: Path) -> None:
    rows = [rollout("q", calls=1, reward=None), rollout("q", calls=1, reward=0.0), rollout("q", reward=1.0)]
    part = part_of(write(tmp_path / "dump.jsonl", rows), format="minimal")
    rates = part.total.rates
    assert rates["tool_use_rate"].estimate == 2 / 3
    assert (rates["accuracy_tool"].denominator, rates["all_wrong_tool"].estimate) == (1, 1)
    assert any("rollouts without a reward: 1;" in note.lower() for note in part.notes)


def test_a_group_with_one_scored_rollout_has_no_signal_for_that_reason(tmp_path: Path) -> None:
    rows = [rollout("q", reward=None), rollout("q", reward=1.0), rollout("p", reward=1.0), rollout("p", reward=1.0)]
    counts = part_of(write(tmp_path / "dump.jsonl", rows), format="minimal").total.counts
    assert (counts["no_signal_one_sample"], counts["no_signal_all_right"], counts["no_signal_all_wrong"]) == (1, 1, 0)


def test_first_calls_are_compared_by_tool_and_arguments(tmp_path: Path) -> None:
    def rows(question: str, *arguments: str) -> list[dict[str, Any]]:
        return [{**rollout(question), "calls": [{"tool": "zoom", "arguments": text}]} for text in arguments]

    dump = [*rows("a", "1", "1", "1"), *rows("b", "1", "2", "1"), *rows("c", "1")]
    rate = part_of(write(tmp_path / "dump.jsonl", dump)).total.rates["same_first_call"]
    assert (rate.numerator, rate.denominator) == (1, 2)


def test_the_change_of_tool_use_compares_first_and_last_steps(tmp_path: Path) -> None:
    rows = [rollout(f"q{n}", calls=int(n < step), step=step) for step in range(1, 11) for n in range(10)]
    change = part_of(write(tmp_path / "dump.jsonl", rows)).tool_use_change
    assert change.estimate == pytest.approx(0.95 - 0.15)  # steps 9, 10 minus steps 1, 2
    assert change.low is not None and 0 < change.low < 0.8


# -- memory -----------------------------------------------------------------------------------------------------------


def seen(question: str, *, step: int | None = None, calls: int = 0, reward: float = 0.0) -> SeenRollout:
    made = tuple(SeenCall(tool="zoom", is_answered=True) for _ in range(calls))
    return SeenRollout(question=question, step=step, reward=reward, uses_tool=calls > 0, calls=made)


def test_groups_are_closed_when_too_many_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_sums, "MAX_OPEN_GROUPS", 10)
    sums = DumpSums()
    for question in range(100):
        for _ in range(3):
            sums.add(seen(f"q{question}"))
        assert len(sums._open) <= 10  # pyright: ignore[reportPrivateUsage]
    sums.end_file()
    assert sums.total().group_sizes == {3: 100}, "rollouts that stand together stay together"
    assert sums.num_closed_early > 0
    sums.add(seen("q0"))
    sums.end_file()
    assert sums.total().group_sizes == {3: 100, 1: 1}


def test_steps_and_tools_beyond_the_limit_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_sums, "MAX_STEPS", 3)
    monkeypatch.setattr(gap_sums, "MAX_TOOLS", 2)
    sums = DumpSums()
    for step in range(10):
        calls = (SeenCall(tool=f"tool{step}", is_answered=True, failure=FailureKind.TIMEOUT),)
        sums.add(SeenRollout(question="q", step=step, reward=0.0, uses_tool=True, calls=calls))
    sums.end_file()
    assert set(sums.steps) == {0, 1, 2}
    total = sums.total()
    assert (total.counts["rollouts"], total.counts["triggered"]) == (10, 10)
    assert {name: tool.calls for name, tool in total.tools.items()} == {"tool0": 1, "tool1": 1, "(other tools)": 8}
    assert total.tools["(other tools)"].failures == Counter({FailureKind.TIMEOUT: 8})


def test_memory_stays_flat_over_a_long_dump() -> None:
    import tracemalloc

    sums = DumpSums()
    peaks: list[int] = []
    tracemalloc.start()
    for step in range(20):
        for question in range(500):
            for _ in range(4):
                sums.add(seen(f"question {question} of step {step}", step=step % 2, calls=1))
        if step % 2:
            sums.end_file()
            peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert peaks[-1] < peaks[0] + 500_000, peaks  # ten thousand groups would be four million


def test_diagnosing_loads_neither_torch_nor_pyarrow(dump: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from axpo.cli.diagnose import run_diagnose; "
        "run_diagnose([Path(sys.argv[1])]); print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(dump)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_quantiles_are_right_to_nine_percent() -> None:
    lengths = range(1, 5001)
    bins = Counter(length_bin(length) for length in lengths)
    for share in (0.1, 0.5, 0.9, 0.99):
        value = quantile(bins, share, longest=5000)
        assert value == pytest.approx(5000 * share, rel=0.095)
    assert quantile(Counter({-1: 3}), 0.5, longest=0) == 0
    assert quantile(Counter(), 0.5, longest=0) is None


def test_every_rate_has_a_title_and_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    for name, rule in RATES.items():
        assert f"`{name}`" in guide, name
        assert rule.title


def test_the_record_goes_through_json(dump: Path) -> None:
    from axpo.codec import to_json

    diagnosis = diagnose([dump])
    assert isinstance(diagnosis, Diagnosis)
    text = json.dumps(to_json(diagnosis), allow_nan=False)
    assert json.loads(text)["parts"][0]["recovery"]["num_prefixes"] == 15


@pytest.mark.parametrize(("correct_at", "is_noted"), [(1.0, True), (0.5, False)])
def test_a_threshold_that_no_reward_reaches_is_noted(tmp_path: Path, correct_at: float, is_noted: bool) -> None:
    rows = [{"question": 1, "reward": reward, "text": "4"} for reward in (0.9, 0.1, None)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [part] = diagnose([path], correct_at=correct_at).parts
    noted = [note for note in part.notes if note.startswith("No reward reaches 1, ")]
    assert bool(noted) == is_noted
    assert not noted or "the highest is 0.9. Set --correct-at" in noted[0]
