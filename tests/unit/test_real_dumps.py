"""Dumps that the code of other trainers wrote: what is diagnosed equals what was counted in the files by hand."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import pytest

from axpo.diagnostics.diagnosis import Diagnosis, PartDiagnosis, diagnose

DUMPS = Path(__file__).parents[1] / "fixtures" / "dumps"


def only_part(path: Path) -> PartDiagnosis:
    found: Diagnosis = diagnose([path])
    assert found.num_malformed == 0, found.malformed
    [part] = found.parts
    return part


def rates_of(part: PartDiagnosis, *names: str) -> list[float | None]:
    return [part.total.rates[name].estimate for name in names]


GAP = ("tool_use_rate", "accuracy", "accuracy_tool", "all_wrong_tool", "all_wrong_no_tool", "zero_signal")


def test_completions_of_trl() -> None:
    part = only_part(DUMPS / "trl" / "completions")
    assert (part.format, part.num_files, part.total.group_sizes) == ("trl", 5, {"8": 20})
    expected = [
        Fraction(57, 160),
        Fraction(45, 160),
        Fraction(26, 57),
        Fraction(5, 20),
        Fraction(7, 20),
        Fraction(4, 20),
    ]
    assert rates_of(part, *GAP) == pytest.approx([float(share) for share in expected])
    assert rates_of(part, "calls_per_rollout", "failure_rate", "turns") == pytest.approx([57 / 160, 3 / 57, 217 / 160])
    assert part.total.tools["search"].calls == 57


def test_every_step_of_trl_equals_what_trl_logged_itself() -> None:
    logged = {  # rewards/accuracy/mean, tools/call_frequency, tools/failure_frequency, frac_reward_zero_std
        1: (0.5, 0.4375, 0, 0),
        2: (0.1562, 0.3125, 0, 0.25),
        3: (0.125, 0.3438, 0.1818, 0.25),
        4: (0.5, 0.375, 0, 0),
        5: (0.125, 0.3125, 0.1, 0.5),
    }
    part = only_part(DUMPS / "trl" / "completions")
    names = ("reward_mean", "calls_per_rollout", "failure_rate", "zero_signal")
    seen = {step.step: [step.numbers.rates[name].estimate for name in names] for step in part.steps}
    assert list(seen) == list(logged)
    for step, numbers in logged.items():
        assert seen[step] == pytest.approx(numbers, abs=5e-5)


@pytest.mark.parametrize("name", ["trackio.db", "trackio_export.parquet"])
def test_tables_of_trackio_where_the_last_is_logged_twice(name: str, tmp_path: Path) -> None:
    path = DUMPS / "trl" / name
    if path.suffix == ".db":
        path = tmp_path / name
        path.write_bytes(gzip.decompress((DUMPS / "trl" / f"{name}.gz").read_bytes()))
    part = only_part(path)
    assert (part.format, part.total.group_sizes) == ("trl", {"8": 8})
    expected = [24 / 64, 21 / 64, 13 / 24, 1 / 8, 2 / 8, 1 / 8]
    assert rates_of(part, *GAP) == pytest.approx(expected)
    assert rates_of(part, "calls_per_rollout", "failure_rate", "turns") == pytest.approx([24 / 64, 0, 88 / 64])
    assert [(step.step, step.numbers.counts["rollouts"]) for step in part.steps] == [(1, 32), (2, 32)]


def test_a_log_of_inspect_ai() -> None:
    part = only_part(DUMPS / "inspect")
    assert (part.format, part.total.group_sizes) == ("inspect", {"3": 4})
    assert rates_of(part, *GAP) == pytest.approx([5 / 12, 5 / 12, 2 / 5, 2 / 4, 2 / 4, 3 / 4])
    assert rates_of(part, "calls_per_rollout", "failure_rate", "turns") == pytest.approx([6 / 12, 4 / 6, 18 / 12])
    assert part.total.failures == {"unknown_tool": 4}
    assert (part.total.lengths.unit, part.total.rates["response_length"].estimate) == ("tokens", pytest.approx(12))


def test_results_of_verifiers() -> None:
    part = only_part(DUMPS / "verifiers" / "results.jsonl")
    assert (part.format, part.total.group_sizes) == ("verifiers", {"6": 3})
    assert rates_of(part, *GAP) == pytest.approx([10 / 18, 9 / 18, 5 / 10, 0, 0, 0])
    # two more calls failed with a KeyError that verifiers shows as its bare text: not to be told from a result
    assert rates_of(part, "calls_per_rollout", "failure_rate", "turns") == pytest.approx([10 / 18, 5 / 10, 28 / 18])
    assert part.total.failures == {"unknown_tool": 5}
    assert (part.total.lengths.unit, part.total.rates["response_length"].estimate) == (
        "tokens",
        pytest.approx(140 / 18),
    )


def test_traces_of_verifiers() -> None:
    part = only_part(DUMPS / "verifiers" / "traces.jsonl")
    assert (part.format, part.total.group_sizes) == ("verifiers-traces", {"4": 3})
    assert rates_of(part, *GAP) == pytest.approx([7 / 12, 4 / 12, 2 / 7, 2 / 3, 1 / 2, 1 / 3])
    assert rates_of(part, "calls_per_rollout", "failure_rate", "turns") == pytest.approx([7 / 12, 7 / 7, 19 / 12])
    assert part.total.failures == {"bad_arguments": 5, "unknown_tool": 2}
    assert (part.total.lengths.unit, part.total.rates["response_length"].estimate) == ("tokens", pytest.approx(95 / 12))


def test_fixtures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DUMPS.rglob("*") if path.is_file()}
    assert len(sizes) >= 9 and max(sizes.values()) < 60_000
