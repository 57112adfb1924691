"""Dumps in the formats of others, written here as their sources document them, and files that mean harm."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sqlite3
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.codec import to_json
from axpo.diagnostics.importers import Problems, SeenRollout, find_dumps, open_dump
from axpo.diagnostics.importers import files as dump_files
from axpo.diagnostics.importers.dialogue import MAX_CALLS, read_messages, read_text
from axpo.diagnostics.importers.failures import failure_of_type, guess_failure
from axpo.dialogue import TokenUsage, Transcript, Verdict
from axpo.errors import ConfigError, DataError
from axpo.evaluation.records import JudgedRollout, SampledRollout
from axpo.types import (
    Content,
    FailureKind,
    Message,
    StopReason,
    ToolCall,
    ToolFailure,
    ToolResult,
)

CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "1+1"}}\n</tool_call>'
RESULT = "\nuser\n<tool_response>\n2\n</tool_response>\nassistant\n"
ACTING = f"<think>\nlet me count\n</think>\n{CALL}{RESULT}<think>\nso\n</think>\n<answer>2</answer>"


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> tuple[str, list[SeenRollout], Problems]:
    """Format, rollouts and problems of a file or of all files in a directory."""
    problems, names, seen = Problems(), set[str](), list[SeenRollout]()
    for file in find_dumps(path, problems):
        dump = open_dump(file, problems, **options)
        names.add(dump.format.name)
        seen.extend(dump.rollouts)
    return "+".join(sorted(names)), seen, problems


# -- text with tags ---------------------------------------------------------------------------------------------------


def test_text_with_a_call_its_result_and_an_answer() -> None:
    heard = read_text(ACTING)
    [call] = heard.calls
    assert (call.tool, call.arguments, call.is_answered, call.failure) == ("python", '{"code": "1+1"}', True, None)
    assert (heard.num_turns, heard.num_in_thinking, heard.num_chars) == (2, 0, len(ACTING))


@pytest.mark.parametrize(
    ("text", "is_thinking", "calls", "in_thinking"),
    [
        (f"<think>maybe {CALL}</think>no", None, 0, 1),
        (f"maybe {CALL}</think>no", None, 0, 1),  # the prompt had opened the block: a closing tag comes first
        (f"<think>never closed {CALL}", None, 0, 1),
        (f"never closed {CALL}", True, 0, 1),
        (CALL, None, 1, 0),
        (f"{CALL}{RESULT}<think>again {CALL}</think>no", None, 1, 1),
        (f"{CALL}{RESULT}again {CALL}", None, 2, 0),
        (f"{CALL}{RESULT}again {CALL}</think>no", None, 1, 1),  # the template had opened the second turn's block
        (f"{CALL}{RESULT}{'x' * 100}<think>{CALL}", None, 2, 0),  # a tag in the middle of a turn opens no block
        (f"<think>a</think>{CALL}\n{CALL}", None, 2, 0),
        ("<think>a</think><tool_call>x<tool_call>y</tool_call>", None, 2, 0),  # the second tag ends the first call
        ("<think>a</think>mind the </tool_call> and the <tool_response>", None, 0, 0),
    ],
)
def test_only_tags_outside_of_thinking_are_calls(
    text: str, is_thinking: bool | None, calls: int, in_thinking: int
) -> None:
    heard = read_text(text, is_thinking=is_thinking)
    assert (len(heard.calls), heard.num_in_thinking) == (calls, in_thinking)


def test_results_go_to_the_calls_of_their_turn_in_order_and_the_rest_never_ran() -> None:
    two = CALL + CALL.replace("python", "search")
    results = "<tool_response>2</tool_response>\n<tool_response>Error: query is missing</tool_response>"
    heard = read_text(f"<think>a</think>{two}\n{results}\nassistant\n{CALL}")
    assert [(call.tool, call.is_answered, call.failure) for call in heard.calls] == [
        ("python", True, None),
        ("search", True, FailureKind.BAD_ARGUMENTS),
        ("python", False, None),
    ]


@pytest.mark.parametrize(
    "end", ["", RESULT, f"{RESULT}<think>\n", "<tool_response>2</tool_response><|im_end|>\n<|im_start|>assistant\n"]
)
def test_a_turn_that_was_never_begun_is_none(end: str) -> None:
    assert read_text(f"<think>a</think>{CALL}{end}").num_turns == 1


def test_a_result_that_is_written_much_later_belongs_to_no_earlier_call() -> None:
    heard = read_text(f"<think>a</think>{CALL}{CALL}<tool_response>2</tool_response>{'x' * 100}<tool_response>3")
    assert [call.is_answered for call in heard.calls] == [True, False]


def test_a_result_may_hold_tags_and_a_call_may_be_anything() -> None:
    heard = read_text(f"{CALL}<tool_response>see <tool_call> and <think></tool_response>\nok")
    assert len(heard.calls) == 1 and heard.num_in_thinking == 0
    unclosed = read_text("<tool_call>{...<tool_response>Malformed tool call: no.</tool_response>")
    assert [(c.tool, c.failure) for c in unclosed.calls] == [(None, FailureKind.MALFORMED_CALL)]
    xml = read_text("<tool_call><function=zoom><parameter=box>1</parameter></function></tool_call>")
    assert [call.tool for call in xml.calls] == ["zoom"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 100_000,
        "<tool_response>" * 70_000 + "<tool_call>",
        "<tool_call>x</tool_call><tool_response>" * 25_000,
        "<tool_call>x</tool_call><tool_response></tool_response>" * 18_000,
        "<think>" * 140_000 + "<tool_call>",
        "<tool_call>" + "[" * 1_000_000 + "</tool_call>",
        '<tool_call>{"name": "a", "arguments": {"b": ' + "1" * 1_000_000 + "}}</tool_call>",
        "<function=" * 100_000 + "<tool_call>" + "<function=" * 100_000 + "</tool_call>",
    ],
)
def test_a_megabyte_of_anything_is_read_in_linear_time(text: str) -> None:
    start_s = time.process_time()
    heard = read_text(text)
    guess_failure(text, "tool")
    assert time.process_time() - start_s < 3
    assert len(heard.calls) <= MAX_CALLS


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ("2", None),
        ("", None),
        ("No errors found.", None),
        ("python did not finish within 12 s.", FailureKind.TIMEOUT),
        ("python raised ValueError: no", FailureKind.EXECUTION_ERROR),
        ("python: code must be a string.", FailureKind.BAD_ARGUMENTS),
        ("There is no tool named 'pyhton'. Tools: python.", FailureKind.UNKNOWN_TOOL),
        ("Malformed tool call: it is empty.", FailureKind.MALFORMED_CALL),
        ('{"error": "Tool zoom not found."}', FailureKind.UNKNOWN_TOOL),  # TRL
        ("Error when executing tool: timed out", FailureKind.TIMEOUT),  # verl
        ("Error: 429 Too Many Requests", FailureKind.TOOL_FAULT),
        ("Error: division by zero", FailureKind.EXECUTION_ERROR),
        ("Traceback (most recent call last):\n  ...", FailureKind.EXECUTION_ERROR),
        ("1\n2\nTraceback (most recent call last):\n  ...", FailureKind.EXECUTION_ERROR),
    ],
)
def test_failures_are_told_by_their_wording(result: str, kind: FailureKind | None) -> None:
    assert guess_failure(result, "python") is kind


def test_an_error_of_a_named_type_is_of_its_kind() -> None:
    assert failure_of_type("parsing", "Tool zoom not found", "zoom") is FailureKind.UNKNOWN_TOOL
    assert failure_of_type("parsing", "missing required parameter", "zoom") is FailureKind.BAD_ARGUMENTS
    assert failure_of_type("timeout", "", "zoom") is FailureKind.TIMEOUT
    assert failure_of_type("unknown", "nothing there", "zoom") is FailureKind.EXECUTION_ERROR


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_with_calls_in_openai_s_form() -> None:
    function = {"name": "zoom", "arguments": '{"box": [1]}'}
    heard = read_messages(
        [
            {"role": "assistant", "reasoning_content": "or <tool_call>?", "content": None, "tool_calls": [
                {"id": "b", "type": "function", "function": function},
                {"id": "a", "type": "function", "function": {"name": "zoom", "arguments": "not json"}},
                {"id": "c", "type": "function", "function": function},
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "bad"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "fine"}]},
            {"role": "assistant", "content": "<answer>1</answer>"},
        ]
    )  # fmt: skip
    assert [(call.tool, call.is_answered, call.failure) for call in heard.calls] == [
        ("zoom", True, None),
        (None, True, FailureKind.MALFORMED_CALL),
        ("zoom", False, None),
    ]
    assert (heard.num_turns, heard.num_in_thinking) == (2, 1)


def test_results_without_an_id_go_to_the_call_of_their_tool() -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("slow", "fast", "fast")]
    heard = read_messages(
        [
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "name": "fast", "content": "1"},
            {"role": "tool", "name": "slow", "content": "{'error': 'timed out'}"},
        ]
    )
    assert [(call.tool, call.is_answered, call.failure) for call in heard.calls] == [
        ("slow", True, FailureKind.TIMEOUT),
        ("fast", True, None),
        ("fast", False, None),
    ]


def test_messages_whose_calls_stand_in_the_text() -> None:
    heard = read_messages(
        [
            {"role": "assistant", "content": f"<think>hm</think>{CALL}"},
            {"role": "user", "content": "<tool_response>\nError: no\n</tool_response>"},
            {"role": "assistant", "content": f"<think>{CALL}</think>done"},
            "not a message",
            {"role": "assistant", "content": CALL},
        ]
    )
    assert [(call.is_answered, call.failure) for call in heard.calls] == [
        (True, FailureKind.EXECUTION_ERROR),
        (False, None),
    ]
    assert heard.num_in_thinking == 1


# -- formats ----------------------------------------------------------------------------------------------------------


def verl_rows(step: int) -> list[dict[str, Any]]:
    asked = {"input": "user\nHow many?\nassistant\n<think>\n", "gts": "2", "step": step, "data_source": "mini"}
    return [
        {**asked, "output": ACTING.removeprefix("<think>\n"), "score": 1.0},
        {**asked, "output": "I guess\n</think>\n3", "score": 0.0},
        {**asked, "output": f"thinking of {CALL} and cut off", "score": 0.0},
        {**asked, "output": "other</think>", "gts": "3", "score": 0.0},
    ]


def test_verl_dumps_one_file_a_step(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write_rows(tmp_path / "dump" / f"{step}.jsonl", verl_rows(step))
    files = find_dumps(tmp_path / "dump", Problems())
    assert [(file.dump, file.step) for file in files] == [("*.jsonl", 1), ("*.jsonl", 2), ("*.jsonl", 10)]
    name, seen, problems = load(tmp_path / "dump")
    assert (name, problems.num_malformed) == ("verl", 0)
    assert [(r.step, r.reward, r.uses_tool, r.num_calls_in_thinking) for r in seen[:4]] == [
        (1, 1.0, True, 0),
        (1, 0.0, False, 0),
        (1, 0.0, False, 1),  # the prompt ends with <think>, and the block was never closed
        (1, 0.0, False, 0),
    ]
    assert len({r.question for r in seen}) == 2, "one wording with two answers is two questions"
    assert seen[0].num_turns == 2


def test_a_number_in_the_name_of_a_single_file_is_no_step(tmp_path: Path) -> None:
    write_rows(tmp_path / "run-2026" / "seed7.jsonl", [{"question": "q", "reward": 1, "text": "a"}])
    [file] = find_dumps(tmp_path, Problems())
    assert (file.dump, file.step) == ("run-2026/seed7.jsonl", None)
    write_rows(tmp_path / "run-2026" / "seed8.jsonl", [{"question": "q", "reward": 1, "text": "a"}])
    assert [(file.dump, file.step) for file in find_dumps(tmp_path, Problems())] == [
        ("run-2026/seed*.jsonl", 7),
        ("run-2026/seed*.jsonl", 8),
    ]


def test_trl_completions_as_messages_the_way_1_16_logs_conversations(tmp_path: Path) -> None:
    def message(role: str, content: str, call: tuple[str, str] | None = None, name: str | None = None) -> Any:
        calls = [{"type": "function", "function": {"name": call[0], "arguments": {"at": call[1]}}}] if call else None
        return {"role": role, "content": content, "tool_calls": calls, "name": name}

    failing = [
        message("assistant", "hm\n</think>", ("zoom", "L")),
        message("tool", "{'error': 'Tool zoom not found.'}", name="zoom"),
        message("assistant", "see\n</think>\n\nB"),
    ]
    unread = [message("assistant", "hm\n</think>\n\n<tool_call>\n{broken\n</tool_call>")]
    image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    table = {
        "step": [1, 1], "prompt": [image, image], "completion": [failing, unread],
        "accuracy": [0.0, 1.0], "advantage": [-1.0, 1.0],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "completions_00001.parquet")
    name, seen, problems = load(tmp_path)
    assert (name, problems.num_malformed) == ("trl", 0)
    assert seen[0].question == seen[1].question
    assert [(c.tool, c.is_answered, c.failure) for c in seen[0].calls] == [(None, True, FailureKind.UNKNOWN_TOOL)]
    assert [(c.tool, c.is_answered) for c in seen[1].calls] == [(None, False)]
    assert [(r.reward, r.num_turns) for r in seen] == [(0.0, 2), (1.0, 1)]


def test_trl_completions_as_parquet_with_one_or_several_rewards(tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {
        "step": [5, 5],
        "prompt": ["<|im_start|>user\nHow many?", "<|im_start|>user\nHow many?"],
        "completion": [ACTING, "<think>a</think>3"],
        "accuracy_reward": [1.0, float("nan")],
        "format_reward": [0.5, 0.5],
        "note": ["x", "y"],
        "advantage": [1.0, -1.0],
    }
    folder = tmp_path / "completions"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "completions_00005.parquet")
    name, seen, _ = load(folder)
    assert name == "trl"
    assert [(r.step, r.reward, r.uses_tool) for r in seen] == [(5, 1.0, True), (5, None, False)]
    assert [r.reward for r in load(folder, mapping={"reward": "format_reward"})[1]] == [0.5, 0.5]
    renamed = {key.replace("accuracy", "box"): value for key, value in table.items()}
    pq.write_table(pa.table(renamed), folder / "completions_00005.parquet")
    assert [r.reward for r in load(folder)[1]] == [1.5, 0.5], "several rewards: their sum"
    dump = open_dump(find_dumps(folder, Problems())[0], Problems())
    assert "box_reward + format_reward" in dump.note and "--map reward=" in dump.note


def test_trackio_tables_in_its_database_in_its_export_and_as_json(tmp_path: Path) -> None:
    rows = [{"step": 3, "prompt": "q", "completion": ACTING, "reward_len": 1.0, "advantage": 0.0}]
    cell = {"_type": "trackio.table", "_value": rows}
    connection = sqlite3.connect(tmp_path / "project.db")
    connection.execute(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
    )
    for metrics in ({"loss": 1.0}, {"completions": cell}):
        connection.execute("INSERT INTO metrics (step, metrics) VALUES (3, ?)", (json.dumps(metrics),))
    connection.commit()
    connection.close()
    (tmp_path / "table.json").write_text(json.dumps(cell))
    pq.write_table(pa.table({"step": [3], "completions": [json.dumps(cell)]}), tmp_path / "project.parquet")
    for name in ("project.db", "table.json", "project.parquet"):
        kind, [seen], problems = load(tmp_path / name)
        assert (kind, seen.step, seen.reward, seen.uses_tool, problems.num_malformed) == ("trl", 3, 1.0, True, 0), name


def test_runs_of_one_trackio_database_are_groups_of_their_own_and_a_repeated_table_counts_once(tmp_path: Path) -> None:
    def cell(reward: float, picture: str) -> bytes:
        image = [{"_type": "trackio.image", "file_path": picture}]
        row = {"step": 1, "prompt": "q", "completion": "a", "accuracy": reward, "advantage": 0.0, "image": image}
        return json.dumps({"completions": {"_type": "trackio.table", "_value": [row, row]}}).encode()

    connection = sqlite3.connect(tmp_path / "project.db")
    connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, metrics BLOB)")
    logged = [("a", cell(1, "1.png")), ("b", cell(0, "2.png")), ("a", cell(1, "3.png")), ("a", cell(0, "3.png"))]
    connection.executemany("INSERT INTO metrics (run_id, metrics) VALUES (?, ?)", logged)
    connection.commit()
    connection.close()
    kind, seen, problems = load(tmp_path / "project.db")
    assert (kind, problems.num_malformed) == ("trl", 0)
    runs = sorted({rollout.question for rollout in seen})
    assert len(runs) == 2
    assert [(runs.index(rollout.question), rollout.reward) for rollout in seen] == [
        (0, 1.0), (0, 1.0), (1, 0.0), (1, 0.0), (0, 0.0), (0, 0.0)
    ]  # fmt: skip


def test_a_length_is_in_tokens_where_rows_count_them_and_unknown_in_a_row_that_does_not(tmp_path: Path) -> None:
    row = {"example_id": 0, "prompt": "q", "completion": "three", "reward": 1.0}
    counted = {**row, "token_usage": {"final_output_tokens": 2}}
    path = write_rows(tmp_path / "results.jsonl", [counted, row])
    dump = open_dump(find_dumps(path, Problems())[0], Problems())
    assert dump.format.length_unit == "tokens"
    assert [seen.length for seen in dump.rollouts] == [2, None]
    plain = open_dump(find_dumps(write_rows(tmp_path / "plain.jsonl", [row]), Problems())[0], Problems())
    assert (plain.format.length_unit, [seen.length for seen in plain.rollouts]) == ("characters", [5])


def test_the_bare_name_of_a_tool_is_how_verifiers_says_that_there_is_none() -> None:
    assert guess_failure("'zoom'", "zoom") is FailureKind.UNKNOWN_TOOL
    assert guess_failure("'card'", "zoom") is None


def test_verifiers_results_with_calls_as_json_strings(tmp_path: Path) -> None:
    call = json.dumps({"id": "c", "name": "search", "arguments": '{"query": "x"}'})
    row = {
        "example_id": 7,
        "prompt": [{"role": "user", "content": "?"}],
        "completion": [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "found"},
            {"role": "assistant", "content": "yes"},
        ],
        "reward": 1.0, "timing": {}, "is_completed": True, "is_truncated": False, "metrics": {"correct": 0.0},
        "token_usage": {"input_tokens": 9.0, "output_tokens": 4.0},
    }  # fmt: skip
    path = write_rows(tmp_path / "results.jsonl", [row, {**row, "example_id": 8, "is_truncated": True}])
    name, seen, _ = load(path)
    assert name == "verifiers" and seen[0].question != seen[1].question
    assert [(c.tool, c.is_answered) for c in seen[0].calls] == [("search", True)]
    assert (seen[0].length, seen[0].num_turns, seen[0].is_truncated, seen[1].is_truncated) == (4, 2, False, True)
    assert load(path, mapping={"reward": "metrics.correct"})[1][0].reward == 0.0


def episode(step: int, reward: float, **trace: Any) -> dict[str, Any]:
    call = {"id": "c", "name": "zoom", "arguments": "{}"}
    nodes = [
        {"message": {"role": "system", "content": "be brief"}, "sampled": False, "token_ids": [1, 2]},
        {"parent": 0, "message": {"role": "user", "content": "?"}, "sampled": False, "token_ids": [3]},
        {"parent": 1, "message": {"role": "assistant", "content": "dead end", "tool_calls": [call]}, "sampled": True},
        {"parent": 1, "message": {"role": "assistant", "content": "shot"}, "sampled": False},
        {"parent": 3, "message": {"role": "assistant", "reasoning_content": "see", "tool_calls": [call]},
         "sampled": True, "logprobs": [-0.1, -0.2]},
        {"parent": 4, "message": {"role": "tool", "tool_call_id": "c", "content": "seen"}, "sampled": False},
        {"parent": 5, "message": {"role": "assistant", "content": "1"}, "sampled": True, "logprobs": [-0.1]},
    ]  # fmt: skip
    agent = {"name": "agent", "trainable": True, "config": {}}
    traced = {"task": {}, "agent": agent, "nodes": nodes, "ok": True, "is_completed": True}
    traced["rewards"] = {"solved": {"score": reward, "weight": 1.0}, "style": {"score": 0.5, "weight": 0.0}}
    return {
        "id": "e", "env": {"id": "gsm"}, "task": {"type": "T", "data": {"idx": 4}, "key": "k"}, "group": {"id": "g"},
        "run": {"type": "train", "id": "r", "work": {"type": "train", "step": step}}, "ok": True,
        "traces": [{**traced, **trace}, {**traced, "agent": {"name": "judge", "trainable": False}}],
    }  # fmt: skip


def test_traces_of_verifiers_and_prime_rl(tmp_path: Path) -> None:
    for step in (1, 2):
        for subset in ("all", "effective"):
            rows = [episode(step, 1.0), episode(step, 0.0, stop_condition="max_turns")]
            write_rows(tmp_path / "rollouts" / f"step_{step}" / "train" / subset / "traces.jsonl", rows)
    files = find_dumps(tmp_path / "rollouts", Problems())
    assert {file.dump for file in files} == {"step_*/train/all/traces.jsonl", "step_*/train/effective/traces.jsonl"}
    name, seen, _ = load(tmp_path / "rollouts" / "step_1" / "train" / "all")
    assert (name, len(seen)) == ("verifiers-traces", 2), "the judge's trace does not train"
    assert [(r.step, r.reward, r.is_truncated) for r in seen] == [(1, 1.0, False), (1, 0.0, True)]
    assert seen[0].question == "g" and (seen[0].length, seen[0].num_turns) == (3, 2)
    assert [(call.tool, call.is_answered) for call in seen[0].calls] == [("zoom", True)], "of the last branch alone"
    [slow] = load(write_rows(tmp_path / "slow.jsonl", [episode(1, 0.0, is_timeout=True)]))[1]
    assert slow.is_truncated
    [failed] = load(write_rows(tmp_path / "failed.jsonl", [episode(1, 0.0, ok=False)]))[1]
    assert failed.reward is None, "a fault of the machinery is no wrong answer"


def test_slime_samples_as_jsonl_and_never_as_pickles(tmp_path: Path) -> None:
    sample = {
        "group_index": 2, "index": 17, "prompt": "How many?<think>\n", "response": ACTING.removeprefix("<think>\n"),
        "response_length": 40, "label": "2", "reward": 1.0, "status": "completed", "metadata": {},
    }  # fmt: skip
    aborted = {**sample, "status": "aborted", "reward": 0.0}
    cut = {**sample, "status": "truncated", "reward": {"score": 0.0, "acc": 1}}
    lines = write_rows(tmp_path / "rollout_data_12.jsonl", [sample, aborted, cut])
    name, seen, problems = load(lines)
    assert (name, problems.num_malformed) == ("slime", 0)
    assert [(r.reward, r.is_truncated, r.length) for r in seen] == [
        (1.0, False, 40),
        (None, False, 40),
        (0.0, True, 40),
    ]
    whole = write_rows(tmp_path / "whole.jsonl", [{"rollout_id": 12, "samples": [sample]}])
    assert [r.step for r in load(whole)[1]] == [12]
    assert load(whole, mapping={"reward": "reward.acc"})[2].num_malformed == 0
    pickle = tmp_path / "rollout_data_0.pt"
    pickle.write_bytes(b"cos\nsystem\n(S'touch boom'\ntR.")
    with pytest.raises(DataError, match="pickles, which run code"):
        find_dumps(pickle, Problems())
    problems = Problems()
    assert pickle not in [file.path for file in find_dumps(tmp_path, problems)]
    assert "a pickle, which runs code" in problems.skipped[0]


def test_openai_messages_with_a_score(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": "a.png"}]}]
    other = [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": "b.png"}]}]
    answer = {"role": "assistant", "content": "1"}
    rows = [{"messages": [*prompt, answer], "score": True} for prompt in (asked, asked, other)]
    name, seen, _ = load(write_rows(tmp_path / "chat.jsonl", rows))
    assert name == "openai" and [r.reward for r in seen] == [1.0, 1.0, 1.0]
    assert seen[0].question == seen[1].question != seen[2].question, "another picture is another question"


def inspect_sample(sample: str, epoch: int, value: Any, **fields: Any) -> dict[str, Any]:
    call = {"id": "c", "function": "bash", "arguments": {"cmd": "ls"}, "type": "function"}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "hm"}], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "function": "bash", "content": "",
         "error": {"type": "timeout", "message": "Command timed out"}},
        {"role": "assistant", "content": "1"},
    ]  # fmt: skip
    return {
        "id": sample, "epoch": epoch, "input": "?", "target": "1", "messages": messages,
        "output": {"model": "m", "choices": [], "stop_reason": "stop"},
        "scores": {"match": {"value": value, "answer": "1"}, "other": {"value": 0}},
        "model_usage": {"m": {"input_tokens": 5, "output_tokens": 9}}, "events": [], **fields,
    }  # fmt: skip


def zip_with_zstandard(path: Path, members: dict[str, bytes]) -> None:
    """As inspect_ai writes them since it compresses with Zstandard; Python's own zipfile cannot before 3.14."""
    packed = {name: pa.Codec("zstd").compress(data, asbytes=True) for name, data in members.items()}
    buffer, central = io.BytesIO(), io.BytesIO()
    for name, data in members.items():
        common = (93, 0, 0, zlib.crc32(data), len(packed[name]), len(data), len(name), 0)
        offset = buffer.tell()
        buffer.write(struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 63, 0, *common) + name.encode() + packed[name])
        central.write(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 63, 63, 0, *common, 0, 0, 0, 0, offset))
        central.write(name.encode())
    size, offset = len(central.getvalue()), buffer.tell()
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, len(members), len(members), size, offset, 0)
    path.write_bytes(buffer.getvalue() + central.getvalue() + end)


