"""The run directory: what is written, in which order, and how it is read back.

    run.json  metrics.jsonl  rollouts/train-000012.jsonl  rollouts/eval-000060.jsonl  images/<sha256>.<ext>

A step is written images first, then its rollouts file (temporary file, fsync, rename), then one line of
`metrics.jsonl` (fsync). Whenever the process dies, every line of `metrics.jsonl` but perhaps a half-written last one
has its rollouts file, and `RunRecorder.truncate_after` removes whatever a resumed run will write again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from axpo.codec import from_json, to_json
from axpo.errors import DataError, RecordError
from axpo.files import append_line, write_atomically, writing
from axpo.images import ContentImageStore
from axpo.types import (
    ContinuationGroup,
    ImageRef,
    JsonValue,
    Problem,
    Rollout,
    RolloutGroup,
    RowRole,
    SegmentKind,
    TrainingRow,
)

Metrics = Mapping[str, float | int | None]
Phase = Literal["train", "resample", "eval"]

_PACKAGES = ("axpo", "torch", "transformers", "numpy", "pillow")
_ROLLOUT_FILE = re.compile(r"(train|eval)-(\d{6,})\.jsonl")
_MAX_TOKENS_PER_CHAR = 8
"""A character has at most four bytes; more than twice as many tokens without one means that pieces do not add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """One line of a rollouts file: a rollout with the credit it got and what it was about."""

    step: int
    phase: Phase
    rollout: Rollout
    role: RowRole
    credit: tuple[tuple[int, int, float], ...]
    """`(start, stop, advantage)` of the token ranges that learn; empty in evaluation."""
    confidence: float | None
    """Mean probability of the tool call's tokens, where it was computed."""
    is_triggered: bool
    """Of its question: tool-using siblings exist and all of them are wrong."""
    segment_texts: tuple[str, ...]
    """Decoded text of each segment."""
    question: str
    answer: str
    metadata: Mapping[str, JsonValue]
    """Of the problem."""
    token_chars: tuple[int, ...] = ()
    """How many characters each token after the prompt adds to its segment's text; empty where it was not recorded.

    A character of several tokens belongs to the last of them: the others add 0.
    """

    def __post_init__(self) -> None:
        if len(self.segment_texts) != len(self.rollout.segments):
            raise RecordError(
                f"RolloutRecord {self.rollout.id}: {len(self.rollout.segments)} segments but "
                f"{len(self.segment_texts)} texts"
            )
        num_tokens = sum(len(segment) for segment in self.rollout.segments if segment.kind is not SegmentKind.PROMPT)
        if self.token_chars and len(self.token_chars) != num_tokens:
            raise RecordError(
                f"RolloutRecord {self.rollout.id}: {num_tokens} tokens after the prompt but "
                f"{len(self.token_chars)} lengths in token_chars"
            )


# -- writing ----------------------------------------------------------------------------------------------------------


