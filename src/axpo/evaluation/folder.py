"""The folder of a benchmark evaluation, read and written. Imports no torch: reports read it too.

eval.json  problems/NAME.jsonl  rollouts/NAME.jsonl  verdicts/NAME.jsonl  summary.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from axpo.codec import from_json, to_json
from axpo.dialogue import Verdict
from axpo.errors import DataError, RecordError
from axpo.evaluation.log import read_log
from axpo.evaluation.records import JudgedRollout
from axpo.evaluation.scorecard import BenchmarkInfo
from axpo.files import write_atomically
from axpo.types import Problem

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an evaluation asked: `eval.json`."""

    label: str
    """The name of its row in tables."""
    benchmarks: tuple[BenchmarkInfo, ...]
    sources: Mapping[str, str]
    """Where each benchmark's files came from, hub commits included."""
    preset: str
    limit: int | None
    is_official: bool
    """The last command judged by the authors' own rules; which benchmarks were is in `benchmarks`."""
    num_samples: int
    seed: int
    has_judge: bool
    """The last command had one."""
    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """One benchmark of an evaluation: its questions, and every try with its verdict."""

    info: BenchmarkInfo
    problems: tuple[Problem, ...]
    rollouts: tuple[JudgedRollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _JudgedLine:
    problem_id: str
    sample: int
    verdict: Verdict


def read_manifest(folder: Path) -> Manifest | None:
    """`eval.json` of a folder; None when there is none. Raises `DataError` when it is broken."""
    path = folder / "eval.json"
    if not path.is_file():
        return None
    try:
        return from_json(Manifest, json.loads(path.read_bytes()))
    except (OSError, ValueError, RecordError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not the record of an evaluation: {error}. Choose another folder.") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `eval.json`."""
    write_atomically(folder / "eval.json", [json.dumps(to_json(manifest), indent=1, ensure_ascii=False)])


def write_problems(folder: Path, name: str, problems: Sequence[Problem]) -> None:
    """Write a benchmark's questions as they are asked."""
    write_atomically(folder / "problems" / f"{name}.jsonl", (_to_line(problem) for problem in problems))


def write_verdicts(folder: Path, name: str, rollouts: Sequence[JudgedRollout]) -> None:
    """Write what became of a benchmark's rollouts."""
    lines = (_JudgedLine(problem_id=r.rollout.problem_id, sample=r.rollout.sample, verdict=r.verdict) for r in rollouts)
    write_atomically(folder / "verdicts" / f"{name}.jsonl", (_to_line(line) for line in lines))


def read_results(folder: Path) -> tuple[Manifest, tuple[BenchmarkResult, ...]]:
    """Everything of an evaluation that was judged. Raises `DataError` when the folder holds none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: holds no eval.json, so it is no folder of `axpo eval --benchmarks`.")
    results = tuple(_read_result(folder, info) for info in manifest.benchmarks if _path(folder, info).is_file())
    if not results:
        raise DataError(f"{folder}: nothing was judged yet. Run its `axpo eval` command to the end.")
    return manifest, results


def _read_result(folder: Path, info: BenchmarkInfo) -> BenchmarkResult:
    verdicts = {(line.problem_id, line.sample): line.verdict for line in _read(_path(folder, info), _JudgedLine)}
    problems = tuple(_read(folder / "problems" / f"{info.name}.jsonl", Problem))
    known = {problem.id for problem in problems}
    rollouts = tuple(
        JudgedRollout(rollout=rollout, verdict=verdicts[rollout.problem_id, rollout.sample])
        for rollout in read_log(folder / "rollouts" / f"{info.name}.jsonl")
        if (rollout.problem_id, rollout.sample) in verdicts and rollout.problem_id in known
    )
    return BenchmarkResult(info=info, problems=problems, rollouts=rollouts)


def _path(folder: Path, info: BenchmarkInfo) -> Path:
    return folder / "verdicts" / f"{info.name}.jsonl"


def _read(path: Path, kind: type[Record]) -> Iterator[Record]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Run the `axpo eval` command again.") from error
    for number, line in enumerate(lines, start=1):
        try:
            value: Any = json.loads(line)
            yield from_json(kind, value)
        except (ValueError, RecordError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}:{number}: broken: {error}. Run the `axpo eval` command again.") from error


def _to_line(record: Any) -> str:
    return json.dumps(to_json(record), ensure_ascii=False)