def test_inspect_logs_as_archives_and_as_json(tmp_path: Path) -> None:
    samples = [
        inspect_sample("a", 1, "C"),
        inspect_sample("a", 2, "I", limit={"type": "token", "limit": 9}),
        inspect_sample("b", 1, None, error={"message": "crashed"}),
    ]
    members = {f"samples/{s['id']}_epoch_{s['epoch']}.json": json.dumps(s).encode() for s in samples}
    members |= {"header.json": b"{}", "summaries.json": b"[]"}
    with zipfile.ZipFile(tmp_path / "plain.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    zip_with_zstandard(tmp_path / "zstd.eval", members)
    (tmp_path / "log.json").write_text(json.dumps({"version": 2, "status": "success", "samples": samples}))
    for file in ("plain.eval", "zstd.eval", "log.json"):
        name, seen, problems = load(tmp_path / file)
        assert (name, problems.num_malformed) == ("inspect", 0), (file, problems)
        assert [(r.question, r.reward, r.is_truncated) for r in seen] == [
            ("a", 1.0, False), ("a", 0.0, True), ("b", None, False),
        ], file  # fmt: skip
        assert [(c.tool, c.failure) for c in seen[0].calls] == [("bash", FailureKind.TIMEOUT)]
        assert (seen[0].length, seen[0].num_turns) == (9, 2)
    assert load(tmp_path / "log.json", mapping={"reward": "scores.other.value"})[1][0].reward == 0.0


def transcript(**fields: Any) -> Transcript:
    call = ToolCall(id="c", name="zoom", arguments={"box": 1}, raw="{}")
    result = ToolResult(call=call, failure=ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message="no"))
    turn = Message(role="assistant", reasoning="a <tool_call>", tool_calls=(call,))
    default: dict[str, Any] = {
        "id": "t", "problem_id": "p", "prompt": (Message(role="user", content=(Content(text="?"),)),),
        "turns": (turn, turn), "tool_results": (result,), "stop_reason": StopReason.TURN_LIMIT, "final_text": "",
        "usage": TokenUsage(prompt_tokens=9, completion_tokens=5),
    }  # fmt: skip
    return Transcript(**{**default, **fields})