class RunRecorder:
    """Writes a run directory. `store` must write its pictures to `folder / "images"`."""

    def __init__(self, folder: Path, *, store: ContentImageStore, device: str = "cpu") -> None:
        self._folder = folder
        self._store = store
        self._metrics_path = folder / "metrics.jsonl"
        with writing(folder):
            (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        _record_start(folder / "run.json", device=device)

    def truncate_after(self, step: int, *, is_eval_pending: bool = False) -> None:
        """Drop every record of a later step and what an interrupted write left. Call before resuming at `step`.

        `is_eval_pending`: also drop the evaluation after `step`, which will be repeated.
        """
        last = {"train": step, "eval": step - is_eval_pending}
        kept = [record for record in read_metrics(self._folder) if record["step"] <= last[record["kind"]]]
        write_atomically(self._metrics_path, (json.dumps(record) for record in kept))
        for path in (self._folder / "rollouts").iterdir():
            match = _ROLLOUT_FILE.fullmatch(path.name)
            if match is None or int(match[2]) > last[match[1]]:
                path.unlink()

    def record_step(self, step: int, metrics: Metrics, lines: Iterable[Mapping[str, JsonValue]]) -> None:
        """Write the rollouts and the metrics of a training step."""
        self._record("train", step, metrics, lines)

    def record_eval(self, step: int, metrics: Metrics, lines: Iterable[Mapping[str, JsonValue]]) -> None:
        """Write the rollouts and the metrics of an evaluation."""
        self._record("eval", step, metrics, lines)

    def _record(self, kind: str, step: int, metrics: Metrics, lines: Iterable[Mapping[str, JsonValue]]) -> None:
        lines = list(lines)
        for image in {image.sha256: image for line in lines for image in _line_images(line)}.values():
            self._store.persist(image)
        if lines:
            path = self._folder / "rollouts" / f"{kind}-{step:06d}.jsonl"
            write_atomically(path, (json.dumps(line, ensure_ascii=False) for line in lines))
        append_line(self._metrics_path, json.dumps(_metrics_record(kind, step, metrics), allow_nan=False))


def rollout_lines(
    *,
    step: int,
    phase: Literal["train", "eval"],
    groups: Sequence[RolloutGroup],
    problems: Sequence[Problem],
    decode: Callable[[Sequence[int]], str],
    continuations: Sequence[ContinuationGroup] = (),
    rows: Sequence[TrainingRow] = (),
    confidence_of: Callable[[Rollout], float | None] | None = None,
) -> list[dict[str, JsonValue]]:
    """The lines of a rollouts file: all siblings, then the continuations.

    `rows` carry the rollouts' ids and give role and credit. `confidence_of` rates tool-using rollouts that were not
    resampled; those that were keep the confidence of their plan.
    """
    problem_by_id = {problem.id: problem for problem in problems}
    row_by_id = {row.id: row for row in rows}
    planned = {group.prefix.source.id: group.prefix.confidence for group in continuations}
    piece_of = functools.cache(decode)  # a step repeats its tokens many times

    def build(rollout: Rollout, *, phase: Phase, is_triggered: bool) -> dict[str, JsonValue]:
        problem, row = problem_by_id[rollout.problem_id], row_by_id.get(rollout.id)
        confidence = planned.get(rollout.id)
        if confidence is None and confidence_of is not None and rollout.uses_tool:
            confidence = confidence_of(rollout)
        texts = tuple(decode(rollout.token_ids[s.start : s.stop]) for s in rollout.segments)
        record = RolloutRecord(
            step=step,
            phase=phase,
            rollout=rollout,
            role=row.role if row is not None else RowRole.CONTINUATION if rollout.prefix else RowRole.ROLLOUT,
            credit=credit_spans(row) if row is not None else (),
            confidence=confidence,
            is_triggered=is_triggered,
            segment_texts=texts,
            question=_question_text(problem),
            answer=problem.answer,
            metadata=problem.metadata,
            token_chars=tuple(
                length
                for segment, text in zip(rollout.segments, texts, strict=True)
                if segment.kind is not SegmentKind.PROMPT
                for length in token_lengths(rollout.token_ids[segment.start : segment.stop], text, piece_of)
            ),
        )
        return cast("dict[str, JsonValue]", to_json(record))

    siblings = [build(r, phase=phase, is_triggered=g.is_triggered) for g in groups for r in g.rollouts]
    return siblings + [build(r, phase="resample", is_triggered=True) for g in continuations for r in g.rollouts]


def token_lengths(token_ids: Sequence[int], text: str, decode: Callable[[tuple[int, ...]], str]) -> list[int]:
    """Characters that each token adds to `text`, their sum `len(text)`; linear in the number of tokens.

    `text` is the tokens decoded together. Where the pieces do not add up to it (a decoder that changes spaces), the
    last token gets all that is left.

    >>> token_lengths([1, 2], "a b", lambda ids: {(1,): "a", (2,): " b"}[ids])
    [1, 2]
    """
    lengths = [0] * len(token_ids)
    position, first = 0, 0
    for index in range(len(token_ids)):
        piece = decode(tuple(token_ids[first : index + 1]))
        if text.startswith(piece, position):
            lengths[index] = len(piece)
            position, first = position + len(piece), index + 1
        elif index - first >= _MAX_TOKENS_PER_CHAR:
            break
    if lengths:
        lengths[-1] += len(text) - position
    return lengths


def credit_spans(row: TrainingRow) -> tuple[tuple[int, int, float], ...]:
    """Maximal ranges `(start, stop, advantage)` of learning tokens with one advantage."""
    spans: list[tuple[int, int, float]] = []
    for position, (learns, advantage) in enumerate(zip(row.loss_mask, row.advantages, strict=True)):
        if not learns:
            continue
        if spans and spans[-1][1] == position and spans[-1][2] == advantage:
            spans[-1] = (spans[-1][0], position + 1, advantage)
        else:
            spans.append((position, position + 1, advantage))
    return tuple(spans)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All records of `metrics.jsonl`, oldest first; empty when the run has written none.

    Raises `DataError` on a broken line that is not an unfinished last one.
    """
    path = run_dir / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for number, value in read_lines(path) if path.exists() else ():
        if value.get("kind") not in ("train", "eval") or not isinstance(value.get("step"), int):
            raise DataError(f'{path}:{number}: expected "kind" train or eval and an integer "step", got {_clip(value)}')
        records.append(value)
    return records


def read_run_info(run_dir: Path) -> dict[str, Any]:
    """`run.json` of a run; empty when there is none. Raises `DataError` when it is broken."""
    path = run_dir / "run.json"
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {_clip(value)}")
    return cast("dict[str, Any]", value)


def read_rollouts(path: Path) -> tuple[RolloutRecord, ...]:
    """All records of one rollouts file. Raises `DataError` on a line that is no such record."""
    records: list[RolloutRecord] = []
    for number, value in read_lines(path):
        try:
            records.append(from_json(RolloutRecord, value))
        except (RecordError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}:{number}: not a rollout record: {error}") from error
    return tuple(records)


def rollout_files(run_dir: Path, kind: Literal["train", "eval"]) -> dict[int, Path]:
    """Rollouts files of a run by step, ascending."""
    found = ((_ROLLOUT_FILE.fullmatch(path.name), path) for path in (run_dir / "rollouts").glob("*.jsonl"))
    return dict(sorted((int(match[2]), path) for match, path in found if match is not None and match[1] == kind))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line of a JSONL file but an unfinished last one. Raises `DataError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Is this a run directory?") from error
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline yet: the writer died, or is still at it
                return
            raise DataError(f"{path}:{number}: not JSON ({error}): {line[:80]!r}. Remove the line.") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {_clip(value)}")
        yield number, cast("dict[str, Any]", value)


# -- parts ------------------------------------------------------------------------------------------------------------


def _metrics_record(kind: str, step: int, metrics: Metrics) -> dict[str, Any]:
    """JSON has no NaN: such a value becomes null and its key is listed under `non_finite`."""
    broken = [key for key, value in metrics.items() if value is not None and not math.isfinite(value)]
    values = {key: None if key in broken else value for key, value in metrics.items()}
    return {"kind": kind, "step": step, **values} | ({"non_finite": broken} if broken else {})


def _line_images(line: Mapping[str, JsonValue]) -> Iterator[ImageRef]:
    rollout = line["rollout"]
    blocks = [block for result in rollout["tool_results"] for block in result["content"]]
    for value in (*rollout["images"], *(block["image"] for block in blocks if block["image"] is not None)):
        yield from_json(ImageRef, value)


def _question_text(problem: Problem) -> str:
    return next(message.text for message in reversed(problem.messages) if message.role == "user")


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _record_start(path: Path, *, device: str) -> None:
    """Write `run.json`; a later start of the same run is added to its `resumed` list."""
    start = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        "commit": _source_commit(),
        "device": device,
        "machine": f"{platform.machine()}, {os.cpu_count()} logical CPUs",
        "versions": {"python": platform.python_version(), **_package_versions()},
    }
    known = read_run_info(path.parent)
    if known:
        start = {**known, "resumed": [*known.get("resumed", []), start]}
    write_atomically(path, [json.dumps(start, indent=1)])


def _package_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _source_commit() -> str | None:
    """Commit of the checkout this file is tracked in, `+` appended when the tree has changes; None outside of one."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
