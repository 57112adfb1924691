"""Which groups of a run go into the page, found without parsing the run: rollouts files are scanned, never loaded."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from axpo.diagnostics.recorder import rollout_files
from axpo.errors import DataError
from axpo.reports.runs import Run

Kind = Literal["train", "eval"]

# Keys of our own lines. Inside a JSON string a quote is escaped, so that no text of a model can look like one of them.
_PROBLEM = re.compile(rb'"problem_id":\s*("(?:[^"\\]|\\.)*")')
_REWARD = re.compile(rb'"reward":\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')
_TRIGGERED = re.compile(rb'"is_triggered":\s*true')
_RESAMPLED = re.compile(rb'"phase":\s*"resample"')


@dataclass(slots=True, kw_only=True)
class GroupLines:
    """Where the records of one question lie in a rollouts file, and what it is an example of."""

    problem_id: str
    lines: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """(line number, offset, length in bytes)."""
    is_triggered: bool = False
    is_resampled: bool = False
    is_recovered: bool = False

    @property
    def rank(self) -> int:
        """What is shown first when not everything can be: 0 recovered, 1 resampled in vain, 2 triggered, 3 others."""
        return 0 if self.is_recovered else 1 if self.is_resampled else 2 if self.is_triggered else 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFile:
    """One rollouts file of one run."""

    run_index: int
    kind: Kind
    step: int
    path: Path


def choose_files(runs: Sequence[Run], *, max_steps: int | None) -> list[StepFile]:
    """Rollouts files in the order in which they are worth showing, the same steps of all runs together.

    The first and the last evaluation, then training steps: first, last, and evenly between them. `max_steps` bounds the
    training steps; None takes all.
    """
    kinds: tuple[Kind, Kind] = ("train", "eval")
    files = {(kind, index): rollout_files(run.folder, kind) for kind in kinds for index, run in enumerate(runs)}

    def of_step(kind: Kind, step: int) -> list[StepFile]:
        found = ((index, files[kind, index].get(step)) for index in range(len(runs)))
        return [StepFile(run_index=i, kind=kind, step=step, path=path) for i, path in found if path is not None]

    steps = {kind: sorted({step for index in range(len(runs)) for step in files[kind, index]}) for kind in kinds}
    ends = steps["eval"] if max_steps is None else list(dict.fromkeys([*steps["eval"][-1:], *steps["eval"][:1]]))
    chosen = spread(steps["train"])[:max_steps]
    ordered = [*(("train", step) for step in chosen[:2]), *(("eval", s) for s in ends)]
    ordered += [("train", step) for step in chosen[2:]]
    return [file for kind, step in ordered for file in of_step(cast("Kind", kind), step)]


def spread(steps: Sequence[int]) -> list[int]:
    """First, last, then the middle of every gap: each beginning of the list is spread evenly.

    >>> spread([1, 2, 3, 4, 5])
    [1, 5, 3, 2, 4]
    """
    if len(steps) < 3:
        return list(steps)
    order, gaps = [0, len(steps) - 1], deque([(0, len(steps) - 1)])
    while gaps:
        low, high = gaps.popleft()
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [steps[index] for index in order]


def scan_groups(path: Path) -> dict[str, GroupLines]:
    """The groups of a rollouts file by problem, in flat memory. Raises `DataError` on a line without a problem."""
    groups: dict[str, GroupLines] = {}
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _add_line(groups, line, (number, offset, len(line)), path)
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Is this a run directory?") from error
    return groups


def _add_line(groups: dict[str, GroupLines], line: bytes, place: tuple[int, int, int], path: Path) -> None:
    found = _PROBLEM.search(line)
    if found is None:
        raise DataError(f'{path}:{place[0]}: not a rollout record: no "problem_id" in {line[:80]!r}. Remove the line.')
    try:
        problem_id = json.loads(found[1])
    except ValueError as error:
        raise DataError(f"{path}:{place[0]}: not a rollout record: {error}") from error
    group = groups.setdefault(problem_id, GroupLines(problem_id=problem_id))
    group.lines.append(place)
    group.is_triggered |= _TRIGGERED.search(line) is not None
    if _RESAMPLED.search(line) is not None:
        reward = _REWARD.search(line)
        group.is_resampled = True
        group.is_recovered |= reward is not None and float(reward[1]) >= 1


def read_group(path: Path, group: GroupLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and value of each record of a group. Raises `DataError` on a broken one."""
    with path.open("rb") as file:
        for number, offset, length in group.lines:
            file.seek(offset)
            line = file.read(length)
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON ({error}): {line[:80]!r}. Remove the line.") from error
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, got {line[:80]!r}")
            yield number, cast("dict[str, Any]", value)
