"""Our own evaluations of benchmarks: lines of `axpo.evaluation.records.SampledRollout`, with or without a verdict.

A line is a sampled rollout whose verdict stands in `verdicts/BENCHMARK.jsonl` beside the `rollouts` folder, or an
object `{"rollout": ..., "verdict": ...}` (`JudgedRollout`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from axpo.diagnostics.importers.axpo_run import answered_call
from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, read_count
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout


def _matches(row: Row, names: Names) -> bool:
    inner = row.get("rollout") if isinstance(row.get("verdict"), Mapping) else row
    return isinstance(inner, Mapping) and {"benchmark", "problem_id", "sample", "transcript"} <= set(
        cast("Mapping[str, Any]", inner)
    )


def _read(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    """A sample lost to faults of ours stays, as wrong: so the evaluation counts it."""
    verdict = row.get("verdict")
    sampled = cast("Mapping[str, Any]", row["rollout"] if isinstance(verdict, Mapping) else row)
    key = (str(sampled["problem_id"]), read_count(sampled["sample"]) or 0)
    if isinstance(verdict, Mapping):
        reward = float(cast("Mapping[str, Any]", verdict)["is_correct"] is True)
    else:
        reward = origin.verdicts.get(key)
    question = f"{sampled['benchmark']}\x00{key[0]}"
    transcript = sampled["transcript"]
    if transcript is None:
        return (SeenRollout(question=question, step=origin.step, reward=0.0 if reward is None else reward),)
    return (_read_transcript(cast("Mapping[str, Any]", transcript), question, reward, origin.step),)


def _read_transcript(
    transcript: Mapping[str, Any], question: str, reward: float | None, step: int | None
) -> SeenRollout:
    turns = cast("Sequence[Mapping[str, Any]]", transcript["turns"])
    opened = [call for turn in turns for call in turn["tool_calls"]]
    results = transcript["tool_results"]
    calls = [answered_call(result) for result in results]
    calls += [
        SeenCall(tool=call["name"] or None, arguments=str(call["raw"] or call["arguments"]), is_answered=False)
        for call in opened[len(calls) :]
    ]
    return SeenRollout(
        question=question,
        step=step,
        reward=reward,
        uses_tool=bool(opened),
        calls=tuple(calls),
        num_calls_in_thinking=sum((turn["reasoning"] or "").count("<tool_call>") for turn in turns),
        is_truncated=transcript["stop_reason"] != "answered",
        length=read_count(transcript["usage"]["completion_tokens"]) or None,
        num_turns=len(turns),
    )


FORMAT = Format(name="axpo-eval", title="axpo evaluation", names={}, matches=_matches, read=_read, length_unit="tokens")
