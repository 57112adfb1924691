"""The folder of `axpo eval --benchmarks`: what it must not write over, and what must not be mixed in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axpo.cli.main import main
from axpo.evaluation.folder import read_manifest
from benchmark_files import write_visualprobe, write_vstar
from chat_stub import chat_stub


def words(url: str, out: Path, *more: str, benchmarks: str = "mini_count") -> list[str]:
    return [
        "eval",
        *("--benchmarks", benchmarks, "--endpoint", url, "--model", "stub", "--out", str(out)),
        *("--eval.num_samples", "2", "--data.tools", "[]", *more),
    ]


def write_questions(path: Path, *rows: tuple[str, str, str]) -> Path:
    lines = [json.dumps({"id": name, "question": text, "answer": answer}) for name, text, answer in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["config.toml", "run.json", "metrics.jsonl"])
def test_what_is_no_evaluation_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / name).write_text("precious")
    with chat_stub() as stub:
        assert main(words(stub.url, out, "--limit", "1")) == 2
        assert not stub.answered
    assert f"holds {name} and no eval.json" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "precious")]


def test_dialogues_do_not_answer_a_question_that_was_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "mine.jsonl", tmp_path / "out"
    with chat_stub() as stub:
        write_questions(data, ("a", "one?", "1"), ("b", "two?", "2"))
        assert main(words(stub.url, out, benchmarks=str(data))) == 0
        write_questions(data, ("a", "one?", "3"), ("c", "three?", "3"))  # answers may change, questions come and go
        assert main(words(stub.url, out, benchmarks=str(data))) == 0
        num_asked = len(stub.answered)
        write_questions(data, ("a", "another?", "1"), ("c", "three?", "3"))
        capsys.readouterr()
        assert main(words(stub.url, out, benchmarks=str(data))) == 2
        assert len(stub.answered) == num_asked
    assert "question a began with other words" in capsys.readouterr().err


def test_each_benchmark_keeps_the_judge_and_the_rules_that_it_was_judged_by(tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    write_visualprobe(data / "visualprobe")
    write_vstar(data / "vstar")
    with chat_stub() as stub:
        judge = ["--judge.url", stub.url, "--judge.model", "reader", "--data", str(data)]
        assert main(words(stub.url, out, *judge, "--official", benchmarks="visualprobe")) == 0
        assert main(words(stub.url, out, "--data", str(data), benchmarks="vstar")) == 0
    manifest = read_manifest(out)
    assert manifest is not None
    assert [(info.judge, info.is_official) for info in manifest.benchmarks] == [("reader", True), ("", False)]
    summaries = json.loads((out / "summary.json").read_text())["summaries"]
    assert [summary["judge"] for summary in summaries] == ["reader", ""]
    assert " for VisualProbe<" in (out / "report.html").read_text()


def test_what_is_wrong_with_the_judge_shows_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with chat_stub() as stub:
        judge = ["--judge.url", stub.url, "--judge.model", "reader", "--judge.api_key_env", "NO_SUCH_KEY"]
        assert main(words(stub.url, tmp_path / "out", *judge, "--limit", "1")) == 2
        assert not stub.answered
    assert "NO_SUCH_KEY holds no key" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with chat_stub() as stub:
        assert main(words(stub.url, tmp_path / "file", "--limit", "1")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'file'} cannot be the folder of a run (it is a file)" in line


def test_the_table_on_a_terminal_of_80_columns_shows_every_digit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = write_questions(tmp_path / "questions.jsonl", *((f"q{i}", f"{i}?", "1") for i in range(3)))
    data.write_text(data.read_text().replace('"answer": "1"', '"answer": ["1", "2", "3", "4"]'))
    with chat_stub() as stub:
        tools = ["--data.tools", '["image_zoom_in"]']
        assert main(words(stub.url, tmp_path / "out", *tools, benchmarks=str(data))) == 0
    printed = capsys.readouterr().out
    assert "43.9-100" in printed and "…" not in printed
