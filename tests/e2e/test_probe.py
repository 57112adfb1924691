"""A probe of a checkpoint from the configuration to the folder: its numbers are those of what it recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import axpo.rollout.collect
from axpo.cli.diagnose import run_diagnose
from axpo.cli.main import main
from axpo.cli.probe import run_probe
from axpo.errors import ConfigError
from axpo.evaluation.estimators import pass_at_k
from axpo.protocols import ChatReply, ChatRequest
from axpo.rollout.loop import run_rollout
from axpo.types import Content, Message
from workshop import read_jsonl

CONFIG = Path("config.toml")


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def probe(out: Path, **options: Any) -> dict[str, Any]:
    given = {"num_questions": 4, "num_continuations": 4, "max_prefixes": 6} | options
    assert run_probe(CONFIG, None, {}, out=out, **given) == 0
    return json.loads((out / "probe.json").read_text())


def test_the_numbers_of_a_probe_are_those_of_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = probe(tmp_path / "probe")
    assert found["verdict"].split()[0] in capsys.readouterr().out
    counts = found["counts"]
    assert counts["prefixes"] >= 2, "nothing was probed: nothing is shown"
    lines = read_jsonl(tmp_path / "probe" / "rollouts" / "train-000000.jsonl")
    siblings = [line for line in lines if line["phase"] == "train"]
    continuations = [line for line in lines if line["phase"] == "resample"]
    fresh = read_jsonl(tmp_path / "probe" / "rollouts" / "eval-000000.jsonl")
    assert (counts["siblings"], counts["continuations"], counts["fresh"]) == tuple(
        map(len, (siblings, continuations, fresh))
    )
    assert counts["siblings_lost"] == counts["continuations_lost"] == counts["fresh_lost"] == 0
    right: dict[str, list[bool]] = {}
    for line in continuations:
        right.setdefault(line["rollout"]["prefix"]["source_id"], []).append(line["rollout"]["reward"] >= 1)
    assert {p["source_id"]: sum(c["num_correct"] for c in p["clusters"]) for p in found["prefixes"]} == {
        source: sum(values) for source, values in right.items()
    }
    rows = {row["k"]: row for row in found["numbers"]["recovery"]["pass_at"]}
    assert list(rows) == [1, 2, 4]
    for k, row in rows.items():
        values = [pass_at_k(4, sum(of), k) for of in right.values()]
        assert row["continued"]["estimate"] == pytest.approx(sum(values) / len(values))
    confidences = {line["rollout"]["id"]: line["confidence"] for line in siblings}
    assert all(p["confidence"] == confidences[p["source_id"]] for p in found["prefixes"])
    assert (found["seed"], found["config"]["rollout"]["group_size"]) == (0, 4)


def test_a_probe_is_a_run_that_can_be_diagnosed_and_reported(tmp_path: Path) -> None:
    found = probe(tmp_path / "probe", max_prefixes=99)
    out = tmp_path / "diagnosis.json"
    assert run_diagnose([tmp_path / "probe" / "rollouts" / "train-000000.jsonl"], json_path=out) == 0
    [part] = json.loads(out.read_text())["parts"]
    questions = found["numbers"]["recovery"]["questions"]
    assert part["total"]["rates"]["restore_rate"]["estimate"] == pytest.approx(questions["estimate"])
    assert part["total"]["counts"]["triggered"] == found["counts"]["triggered"]
    assert main(["report", str(tmp_path / "probe"), "--out", str(tmp_path / "report.html")]) == 0


def test_a_seed_gives_one_result_and_a_checkpoint_can_be_named(tmp_path: Path, workshop: Path) -> None:
    first = probe(tmp_path / "a", num_questions=2, num_continuations=2)
    assert run_probe(
        CONFIG, workshop / "model", {"rollout.group_size": "4"}, num_questions=2, num_continuations=2, max_prefixes=6,
        out=tmp_path / "b",
    ) == 0  # fmt: skip
    second = json.loads((tmp_path / "b" / "probe.json").read_text())
    assert second["checkpoint"] == str(workshop / "model")
    assert (first["numbers"], first["prefixes"]) == (second["numbers"], second["prefixes"])


class AgreeingJudge:
    """Takes everything for the same."""

    is_closed = False

    async def reply(self, request: ChatRequest) -> ChatReply:
        message = Message(role="assistant", content=(Content(text="SAME"),))
        return ChatReply(message=message, finish_reason="stop")

    async def close(self) -> None:
        self.is_closed = True


def test_a_judge_is_asked_counted_and_closed(tmp_path: Path) -> None:
    judge = AgreeingJudge()
    found = probe(tmp_path / "probe", judge=judge)
    assert judge.is_closed
    for prefix in found["prefixes"]:
        readable = sum(not cluster["is_malformed"] for cluster in prefix["clusters"])
        assert len(prefix["judged_sizes"]) == len(prefix["clusters"]) - max(0, readable - 1)
    assert found["counts"]["judge_failed"] == 0


def test_without_a_tool_call_there_is_a_verdict_and_a_record_of_the_siblings(tmp_path: Path) -> None:
    overrides = {"rollout.max_response_tokens": "1"}
    assert run_probe(CONFIG, None, overrides, num_questions=2, num_continuations=2, out=tmp_path / "probe") == 0
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert found["verdict"].startswith("Nothing to probe: none of 8 rollouts calls a tool.")
    assert (found["prefixes"], found["fresh"]) == ([], {})
    assert [path.name for path in (tmp_path / "probe" / "rollouts").iterdir()] == ["train-000000.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_questions": 0}, "--questions 0: expected a whole number from 1 on"),
        ({"num_continuations": 1}, "--continuations 1: expected a whole number from 2 on"),
        ({"max_prefixes": 0}, "--max-prefixes 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_probe(CONFIG, None, {}, out=tmp_path / "probe", **options)
    assert not (tmp_path / "probe").exists()


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        run_probe(CONFIG, None, {}, out=tmp_path)


def test_a_probe_that_was_stopped_samples_only_what_is_missing_and_ends_at_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe(tmp_path / "whole")
    sampled: list[str] = []

    def stop_after(limit: int) -> None:
        async def counted(problem: Any, *, rollout_id: str, **rest: Any) -> Any:
            if len(sampled) == limit:
                raise RuntimeError("stopped")
            sampled.append(rollout_id)
            return await run_rollout(problem, rollout_id=rollout_id, **rest)

        monkeypatch.setattr(axpo.rollout.collect, "run_rollout", counted)

    stop_after(20)  # 16 siblings, then among the continuations
    with pytest.raises(RuntimeError, match="stopped"):
        probe(tmp_path / "probe")
    log = tmp_path / "probe" / "sampled.jsonl"
    kept = [line["id"] for line in read_jsonl(log)]
    assert len(kept) >= 16
    with log.open("a") as file:
        file.write('{"id": "half')
    with pytest.raises(ConfigError, match="unfinished probe with other options"):
        run_probe(CONFIG, None, {"rollout.group_size": "8"}, out=tmp_path / "probe")
    sampled.clear()
    stop_after(1000)
    again = probe(tmp_path / "probe")
    assert sampled and not set(kept) & set(sampled)
    assert (again["numbers"], again["prefixes"]) == (whole["numbers"], whole["prefixes"])
    assert not log.exists()
