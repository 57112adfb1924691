"""Where the published files of a benchmark lie in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from axpo.errors import DataError

_NUM_NAMES_SHOWN = 12


def find_files(folder: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Files of the first pattern (`Path.glob`) that any file matches, sorted; empty when none does."""
    for pattern in patterns:
        files = tuple(sorted(path for path in folder.glob(pattern) if path.is_file()))
        if files:
            return files
    return ()


def split_patterns(split: str, *, config: str = "*") -> tuple[str, ...]:
    """Where the hub and `datasets.save_to_disk` put a split: Parquet shards, or a folder of Arrow shards."""
    return (
        f"{split}.parquet",
        f"{split}-*.parquet",
        f"data/{split}.parquet",
        f"data/{split}-*.parquet",
        f"{config}/{split}-*.parquet",
        f"{config}/{split}/*.parquet",
        f"{split}/*.parquet",
        f"{split}/data-*.arrow",
        f"{config}/{split}/data-*.arrow",
    )


BARE_ARROW = "data-*.arrow"
"""A single split written by `datasets.save_to_disk`; `state.json` beside it says which."""


def find_bare_arrow(folder: Path, split: str) -> tuple[Path, ...]:
    """The Arrow shards of a folder that `datasets.save_to_disk` wrote for this split alone; empty when it did not."""
    try:
        state: object = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    is_split = isinstance(state, dict) and cast("dict[str, object]", state).get("_split") == split
    return find_files(folder, (BARE_ARROW,)) if is_split else ()


def missing_files(folder: Path, what: str, patterns: Sequence[str]) -> DataError:
    """The error that says what was looked for, and what lies there instead."""
    found = _names(folder) if folder.is_dir() else "no such folder"
    return DataError(
        f"{folder}: no {what}. Looked for {', '.join(patterns)}; found {found}. "
        "Put the published files there, or give the data set's hub id."
    )


def _names(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    rest = f" and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else ""
    return ", ".join(names[:_NUM_NAMES_SHOWN]) + rest