def test_our_own_evaluations_with_verdicts_inside_or_beside(tmp_path: Path) -> None:
    sampled = [
        SampledRollout(benchmark="vstar", problem_id="p", sample=0, transcript=transcript()),
        SampledRollout(benchmark="vstar", problem_id="p", sample=1, transcript=None, fault="the endpoint was down"),
    ]
    verdicts = [Verdict(is_correct=True, rule="letter"), Verdict(is_correct=False, rule="no_answer")]
    beside = tmp_path / "eval" / "rollouts" / "vstar.jsonl"
    write_rows(beside, [to_json(rollout) for rollout in sampled])
    pairs = zip(sampled, verdicts, strict=True)
    inside = [to_json(JudgedRollout(rollout=rollout, verdict=verdict)) for rollout, verdict in pairs]
    assert [r.reward for r in load(beside)[1]] == [None, 0.0]
    rows = [{"problem_id": "p", "sample": n, "verdict": to_json(verdict)} for n, verdict in enumerate(verdicts)]
    write_rows(tmp_path / "eval" / "verdicts" / "vstar.jsonl", rows)
    for path in (beside, write_rows(tmp_path / "judged.jsonl", inside)):
        name, seen, problems = load(path)
        assert (name, problems.num_malformed) == ("axpo-eval", 0)
        assert [r.reward for r in seen] == [1.0, 0.0]
        assert [(c.tool, c.is_answered, c.failure) for c in seen[0].calls] == [
            ("zoom", True, FailureKind.BAD_ARGUMENTS), ("zoom", False, None),
        ]  # fmt: skip
        assert (seen[0].num_calls_in_thinking, seen[0].is_truncated, seen[0].length) == (2, True, 5)


