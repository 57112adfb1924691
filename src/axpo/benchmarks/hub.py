"""Where the data of a benchmark comes from: a folder, or a data set of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from axpo.errors import ConfigError

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "mathvision": ("*.parquet", "data/*.jsonl", "*.jsonl", "images/*"),
    "dynamath": ("*sample_variant*.parquet", "*dataset.json", "*image/*"),
    "mathvr": ("*test*.parquet",),
    "vstar": ("test_questions.jsonl", "direct_attributes/*.jpg", "relative_position/*.jpg", "*.parquet", "*.tsv"),
    "visualprobe": ("*val.json", "*data/*"),
    "hrbench_4k": ("*hr_bench_4k.parquet", "*hrbench_4k*.parquet"),
    "hrbench_8k": ("*hr_bench_8k.parquet", "*hrbench_8k*.parquet"),
    "hrmmsearch": ("*train*.parquet", "data.jsonl"),
    "mmsearch": ("*end2end*.parquet",),
}
"""The files of each benchmark's data set that its loader reads: twins in other containers take gigabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A folder with published files, and for the record where they come from."""

    folder: Path
    hub_id: str | None = None
    commit: str | None = None
    """Of the hub's repository: the exact state that was fetched."""


def resolve(source: str | Path, benchmark: str) -> Location:
    """The folder of `source`: a path, or a hub id `owner/name` or `owner/name@revision`, which is fetched.

    `benchmark` chooses the files that are fetched. Raises `ConfigError` saying how to put files by hand.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Location(folder=path)
    match = _HUB_ID.fullmatch(str(source))
    if path.exists() or match is None:
        raise ConfigError(
            f"data of {benchmark}: expected a folder, or a hub id owner/name or owner/name@revision; got {source}."
        )
    return _fetch(match[1], match[2], benchmark)


def _fetch(hub_id: str, revision: str | None, benchmark: str) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            hub_id, repo_type="dataset", revision=revision, allow_patterns=list(PATTERNS[benchmark])
        )
    except (OSError, HFValidationError) as error:  # of the hub, of the network, of the disk
        name = hub_id if revision is None else f"{hub_id}@{revision}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"data of {benchmark}: there is no folder {name}, and the hub's data set {name} cannot be fetched "
            f"({reason}). Download it where there is a network (hf download --repo-type dataset {hub_id} "
            f"--local-dir {benchmark}), and give that folder."
        ) from error
    return Location(folder=Path(folder), hub_id=hub_id, commit=Path(folder).name)
