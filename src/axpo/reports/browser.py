"""The rollouts of a page: an index to filter by, and one compressed part for each step of each run.

The index holds a few small numbers of every group and rollout, column by column. A part holds the dialogues of one
rollouts file, gzipped and in base64; the page opens it when one of its groups is looked at.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from axpo.diagnostics.recorder import rollout_files
from axpo.errors import DataError, RecordError
from axpo.reports.rollout_views import Json, build_prompt, build_rollout, tool_calls
from axpo.reports.runs import Run
from axpo.reports.selection import GroupLines, StepFile, choose_files, read_group, scan_groups
from axpo.reports.thumbnails import Thumbnails
from axpo.types import FailureKind, SegmentKind, StopReason

MAX_STEPS = 64
"""Training steps that are shown, unless all are asked for."""
MAX_BYTES = 6_500_000
"""Of all parts together, as they stand in the page."""
MAX_TOOLS = 24
"""Names in the filter by tool; rarer ones (a model can make up any name) are one entry, `other`."""

_GROUP_FLAGS = {"is_triggered": 1, "is_resampled": 2, "is_recovered": 4}
_FAILURES = tuple(kind.value for kind in FailureKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The dialogues of one rollouts file."""

    file: StepFile
    num_groups: int
    """In the file."""
    num_shown: int
    data: str
    """base64 of gzipped JSON: a list of groups."""


@dataclass(slots=True, kw_only=True)
class Browser:
    """What the page's rollout browser is made of."""

    parts: list[Part] = field(default_factory=list[Part])
    index: Json = field(default_factory=dict[str, Any])
    cut: str = ""
    """What was left out, in words."""


@dataclass(slots=True, kw_only=True)
class _Columns:
    problems: dict[str, int] = field(default_factory=dict[str, int])
    questions: list[str] = field(default_factory=list[str])
    groups: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    """(part, place in it, problem, flags)"""
    rollouts: list[tuple[int, float, int, tuple[str, ...], int]] = field(
        default_factory=list[tuple[int, float, int, tuple[str, ...], int]]
    )
    """(group, reward, flags, tools, failures)"""


def build_browser(
    runs: Sequence[Run], thumbnails: Thumbnails, *, max_steps: int | None = MAX_STEPS, max_bytes: int | None = MAX_BYTES
) -> Browser:
    """Read the rollouts that are shown. Raises `DataError` on a broken record."""
    files = choose_files(runs, max_steps=max_steps)
    browser, columns, num_bytes = Browser(), _Columns(), 0
    for step_files in _by_step(files):
        scanned = [scan_groups(file.path) for file in step_files]
        wanted = _shared_order(scanned)
        for file, groups in zip(step_files, scanned, strict=True):
            share = None if max_bytes is None else (max_bytes - num_bytes) // (len(files) - len(browser.parts))
            part = _build_part(
                file, [groups[p] for p in wanted if p in groups], runs, thumbnails, columns, browser, share
            )
            browser.parts.append(part)
            num_bytes += len(part.data)
    browser.index = _index(columns, browser.parts)
    browser.cut = _describe_cut(runs, browser.parts)
    return browser


def _by_step(files: Sequence[StepFile]) -> Iterator[list[StepFile]]:
    steps: dict[tuple[str, int], list[StepFile]] = {}
    for file in files:
        steps.setdefault((file.kind, file.step), []).append(file)
    yield from steps.values()


def _shared_order(scanned: Sequence[dict[str, GroupLines]]) -> list[str]:
    """The problems of a step, telling ones first, in one order for all runs: so that they can be compared."""
    ranks: dict[str, int] = {}
    for groups in scanned:
        for problem_id, group in groups.items():
            ranks[problem_id] = min(group.rank, ranks.get(problem_id, group.rank))
    return sorted(ranks, key=lambda problem_id: ranks[problem_id])


def _build_part(
    file: StepFile,
    groups: Sequence[GroupLines],
    runs: Sequence[Run],
    thumbnails: Thumbnails,
    columns: _Columns,
    browser: Browser,
    max_bytes: int | None,
) -> Part:
    """Groups until the part is full; the first one always."""
    packer, num_shown, size = zlib.compressobj(9, zlib.DEFLATED, 31), 0, 0
    pieces: list[bytes] = []
    pictures = thumbnails.of_run(runs[file.run_index].folder)
    for group in groups:
        if num_shown and max_bytes is not None and size * 4 // 3 >= max_bytes:
            break
        built, records = _build_group(file, group, pictures)
        _add_columns(columns, (len(browser.parts), num_shown), group, built, records)
        text = ("," if num_shown else "[") + json.dumps(built, ensure_ascii=False, separators=(",", ":"))
        # what JSON calls text may hold half a character, which no page can
        pieces += [packer.compress(text.encode("utf-8", "replace")), packer.flush(zlib.Z_SYNC_FLUSH)]
        size = sum(map(len, pieces))
        num_shown += 1
    pieces += [packer.compress(b"]" if num_shown else b"[]"), packer.flush()]
    data = base64.b64encode(b"".join(pieces)).decode("ascii")
    return Part(file=file, num_groups=len(groups), num_shown=num_shown, data=data)