def test_the_minimal_schema(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "reward": 1, "step": 3, "text": ACTING, "num_tokens": 12, "confidence": 0.25},
        {"question": "q", "reward": 0, "messages": [{"role": "assistant", "content": "1"}]},
        {"question": "q", "reward": 0, "uses_tool": True, "truncated": True},
        {"question": 5, "reward": 0, "calls": [{"tool": "zoom", "failure": "timeout"}, {"answered": False}]},
    ]
    name, seen, problems = load(write_rows(tmp_path / "own.jsonl", rows))
    assert (name, problems.num_malformed) == ("minimal", 0)
    assert (seen[0].step, seen[0].length, seen[0].confidence, seen[0].uses_tool) == (3, 12, 0.25, True)
    assert (seen[1].uses_tool, seen[1].num_turns) == (False, 1)
    assert (seen[2].uses_tool, seen[2].is_truncated, seen[2].length, seen[2].num_calls_in_thinking) == (
        True, True, None, None,
    )  # fmt: skip
    assert [(c.tool, c.is_answered, c.failure) for c in seen[3].calls] == [
        ("zoom", True, FailureKind.TIMEOUT), (None, False, None),
    ]  # fmt: skip
    assert len({r.question for r in seen}) == 2


def test_own_names_are_mapped_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "odd.jsonl", [{"q": "1", "out": ACTING, "judge": {"ok": 1}}])
    mapping = {"question": "q", "text": "out", "reward": "judge.ok"}
    name, [seen], _ = load(path, mapping=mapping)
    assert (name, seen.reward, seen.uses_tool) == ("minimal", 1.0, True)
    with pytest.raises(DataError, match=r"fits no known format.*judge, out, q.*--map question="):
        load(path)
    with pytest.raises(ConfigError, match=r"--map nonsense=q: verl rollout dump has no such field"):
        load(path, format="verl", mapping={"nonsense": "q"})
    with pytest.raises(ConfigError, match=r"--format werl: unknown"):
        load(path, format="werl")


