"""The folder of `axpo eval --benchmarks`: what it must not write over, and what must not be mixed in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axpo.cli.main import main
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
        write_questions(data, ("a", "one?", "3"), ("c", "three?", "3"))  # an answer may be mended, questions come and go
        assert main(words(stub.url, out, benchmarks=str(data))) == 0
        num_asked = len(stub.answered)
        write_questions(data, ("a", "another?", "1"), ("c", "three?", "3"))
        capsys.readouterr()
        assert main(words(stub.url, out, benchmarks=str(data))) == 2
        assert len(stub.answered) == num_asked
    assert "question a began with other words" in capsys.readouterr().err
