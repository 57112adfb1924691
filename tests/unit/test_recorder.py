"""What a run directory holds, and that it survives a writer that dies at any moment."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from axpo.algo import assign_credit
from axpo.algo.example import build_continuations, build_group
from axpo.algo.prefixes import thinking_prefixes
from axpo.diagnostics.recorder import (
    RunRecorder,
    credit_spans,
    read_metrics,
    read_rollouts,
    read_run_info,
    rollout_files,
    rollout_lines,
    token_lengths,
)
from axpo.errors import DataError
from axpo.images import ContentImageStore
from axpo.types import Content, Message, Problem, RowRole
from synthetic_run import write_run


def problem(problem_id: str) -> Problem:
    return Problem(
        id=problem_id,
        messages=(Message(role="user", content=(Content(text="Which letter?"),)),),
        answer="A",
        metadata={"cluster": "p1"},
    )


def recorder(folder: Path) -> RunRecorder:
    return RunRecorder(folder, store=ContentImageStore(folder / "images"))


def lines_of(step: int) -> list[dict[str, object]]:
    groups = [build_group("q0", tool=[0.0], no_tool=[1.0])]
    return rollout_lines(step=step, phase="eval", groups=groups, problems=[problem("q0")], decode=str)


def test_credit_is_written_as_spans_of_the_tokens_that_learn() -> None:
    # prompt 0:3, thinking 3:5, open 5:6, call 6:7, close 7:8, text 8:9, result 9:11, thinking 11:13, answer 13:15
    group = build_group("q0", tool=[0.0], no_tool=[1.0])
    [prefix] = thinking_prefixes(group)
    continuations = [build_continuations(prefix, [0.0, 1.0])]
    rows = assign_credit([group], continuations)
    lines = rollout_lines(
        step=4,
        phase="train",
        groups=[group],
        problems=[problem("q0")],
        decode=lambda ids: f"<{len(ids)}>",
        continuations=continuations,
        rows=rows,
        confidence_of=lambda rollout: 0.25,
    )
    found = [(line["phase"], line["role"], line["confidence"], [span[:2] for span in line["credit"]]) for line in lines]
    assert found == [
        ("train", "prefix", 0.5, [[3, 6]]),
        ("train", "rollout", None, [[3, 7]]),
        ("resample", "continuation", 0.25, [[6, 9], [11, 15]]),
        ("resample", "continuation", 0.25, [[6, 9], [11, 15]]),
    ]
    # K = 2, one right: (1 - 1/2) / std = 0.5 / 0.7071 with the sample standard deviation
    assert [span[2] for span in lines[3]["credit"]] == pytest.approx([math.sqrt(0.5)] * 2, abs=1e-5)
    assert lines[0]["segment_texts"] == ["<3>", "<2>", "<1>", "<1>", "<1>", "<1>", "<2>", "<2>", "<2>"]
    assert credit_spans(rows[1])[0][2] == pytest.approx(math.sqrt(0.5), abs=1e-5)


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    world = write_run(tmp_path / "run", num_steps=2, num_questions=2, eval_steps=(2,))
    records = read_metrics(tmp_path / "run")
    assert [(record["kind"], record["step"]) for record in records] == [("train", 1), ("train", 2), ("eval", 2)]
    assert list(rollout_files(tmp_path / "run", "train")) == [1, 2]
    rollouts = read_rollouts(rollout_files(tmp_path / "run", "train")[2])
    siblings = [record for record in rollouts if record.phase == "train"]
    assert len(siblings) == 16 == records[1]["rollout/count"]
    assert sum(record.rollout.uses_tool for record in siblings) / 16 == records[1]["rollout/tool_use_rate"]
    for record in rollouts:
        texts = [world.decode(record.rollout.token_ids[s.start : s.stop]) for s in record.rollout.segments]
        assert tuple(texts) == record.segment_texts
        assert record.role is not RowRole.CONTINUATION or record.rollout.prefix is not None


def test_the_lengths_of_tokens_cut_each_text_into_its_words(tmp_path: Path) -> None:
    world = write_run(tmp_path / "run", num_steps=1, num_questions=2, eval_steps=())
    for record in read_rollouts(rollout_files(tmp_path / "run", "train")[1]):
        lengths = iter(record.token_chars)
        for segment, text in list(zip(record.rollout.segments, record.segment_texts, strict=True))[1:]:
            position = 0
            for token in record.rollout.token_ids[segment.start : segment.stop]:
                length = next(lengths)
                assert text[position : position + length] == world.decode([token])
                position += length
            assert position == len(text)
        assert list(lengths) == []


def test_a_character_of_several_tokens_belongs_to_the_last_of_them() -> None:
    pieces = [b"a", *(bytes([byte]) for byte in "🙂".encode()), " é".encode()[:2], " é".encode()[2:], b"\xff"]

    def decode(token_ids: Sequence[int]) -> str:
        return b"".join(pieces[index] for index in token_ids).decode(errors="replace")

    ids = list(range(len(pieces)))
    assert token_lengths(ids, decode(ids), decode) == [1, 0, 0, 0, 1, 0, 2, 1]
    assert token_lengths([], "", decode) == []


def test_a_decoder_whose_pieces_do_not_add_up_is_asked_a_bounded_number_of_times() -> None:
    asked: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        asked.append(len(token_ids))
        return "?"

    assert token_lengths(range(10_000), "something else", decode) == [0] * 9_999 + [14]
    assert sum(asked) < 100


def test_records_without_lengths_of_tokens_are_read_as_before(tmp_path: Path) -> None:
    lines = lines_of(1)
    for line in lines:
        del line["token_chars"]
    run = recorder(tmp_path)
    run.record_step(1, {}, lines)
    assert [record.token_chars for record in read_rollouts(rollout_files(tmp_path, "train")[1])] == [(), ()]
    lines[0]["token_chars"] = [1, 2]
    (tmp_path / "rollouts/train-000001.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match="12 tokens after the prompt but 2 lengths"):
        read_rollouts(tmp_path / "rollouts/train-000001.jsonl")


def test_each_picture_is_stored_once_under_its_own_hash(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=1, num_questions=2, eval_steps=(1,))
    names = {path.name for path in (tmp_path / "run/images").iterdir()}
    files = [path for kind in ("train", "eval") for path in rollout_files(tmp_path / "run", kind).values()]
    used = {image.sha256 for path in files for record in read_rollouts(path) for image in record.rollout.images}
    assert names == {f"{sha256}.png" for sha256 in used}
    for path in (tmp_path / "run/images").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_an_unfinished_last_line_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    run.record_step(1, {"reward/mean": 0.5}, lines_of(1))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        readable = read_metrics(tmp_path)
        assert len(readable) == (1 if length < len(whole) - 1 else 2)
    path.write_bytes(whole + whole[: len(whole) // 2])
    run.record_step(2, {"reward/mean": 0.75}, lines_of(2))
    assert [(record["step"], record["reward/mean"]) for record in read_metrics(tmp_path)] == [(1, 0.5), (2, 0.75)]


def test_truncation_leaves_nothing_of_later_steps_nor_of_interrupted_writes(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    for step in (1, 2, 3):
        run.record_step(step, {"reward/mean": step / 10}, lines_of(step))
    run.record_eval(2, {"eval/pass@1": 0.5}, lines_of(2))
    run.record_eval(3, {"eval/pass@1": 0.6}, lines_of(3))
    (tmp_path / "rollouts/train-000004.jsonl").write_text("killed before its metrics line\n")
    (tmp_path / "rollouts/train-000005.jsonl.partial").write_text("{")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    run.truncate_after(2)
    assert [(r["kind"], r["step"]) for r in read_metrics(tmp_path)] == [("train", 1), ("train", 2), ("eval", 2)]
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == ["eval-000002.jsonl", "train-000001.jsonl", "train-000002.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")


def test_a_number_that_is_not_finite_stays_visible(tmp_path: Path) -> None:
    recorder(tmp_path).record_step(1, {"train/loss": math.nan, "train/kl": 0.1}, [])
    [record] = read_metrics(tmp_path)
    assert record == {"kind": "train", "step": 1, "train/loss": None, "train/kl": 0.1, "non_finite": ["train/loss"]}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", ":2: not JSON"),
        ("[1]", ":2: expected a JSON object"),
        ('{"kind": "other", "step": 1}', ':2: expected "kind"'),
        ('{"kind": "train", "step": "one"}', ':2: expected "kind"'),
        ("[" * 100_000, ":2: not JSON"),
    ],
)
def test_a_broken_line_in_the_middle_names_its_place(tmp_path: Path, line: str, message: str) -> None:
    good = '{"kind": "train", "step": 1}'
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(DataError, match=message):
        read_metrics(tmp_path)


def test_a_rollouts_line_that_is_no_record_names_its_place(tmp_path: Path) -> None:
    [first, _] = lines_of(1)
    bad = json.loads(json.dumps(first))
    bad["rollout"]["segments"][0]["stop"] = 99
    path = tmp_path / "eval-000001.jsonl"
    path.write_text(json.dumps(first) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(DataError, match=r"eval-000001.jsonl:2: not a rollout record: .*segments must tile"):
        read_rollouts(path)
    for broken in ({}, {**first, "phase_": 1}, {**first, "segment_texts": ["x"]}, {**first, "rollout": 3}):
        path.write_text(json.dumps(broken) + "\n")
        with pytest.raises(DataError, match=":1: not a rollout record"):
            read_rollouts(path)


def test_a_second_start_is_added_to_the_first(tmp_path: Path) -> None:
    recorder(tmp_path)
    first = read_run_info(tmp_path)
    recorder(tmp_path)
    second = read_run_info(tmp_path)
    assert {key: second[key] for key in first} == first
    assert [start["argv"] for start in second["resumed"]] == [first["argv"]]
    assert first["versions"]["python"].startswith("3.")


def test_a_line_is_appended_without_reading_the_lines_before(tmp_path: Path) -> None:
    writer = recorder(tmp_path)
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:  # a long run's; sparse, so that it is made at once
        file.truncate(2**40)
        file.seek(0, 2)
        file.write(b"\n")
    writer.record_step(1, {"x": 1.0}, [])
    with path.open("rb") as file:
        file.seek(2**40 + 1)
        assert json.loads(file.read()) == {"kind": "train", "step": 1, "x": 1.0}