def test_a_format_can_be_forced_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "dump.jsonl", verl_rows(1))
    name, seen, problems = load(path, format="openai")
    assert (name, seen, problems.num_malformed) == ("openai", [], 4)
    assert "no response: expected one of messages" in problems.malformed[0]


# -- files that mean harm ---------------------------------------------------------------------------------------------


def test_malformed_lines_are_counted_and_the_first_few_kept(tmp_path: Path) -> None:
    good = json.dumps(verl_rows(1)[0]).encode()
    deep = b'{"input": ' + b"[" * 10_000_000
    bad = [b"not json", b'{"input": "\xff\xfe"}', b"[1, 2]", deep, b'{"input": "q", "output": 3, "score": 1}', b"null"]
    bad += [
        b'{"input": "q", "output": "o", "score": "high"}',
        b'{"input": "q", "output": "o", "score": 1' + b"0" * 5000 + b"}",
    ]
    bad += [b'{"input": "q", "output": "o", "score": [1]}']
    path = tmp_path / "dump.jsonl"
    path.write_bytes(b"\n".join([good, *bad, b"", b"  ", good[:-9]]) + b"\n" + good)  # the last line has no end
    _, seen, problems = load(path)
    assert len(seen) == 2
    assert problems.num_malformed == len(bad) + 1
    assert len(problems.malformed) == 5
    assert f"{path}:2: " in problems.malformed[0] and "not UTF-8 at byte 11" in problems.malformed[1]
    assert "nested too deeply" in problems.malformed[3]