def _build_group(file: StepFile, group: GroupLines, pictures: Any) -> tuple[Json, list[Json]]:
    """The group as the page reads it, and its records."""
    numbered = list(read_group(file.path, group))
    records = [record for _, record in numbered]
    place = group.lines[0][0]
    try:
        index_of = {str(record["rollout"]["id"]): index for index, record in enumerate(records)}
        built = build_prompt(records[0], pictures) | {"rollouts": []}
        for place, record in numbered:  # noqa: B007 - the place of the record that is broken
            built["rollouts"].append(build_rollout(record, pictures, index_of))
        return built, records
    except (RecordError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise DataError(f"{file.path}:{place}: not a rollout record: {type(error).__name__}: {error}") from error


def _add_columns(
    columns: _Columns, place: tuple[int, int], group: GroupLines, built: Json, records: Sequence[Json]
) -> None:
    problem = columns.problems.setdefault(group.problem_id, len(columns.problems))
    if problem == len(columns.questions):
        columns.questions.append(built["question"][:160])
    flags = sum(bit for name, bit in _GROUP_FLAGS.items() if getattr(group, name))
    columns.groups.append((*place, problem, flags))
    for rollout, record in zip(built["rollouts"], records, strict=True):
        calls = list(tool_calls(record))
        failures = sum(1 << _FAILURES.index(kind) for kind in {kind for _, kind in calls} if kind in _FAILURES)
        columns.rollouts.append(
            (
                len(columns.groups) - 1,
                rollout["reward"],
                _rollout_flags(rollout),
                tuple(dict.fromkeys(name for name, _ in calls)),
                failures,
            )
        )


def _rollout_flags(rollout: Json) -> int:
    """1 right, 2 opened a tool call, 4 continuation, 8 ended by a limit, 16 its thinking was resampled."""
    holds = (
        rollout["right"],
        any(segment["k"] == SegmentKind.TOOL_OPEN for segment in rollout["segs"]),
        "from" in rollout,
        rollout["stop"] != StopReason.ANSWERED,
        rollout["role"] == "prefix",
    )
    return sum(1 << bit for bit, is_set in enumerate(holds) if is_set)


def _index(columns: _Columns, parts: Sequence[Part]) -> Json:
    """Columns of small numbers, and the words they stand for."""
    counts = Counter(name for _, _, _, names, _ in columns.rollouts for name in names)
    tools = [name for name, _ in counts.most_common(MAX_TOOLS)]
    bit = {name: min(tools.index(name), MAX_TOOLS) if name in tools else MAX_TOOLS for name in counts}
    return {
        "problems": list(columns.problems),
        "questions": columns.questions,
        "tools": [*tools, *(["other"] if len(counts) > MAX_TOOLS else [])],
        "failures": list(_FAILURES),
        "parts": [
            {
                "run": p.file.run_index,
                "kind": p.file.kind,
                "step": p.file.step,
                "groups": p.num_groups,
                "shown": p.num_shown,
            }
            for p in parts
        ],
        "groups": dict(zip(("part", "place", "problem", "flags"), _transpose(columns.groups, 4), strict=True)),
        "rollouts": {
            "group": [row[0] for row in columns.rollouts],
            "reward": [round(row[1], 4) for row in columns.rollouts],
            "flags": [row[2] for row in columns.rollouts],
            "tools": [sum({1 << bit[name] for name in row[3]}) for row in columns.rollouts],
            "failures": [row[4] for row in columns.rollouts],
        },
    }


def _transpose(rows: Sequence[Sequence[int]], width: int) -> list[list[int]]:
    return [[row[column] for row in rows] for column in range(width)]


def _describe_cut(runs: Sequence[Run], parts: Sequence[Part]) -> str:
    """`Showing 64 of 200 training steps ...`, from what was read."""
    recorded = {step for run in runs for step in rollout_files(run.folder, "train")}
    if not parts:
        return "No rollouts were recorded."
    shown = {part.file.step for part in parts if part.file.kind == "train"}
    groups = sum(part.num_shown for part in parts), sum(part.num_groups for part in parts)
    words = (
        f"{len(shown)} training steps"
        if len(shown) == len(recorded)
        else f"{len(shown)} of {len(recorded)} training steps"
    )
    if groups[0] == groups[1]:
        return f"Showing {words}, all {groups[0]:,} groups of them."
    shown_groups = f"{groups[0]:,} of {groups[1]:,} groups of them"
    return f"Showing {words} and {shown_groups}: recovered, resampled and triggered ones first."
