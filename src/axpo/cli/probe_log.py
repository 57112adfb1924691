"""The rollouts of a probe that is under way: a probe that was stopped samples only what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from axpo.cli.folders import has_files
from axpo.cli.overrides import load_config
from axpo.codec import from_json, to_json
from axpo.diagnostics.recorder import read_lines
from axpo.errors import ConfigError, DataError, RecordError
from axpo.files import append_line
from axpo.images import ContentImageStore
from axpo.trainer.config import Config
from axpo.types import Rollout


def check_probe_folder(folder: Path, config: Config) -> None:
    """Refuse a folder that holds anything but an unfinished probe of `config`. Raises `ConfigError`."""
    if not has_files(folder):
        return
    if not (folder / "sampled.jsonl").is_file() or (folder / "probe.json").exists():
        raise ConfigError(f"{folder} is not empty. Choose another folder with --out.")
    if load_config(folder / "config.toml") != config:
        raise ConfigError(
            f"{folder}: holds an unfinished probe with other options. Repeat them, or choose another folder with --out."
        )


class ProbeLog:
    """`sampled.jsonl` of a probe's folder: one rollout per line, images next to it. Removed when the probe is done."""

    def __init__(self, folder: Path, *, store: ContentImageStore) -> None:
        """Read what an earlier start sampled. Raises `DataError` on a broken line before the last."""
        self._path = folder / "sampled.jsonl"
        self._store = store
        self._known: dict[str, Rollout] = {}
        if not self._path.is_file():
            return
        for image in (folder / "images").glob("*"):
            if image.suffix != ".partial":
                store.add_file(image)
        for number, value in read_lines(self._path):
            try:
                rollout = from_json(Rollout, value)
            except (RecordError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{self._path}:{number}: not a rollout: {error}. Remove the folder.") from error
            self._known[rollout.id] = rollout

    @property
    def known(self) -> Mapping[str, Rollout]:
        """Rollouts by id."""
        return self._known

    def add(self, rollout: Rollout) -> None:
        """Write a sampled rollout; skip one that is known."""
        if rollout.id in self._known:
            return
        shown = [block.image for result in rollout.tool_results for block in result.content]
        for image in (*rollout.images, *(image for image in shown if image is not None)):
            self._store.persist(image)
        append_line(self._path, json.dumps(to_json(rollout), ensure_ascii=False))
        self._known[rollout.id] = rollout

    def remove(self) -> None:
        """Delete the file: the finished probe has recorded its rollouts."""
        self._path.unlink(missing_ok=True)