def test_a_line_without_end_is_never_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    good = json.dumps(verl_rows(1)[0])
    path = tmp_path / "dump.jsonl"
    with path.open("wb") as file:
        file.write(good.encode() + b'\n{"input": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + good.encode() + b"\n")
    tracemalloc.start()
    _, seen, problems = load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(seen) == 2 and problems.num_malformed == 1
    assert "a line of 209,715," in problems.malformed[0]
    assert peak < 3 * dump_files.MAX_LINE_BYTES


def test_nothing_outside_of_a_directory_is_read_and_a_pipe_stops_nobody(tmp_path: Path) -> None:
    secret = write_rows(tmp_path / "secret" / "other.jsonl", verl_rows(1))
    folder = tmp_path / "dumps"
    write_rows(folder / "1.jsonl", verl_rows(1))
    (folder / "2.jsonl").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "3.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    _, seen, problems = load(folder)
    assert len(seen) == 4
    assert problems.num_skipped == 4 and sum("links" in reason for reason in problems.skipped) == 3
    with pytest.raises(DataError, match="neither a file nor a directory"):
        load(tmp_path / "pipe.jsonl")


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a parquet that is none": ("a.parquet", b"PAR1 nonsense PAR1", "not readable as Parquet"),
    "an archive that is none": ("a.eval", b"PK\x03\x04 nonsense", "not an inspect_ai log"),
    "a database that is none": ("a.db", b"SQLite format 3\x00 nonsense", "not readable as a trackio database"),
    "nested JSON": ("a.json", b"[" * 10_000_000, "nested too deeply"),
    "an empty file": ("a.jsonl", b"", "holds no JSON object"),
    "a file of another kind": ("a.csv", b"a,b", "unknown kind of file '.csv'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_clear_sentence(tmp_path: Path, what: str) -> None:
    name, data, sentence = BROKEN[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path / name)


def test_a_missing_file_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "nowhere.jsonl")


def test_a_json_file_too_large_to_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_files, "MAX_JSON_BYTES", 1000)
    (tmp_path / "log.json").write_text(json.dumps([verl_rows(1)] * 10))
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        load(tmp_path / "log.json")


