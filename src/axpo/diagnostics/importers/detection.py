"""Which format a file has, from its first rows; and its rollouts, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from axpo.diagnostics.importers import (
    axpo_eval,
    axpo_run,
    inspect_ai,
    minimal,
    nemo_rl,
    openai,
    rllm,
    skyrl,
    slime,
    trl,
    verifiers,
    verl,
)
from axpo.diagnostics.importers.fields import Format, Names, Origin, Row, pick
from axpo.diagnostics.importers.files import DumpFile, read_rows
from axpo.diagnostics.importers.problems import Problems, plain
from axpo.diagnostics.importers.refused import refusal
from axpo.diagnostics.importers.seen import SeenRollout
from axpo.errors import ConfigError, DataError

_ORDERED = (
    axpo_run.FORMAT,
    axpo_eval.FORMAT,
    verifiers.TRACES,
    inspect_ai.FORMAT,
    verifiers.RESULTS,
    slime.FORMAT,
    trl.FORMAT,
    verl.FORMAT,
    skyrl.FORMAT,
    nemo_rl.FORMAT,
    rllm.FORMAT,
    minimal.FORMAT,
    openai.FORMAT,
)
FORMATS: Mapping[str, Format] = {known.name: known for known in _ORDERED}
"""By name, in the order in which they are tried: what says most about itself first."""

NUM_FIRST_ROWS = 20
"""Rows that are looked at before a format is chosen."""

_BROKEN_ROW = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError)
_MAX_VERDICTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDump:
    """A file whose format is known, with its rollouts still to be read (once)."""

    file: DumpFile
    format: Format
    note: str
    """What was chosen among possibilities, as a sentence; usually empty."""
    rollouts: Iterator[SeenRollout]


def open_dump(
    file: DumpFile, problems: Problems, *, format: str | None = None, mapping: Mapping[str, str] | None = None
) -> OpenDump:
    """Look at the first rows of a file and get ready to read it.

    `format`: a key of `FORMATS`; None: detected. `mapping`: our names of fields -> names in the file.
    Raises `ConfigError` on an unknown format or field, `DataError` when the rows fit no format.
    """
    rows = read_rows(file.path, problems)
    first = list(itertools.islice(rows, NUM_FIRST_ROWS))
    samples = [row for _, row in first]
    if not samples:
        raise DataError(f"{file.path}: holds no JSON object at all.")
    chosen = FORMATS.get(format or "") or (_detect(file.path, samples, mapping or {}) if format is None else None)
    if chosen is None:
        raise ConfigError(f"--format {format}: unknown. Expected one of {', '.join(FORMATS)}.")
    names, note = _rename(chosen, mapping or {}), ""
    if chosen.resolve is not None:
        names, note = chosen.resolve(samples, names)
    verdicts = _find_verdicts(file.path) if chosen is axpo_eval.FORMAT else {}
    counts_tokens = any(pick(row, names, "length") is not None for row in samples)
    if counts_tokens:
        chosen = replace(chosen, length_unit="tokens")
    origin = Origin(step=file.step, verdicts=verdicts, counts_tokens=counts_tokens)
    rollouts = _read(itertools.chain(first, rows), chosen, names, origin, problems)
    return OpenDump(file=file, format=chosen, note=note, rollouts=rollouts)


def _read(
    rows: Iterator[tuple[str, Row]], chosen: Format, names: Names, origin: Origin, problems: Problems
) -> Iterator[SeenRollout]:
    for place, row in rows:
        try:
            yield from chosen.read(row, names, origin)
        except _BROKEN_ROW as error:
            what = f"{type(error).__name__} {error}" if isinstance(error, (KeyError, AttributeError)) else error
            problems.add_malformed(place, f"no row of {chosen.title}: {what}")


def _detect(path: Path, rows: list[Row], mapping: Mapping[str, str]) -> Format:
    """The first format that the first row it fits decides; a broken first row must not."""
    for row in rows:
        for known in _ORDERED:
            if set(mapping) <= set(known.names) and known.matches(row, _rename(known, mapping)):
                return known
    known_but_refused = refusal(rows)
    if known_but_refused is not None:
        raise DataError(f"{path}: {known_but_refused}")
    keys = ", ".join(sorted(plain(str(key), 40) for key in rows[0])[:20])
    raise DataError(
        f"{path}: fits no known format. Its rows have the fields {keys}. Name yours, for example --map question=prompt "
        f"--map text=response --map reward=score, or give --format ({', '.join(FORMATS)}); docs/diagnose.md has all."
    )


def _rename(chosen: Format, mapping: Mapping[str, str]) -> Names:
    unknown = sorted(set(mapping) - set(chosen.names))
    if unknown:
        known = ", ".join(chosen.names) or "none, its records say everything"
        raise ConfigError(
            f"--map {unknown[0]}={mapping[unknown[0]]}: {chosen.title} has no such field. It has: {known}."
        )
    return {**chosen.names, **{ours: (theirs,) for ours, theirs in mapping.items()}}


def _find_verdicts(path: Path) -> dict[tuple[str, int], float]:
    """Of an evaluation folder: `verdicts/BENCHMARK.jsonl` beside `rollouts/BENCHMARK.jsonl`."""
    verdicts: dict[tuple[str, int], float] = {}
    beside = path.parent.parent / "verdicts" / path.name
    if path.parent.name != "rollouts" or beside.is_symlink() or not beside.is_file():
        return verdicts
    for _, row in itertools.islice(read_rows(beside, Problems()), _MAX_VERDICTS):
        inner = row.get("verdict")
        verdict = cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else row
        if isinstance(verdict.get("is_correct"), bool) and isinstance(row.get("sample"), int):
            verdicts[str(row.get("problem_id")), row["sample"]] = float(verdict["is_correct"])
    return verdicts
