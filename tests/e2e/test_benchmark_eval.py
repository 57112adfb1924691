"""`axpo eval --benchmarks`: a checkpoint and an endpoint, what is written, kill and go on, mistakes of the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.main import main
from axpo.evaluation.folder import read_results
from chat_stub import chat_stub

MIXED = Path(__file__).parents[2] / "recipes" / "mini_cpu" / "mixed.toml"
FIXTURES = Path(__file__).parents[1] / "fixtures"


def endpoint_words(url: str, out: Path, *more: str) -> list[str]:
    return [
        "eval",
        *("--benchmarks", "mini_count", "--limit", "6", "--endpoint", url, "--model", "stub", "--out", str(out)),
        *("--data.tools", '["image_zoom_in"]', "--endpoint.max_concurrent", "2", "--eval.num_samples", "3"),
        *("--endpoint.max_retries", "0", "--rollout.max_fault_retries", "0"),
        *more,
    ]


def scores_of(folder: Path) -> dict[str, Any]:
    """The numbers without those that a clock made."""
    summary = json.loads((folder / "summary.json").read_text())["summaries"][0]
    summary["totals"].pop("seconds")
    summary["measures"] = [m for m in summary["measures"] if m["name"] != "seconds"]
    return summary


def test_an_endpoint_is_evaluated_with_tools_and_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, out, "--endpoint.usd_per_million_prompt_tokens", "1e4",
                                   "--endpoint.usd_per_million_completion_tokens", "1e5")) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "Pass@3" in printed and "pixels reached the model" in printed
    manifest, (result,) = read_results(out)
    assert manifest.label == "stub" and manifest.limit == 6 and len(result.rollouts) == 18
    golds = {problem.id: problem.answer for problem in result.problems}
    for judged in result.rollouts:
        transcript = judged.rollout.transcript
        assert transcript is not None
        assert judged.is_correct == (transcript.final_text == f"<answer>{golds[judged.rollout.problem_id]}</answer>")
        assert [r.call.name for r in transcript.tool_results] == ["image_zoom_in"] * (len(transcript.turns) - 1)
        assert all(result.failure is None for result in transcript.tool_results)
        assert transcript.first_prompt_tokens is not None and judged.rollout.picture_px == 1024 * 1024
        assert judged.rollout.effective_px == transcript.first_prompt_tokens * 1024
        usage = transcript.usage
        cost_usd = (usage.prompt_tokens * 1e4 + usage.completion_tokens * 1e5) / 1e6
        assert judged.rollout.cost_usd == pytest.approx(cost_usd)
    summary = scores_of(out)
    right = sum(judged.is_correct for judged in result.rollouts)
    measures = {measure["name"]: measure["interval"] for measure in summary["measures"]}
    assert 0 < right < 18
    assert measures["pass@1"]["estimate"] == pytest.approx(right / 18)
    uses = sum(judged.rollout.transcript.uses_tool for judged in result.rollouts if judged.rollout.transcript)
    assert measures["tool_use_rate"]["estimate"] == pytest.approx(uses / 18)
    assert (out / "table.md").read_text().startswith("### Pass@1")
    assert "<html" in (out / "report.html").read_text()
    assert not json.loads((out / "journal.jsonl").read_text().splitlines()[-1]).get("reply")


def test_kill_9_in_the_middle_asks_nothing_twice_and_ends_at_the_same_numbers(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, whole, "--endpoint.check", "false")) == 0
        everything = Counter(stub.answered)
    first: Counter[str] = Counter()
    for max_answers in (5, 9):
        with chat_stub(max_answers=max_answers) as stub:
            process = subprocess.Popen(
                [sys.executable, "-m", "axpo.cli.main", *endpoint_words(stub.url, out, "--endpoint.check", "false")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            try:
                stub.wait_for_waiting(2, timeout_s=120)  # both dialogues wait: every answer was taken in
            finally:
                process.kill()
                process.wait()
            first += Counter(stub.answered)
    with (out / "rollouts" / "mini_count.jsonl").open("ab") as file:
        file.write(b'{"benchmark": "mini_count", "problem_id"')  # what a power cut may leave
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, out, "--endpoint.check", "false")) == 0
        second = Counter(stub.answered)
    assert sum(first.values()) == 14
    assert max((first + second).values()) == 1, "a request was asked twice"
    assert first + second == everything
    assert scores_of(out) == scores_of(whole)
    assert (out / "table.md").read_text() == (whole / "table.md").read_text()


def test_a_finished_evaluation_is_judged_again_without_asking(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, out)) == 0
        num_asked = len(stub.answered)
        before = scores_of(out)
        (out / "verdicts" / "mini_count.jsonl").unlink()
        assert main(endpoint_words(stub.url, out)) == 0
        assert len(stub.answered) == num_asked
    assert scores_of(out) == before


def test_a_service_that_is_down_or_fails_ends_the_run_and_costs_nobody_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(endpoint_words("http://127.0.0.1:9/v1", out)) == 2
    assert "nothing answers at http://127.0.0.1:9. Start the server" in capsys.readouterr().err
    with chat_stub(is_broken=True) as stub:
        assert main(endpoint_words(stub.url, out)) == 1
        assert len(stub.requests) == 1
    assert "failed the check before the run, and nothing was sampled" in capsys.readouterr().err
    with chat_stub(is_broken=True) as stub:
        assert main(endpoint_words(stub.url, out, "--endpoint.check", "false")) == 1
    said = capsys.readouterr().err
    assert "16 rollouts in a row were lost" in said and "same command again" in said
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, out)) == 0
    assert scores_of(out)["num_lost"] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--limit", "5"], "with --limit 6, not with --limit 5"),
        (["--eval.temperature", "0.1"], "eval.temperature = 0.7, not 0.1"),
        (["--protocol", "qwen"], "not"),
    ],
)
def test_an_evaluation_does_not_go_on_as_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    out = tmp_path / "out"
    with chat_stub() as stub:
        assert main(endpoint_words(stub.url, out)) == 0
        capsys.readouterr()
        assert main([*endpoint_words(stub.url, out), *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--benchmarks", "mathvison", "--model", "mini"], "Did you mean mathvision?"),
        (["--benchmarks", "vstar,vstar", "--model", "mini"], "each once"),
        (["--benchmarks", "mini_count"], "--model is missing"),
        (["--benchmarks", "mini_count", "--model", "mini", "--limit", "0"], "at least one question"),
        (["--benchmarks", "mini_count", "--model", "mini", "--data", "vstar=x"], "vstar is not among"),
        (["--benchmarks", "missing.jsonl", "--model", "mini"], "no such file"),
        (["--benchmarks", "vstar", "--data", "/nowhere", "--model", "mini"], "expected a folder"),
        (["--benchmarks", "mini_count", "--model", "m", "--endpoint", "localhost:80"], "expected an address"),
        (["--benchmarks", "mini_count", "--model", "mini", "--judge.url", "http://x/v1"], "give both"),
        (["--benchmarks", "mini_count", "--model", "mini", "--endpoint.api_kee", "X"], "did you mean"),
        ([], "CONFIG.toml, or --benchmarks"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["eval", *words, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_and_two_evaluations_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(MIXED), "--benchmarks", "mini_count,mini_lookup", "--limit", "3", "--model", "mini"]
    words += ["--eval.num_samples", "2"]
    with_tools, without = tmp_path / "with", tmp_path / "without"
    assert main([*words, "--out", str(with_tools), "--label", "tools"]) == 0
    assert main([*words, "--out", str(without), "--label", "none", "--no-tools"]) == 0
    results = [
        outcome
        for benchmark in read_results(without)[1]
        for judged in benchmark.rollouts
        if judged.rollout.transcript is not None
        for outcome in judged.rollout.transcript.tool_results
    ]
    assert all(r.failure is not None for r in results)  # the small model calls what nobody offered
    capsys.readouterr()
    assert main(["eval", "compare", str(with_tools), str(without), "--out", str(tmp_path / "c.md")]) == 0
    assert "tools against none" in capsys.readouterr().out
    assert "Mini dots" in (tmp_path / "c.md").read_text()
    assert main(["eval", "table", str(with_tools), str(without)]) == 0
    table = capsys.readouterr().out
    assert "| tools |" in table and "| none |" in table and "Mini look-ups" in table
    assert main(["eval", "table", str(with_tools), "--out", str(tmp_path / "t.html")]) == 0
    assert "<table" in (tmp_path / "t.html").read_text()
    assert main(["eval", "compare", str(with_tools), str(tmp_path)]) == 2
    assert "holds no summary.json" in capsys.readouterr().err


def test_real_mathvision_and_dynamath_files_run_through_an_endpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_stub() as stub:
        words = ["eval", "--benchmarks", "mathvision,dynamath", "--data", str(FIXTURES), "--limit", "4", "--model", "s"]
        words += ["--endpoint", stub.url, "--out", str(out), "--eval.num_samples", "2"]
        assert main([*words, "--data.tools", '["image_zoom_in"]']) == 0
    _, results = read_results(out)
    assert [(result.info.name, len(result.problems), len(result.rollouts)) for result in results] == [
        ("mathvision", 4, 8),
        ("dynamath", 4, 8),
    ]