@pytest.mark.parametrize("write", [zip_with_zstandard, None])
def test_an_archive_that_swells_is_bounded_by_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, dict[str, bytes]], None] | None
) -> None:
    monkeypatch.setattr(dump_files, "MAX_JSON_BYTES", 100_000)
    members = {
        "samples/a_epoch_1.json": json.dumps(inspect_sample("a", 1, "C")).encode(),
        "samples/b_epoch_1.json": b"0" * 50_000_000,
        "samples/c_epoch_1.json": b"{",
    }
    path = tmp_path / "bomb.eval"
    if write is not None:
        write(path, members)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    _, seen, problems = load(path)
    assert len(seen) == 1 and problems.num_malformed == 2
    assert any("more than 100,000 bytes" in reason for reason in problems.malformed)


def test_a_database_s_view_is_not_run(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "evil.db")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("CREATE VIEW metrics AS SELECT 1 AS id, x AS metrics FROM t")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="no table named metrics"):
        load(tmp_path / "evil.db")


def test_what_a_file_holds_cannot_write_to_the_terminal() -> None:
    problems = Problems()
    problems.add_malformed("a\x1b[2J.jsonl", "\x07bell\ud800" + "x" * 10_000)
    assert problems.malformed[0].startswith("a?[2J.jsonl: ?bell?") and len(problems.malformed[0]) < 300


# -- formats of other projects ----------------------------------------------------------------------------------------

ZOOM = '<grounding>{"bbox_2d": [1, 2, 30, 40], "source": "original_image"}</grounding>'


@pytest.mark.parametrize(
    ("text", "calls", "in_thinking", "num_turns"),
    [
        (f"<think>small</think>{ZOOM}", [("grounding", False)], 0, 1),
        (f"<think>a</think>{ZOOM}user\nHere is the crop.\nassistant\n<think>b</think>4", [("grounding", True)], 0, 2),
        (f"<think>a</think>{ZOOM}crop<think>b</think>{ZOOM}crop<think>c</think>4", [("grounding", True)] * 2, 0, 3),
        (f"<think>maybe {ZOOM}</think>4", [], 1, 1),
        ("<think>a</think><grounding>the sign</grounding>no<think>b</think>4", [(None, True)], 0, 2),
        ("<think>a</think><grounding>{", [(None, False)], 0, 1),
    ],
)
def test_the_zoom_of_mini_o3_is_a_call(
    text: str, calls: list[tuple[str | None, bool]], in_thinking: int, num_turns: int
) -> None:
    heard = read_text(text)
    assert [(call.tool, call.is_answered) for call in heard.calls] == calls
    assert (heard.num_in_thinking, heard.num_turns) == (in_thinking, num_turns)


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": sender, "value": text} for sender, text in turns]


def test_sharegpt_conversations_have_turns_tools_and_questions(tmp_path: Path) -> None:
    call = json.dumps({"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}})
    rows = [
        {"conversations": sharegpt(("human", "How many?"), ("gpt", "<think>a</think>4")), "score": 1.0},
        {
            "conversations": sharegpt(
                ("human", "How many?"), ("function_call", call), ("observation", "Error: no image"), ("gpt", "3")
            ),
            "score": 0.0,
        },
        {
            "conversations": sharegpt(("human", "Which?"), ("function_call", f"[{call}, {call}]"), ("gpt", "3")),
            "score": 0.0,
        },
    ]
    name, seen, problems = load(write_rows(tmp_path / "sharegpt.jsonl", rows))
    assert (name, problems.num_malformed) == ("openai", 0)
    assert [(r.num_turns, [c.tool for c in r.calls]) for r in seen] == [(1, []), (2, ["zoom"]), (2, ["zoom", "zoom"])]
    assert seen[1].calls[0].failure is FailureKind.EXECUTION_ERROR
    assert seen[0].question == seen[1].question != seen[2].question


def test_messages_without_a_turn_of_the_model_are_malformed_and_named(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "human", "content": "?"}, {"role": "ai", "content": "4"}], "reward": 1, "task_id": 1}
    ]
    _, seen, problems = load(write_rows(tmp_path / "roles.jsonl", rows))
    assert not seen and "no message has the role assistant; there are ai, human" in problems.malformed[0]


