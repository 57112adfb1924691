"""Servers that see nothing, through `axpo eval --benchmarks`: chance is what they score, and an alarm says why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from axpo.cli.main import main
from benchmark_files import published_hrbench_rows, write_hrbench, write_visualprobe
from chat_stub import CALL, THINK_CLOSE, Prompt, chat_stub, tokenizer, writes


def evaluate(url: str, data: Path, out: Path, benchmarks: str, *more: str) -> dict[str, dict[str, Any]]:
    words = ["eval", "--benchmarks", benchmarks, "--data", str(data), "--endpoint", url, "--model", "stub"]
    words += ["--out", str(out), "--eval.num_samples", "2", *more]
    assert main(words) == 0
    summaries = json.loads((out / "summary.json").read_text())["summaries"]
    return {summary["info"]["name"]: summary for summary in summaries}


def measure(summary: dict[str, Any], name: str) -> float:
    return next(m["interval"]["estimate"] for m in summary["measures"] if m["name"] == name)


@pytest.mark.parametrize("more", [(), ("--official",), ("--limit", "8"), ("--preset", "full", "--limit", "8")])
def test_a_server_that_always_answers_a_scores_a_quarter_on_hrbench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    data = tmp_path / "data"
    for resolution in ("4k", "8k"):
        write_hrbench(data / f"hrbench_{resolution}", resolution=resolution, rows=published_hrbench_rows(12))
    with chat_stub(write=writes(f"{THINK_CLOSE}\\boxed{{A}}")) as stub:
        names = "hrbench_4k,hrbench_8k"
        summaries = evaluate(stub.url, data, tmp_path / "out", names, "--data.tools", "[]", *more)
    assert len(summaries) == 2
    for summary in summaries.values():
        assert measure(summary, "pass@1") == measure(summary, "pass@2") == 0.25
        alarms = {alarm["name"]: alarm["text"] for alarm in summary["alarms"]}
        assert alarms["one_answer_letter"].startswith("The model answers A in 100.0 % of ")
        assert "one_gold_letter" not in alarms
        assert ("not_all_official" in alarms) is ("--official" in more)
    assert "HR-Bench-8K: The model answers A" in capsys.readouterr().out


def test_data_whose_right_option_is_always_the_first_raise_an_alarm(tmp_path: Path) -> None:
    rows = [row for row in published_hrbench_rows(8) if row["answer"] == "A"]
    data = write_hrbench(tmp_path / "data", rows=rows)
    with chat_stub(write=writes(f"{THINK_CLOSE}\\boxed{{A}}")) as stub:
        (summary,) = evaluate(stub.url, data, tmp_path / "out", "hrbench_4k", "--data.tools", "[]").values()
    assert measure(summary, "pass@1") == 1.0
    alarms = {alarm["name"]: alarm["text"] for alarm in summary["alarms"]}
    assert alarms["one_gold_letter"].startswith("A is the right option in 100.0 % of 8 multiple-choice questions")
    assert "one_answer_letter" not in alarms  # it answers A where A is right


def test_official_visualprobe_judges_the_first_answer_of_all_turns(tmp_path: Path) -> None:
    def write(prompt: Prompt) -> Sequence[int]:
        text = f"{THINK_CLOSE}<answer>last</answer>"
        if prompt.fields.get("tools") and prompt.fields["messages"][-1]["role"] != "tool":
            text = f"{THINK_CLOSE}Let me look. <answer>first</answer>\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
        return tokenizer().encode(text, add_special_tokens=False)

    data = write_visualprobe(tmp_path / "data", levels=("hard",), count=1)
    read: dict[str, set[str]] = {}
    for name, more in {"ours": (), "theirs": ("--official",)}.items():
        out = tmp_path / name
        with chat_stub(write=write) as stub:
            evaluate(stub.url, data, out, "visualprobe", "--data.tools", '["image_zoom_in"]', *more)
        lines = (out / "verdicts" / "visualprobe.jsonl").read_text().splitlines()
        read[name] = {json.loads(line)["verdict"]["answer"] for line in lines}
    assert read == {"ours": {"last"}, "theirs": {"first"}}


def test_a_folder_keeps_to_one_protocol_for_each_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_visualprobe(tmp_path / "data", levels=("hard",), count=1)
    words = ["eval", "--benchmarks", "visualprobe", "--data", str(data), "--model", "stub", "--data.tools", "[]"]
    words += ["--out", str(tmp_path / "out"), "--eval.num_samples", "1"]
    with chat_stub(write=writes(f"{THINK_CLOSE}<answer>exit 0</answer>")) as stub:
        assert main([*words, "--endpoint", stub.url, "--official"]) == 0
        capsys.readouterr()
        asked = len(stub.answered)
        assert main([*words, "--endpoint", stub.url]) == 2
        assert len(stub.answered) == asked
    assert "visualprobe was evaluated there with --official, which asks in other words" in capsys.readouterr().err