@pytest.mark.parametrize(
    ("extra", "mapping", "rewards"),
    [
        ({}, {}, [0.9, 0.1]),
        ({"acc": True}, {}, [1.0, 1.0]),
        ({"acc": 0}, {}, [0.0, 0.0]),
        ({"acc": True}, {"reward": "score"}, [0.9, 0.1]),
        ({"acc": "right"}, {}, [0.9, 0.1]),
    ],
)
def test_accuracy_counts_more_than_a_shaped_score_in_verl_dumps(
    tmp_path: Path, extra: dict[str, Any], mapping: dict[str, str], rewards: list[float]
) -> None:
    rows = [{"input": "q", "output": "4", "score": score, "gts": "4", "step": 1, **extra} for score in (0.9, 0.1)]
    path = write_rows(tmp_path / "1.jsonl", rows)
    assert [rollout.reward for rollout in load(path, mapping=mapping)[1]] == rewards
    dump = open_dump(find_dumps(path, Problems())[0], Problems(), mapping=mapping)
    assert ("--map reward=score" in dump.note) == (rewards[0] in (0.0, 1.0))


def test_skyrl_scores_per_token_are_added_up(tmp_path: Path) -> None:
    row = {
        "input_prompt": "How many?",
        "output_response": ACTING,
        "score": [0.0, 0.0, 1.0],
        "stop_reason": "stop",
        "env_class": "gsm8k",
        "env_extras": {"reward_spec": {"ground_truth": "2"}},
        "data_source": "gsm8k",
    }
    cut = {**row, "output_response": "<think>a", "score": 0.0, "stop_reason": "length"}
    name, seen, problems = load(write_rows(tmp_path / "gsm8k.jsonl", [row, cut]))
    assert (name, problems.num_malformed) == ("skyrl", 0)
    assert [(r.reward, r.uses_tool, r.is_truncated) for r in seen] == [(1.0, True, False), (0.0, False, True)]
    assert seen[0].question == seen[1].question


def test_nemo_rl_texts_without_roles_start_with_the_prompt(tmp_path: Path) -> None:
    whole = f"<|im_start|>user\nHow many? <tool_call>{{}}</tool_call><|im_end|>\n<|im_start|>assistant\n{ACTING}"
    rows = [
        {"content": [["How many?", f"<think>a</think>{CALL}", RESULT, "4"]], "rewards": [1.0], "idx": 0},
        {"content": [whole], "rewards": 0.0, "idx": 1, "generation_logprobs": [[0.0]]},
        {"content": ["no markup at all"], "rewards": [0.0], "idx": 2},
    ]
    name, seen, problems = load(write_rows(tmp_path / "train_data_step7.jsonl", rows))
    assert name == "nemo-rl"
    assert [(r.reward, len(r.calls), r.num_turns) for r in seen] == [(1.0, 1, 2), (0.0, 1, 2)]
    assert problems.num_malformed == 1 and "docs/diagnose.md" in problems.malformed[0]


def test_rllm_episodes_are_one_rollout_per_trajectory(tmp_path: Path) -> None:
    def episode_row(number: int, is_correct: bool) -> dict[str, Any]:
        chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": ACTING}]
        steps = [{"chat_completions": chat[:1]}, {"chat_completions": chat}]
        reason = "env_done" if is_correct else "max_response_length_exceeded"
        return {
            "id": f"task-1:{number}",
            "task": {"question": "How many?"},
            "is_correct": is_correct,
            "termination_reason": reason,
            "trajectories": [{"name": "solver", "steps": steps, "reward": 0.3}],
        }

    rows = [episode_row(0, True), episode_row(1, False), {**episode_row(2, True), "trajectories": [{"steps": []}]}]
    name, seen, problems = load(write_rows(tmp_path / "episodes.jsonl", rows))
    assert (name, problems.num_malformed) == ("rllm", 1)
    assert [(r.reward, r.uses_tool, r.is_truncated) for r in seen] == [(1.0, True, False), (0.0, True, True)]
    assert seen[0].question == seen[1].question


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"resourceSpans": []}, "an OpenTelemetry trace"),
        ({"run_type": "llm", "trace_id": "1", "inputs": {}, "outputs": {}}, "a LangSmith run"),
        ({"doc_id": 1, "resps": [["4"]], "filtered_resps": ["4"], "acc": 1.0}, "lmms-eval or lm-eval samples"),
    ],
)
def test_what_is_known_but_not_read_is_refused_with_advice(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=f"it looks like {told}.*question"):
        load(write_rows(tmp_path / "rows.jsonl", [row]))


def test_the_advice_for_lmms_eval_samples_works(tmp_path: Path) -> None:
    rows = [
        {"doc_id": 3, "resps": [["<think>a</think>4"]], "filtered_resps": ["4"], "vqa": {"score": score}}
        for score in (1.0, 0.0)
    ]
    path = write_rows(tmp_path / "samples.jsonl", rows)
    mapping = {"question": "doc_id", "text": "resps.0.0", "reward": "vqa.score"}
    _, seen, problems = load(path, format="minimal", mapping=mapping)
    assert problems.num_malformed == 0
    assert [(r.reward, r.num_turns, r.length) for r in seen] == [(1.0, 1, 17), (0.0, 1, 17)]


def test_every_damage_to_an_archive_or_a_database_is_one_clear_sentence(tmp_path: Path) -> None:
    """Flips bytes and cuts: no other exception than `DataError` may leave the reader."""
    archive = tmp_path / "log.eval"
    zip_with_zstandard(archive, {"samples/1.json": json.dumps(inspect_sample("a", 1, "C")).encode()})
    database = tmp_path / "project.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, metrics TEXT)")
        cell = {"_type": "trackio.table", "_value": [{"prompt": "q", "completion": "4", "advantage": 0.0}]}
        connection.execute("INSERT INTO metrics VALUES (1, 'r', ?)", (json.dumps({"completions": cell}),))
    for path in (archive, database):
        whole = path.read_bytes()
        random_bytes = random.Random(0)
        for trial in range(400):
            data = bytearray(whole)
            for _ in range(1 + trial % 3):
                data[random_bytes.randrange(len(data))] = random_bytes.randrange(256)
            path.write_bytes(data[: random_bytes.randrange(len(data))] if trial % 4 == 0 else data)
            with contextlib.suppress(DataError):
                load(path)
