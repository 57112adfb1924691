"""Pictures of runs for one page: thumbnails inside it, the full ones in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from axpo.images import FORMATS
from axpo.types import ImageRef

MAX_SIDE_PX = 340
MAX_FILE_BYTES = 64_000_000
"""Larger files are not opened."""
MAX_COPIED_BYTES = 500_000_000
"""Of full pictures that must be copied because the page lies on another file system than the run."""

_Item = TypeVar("_Item")
_NUM_THREADS = 4
_BATCH_SIZE = 64
_HASH = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = ("png", "jpg", "webp", "gif", "bmp", "tiff")
_BROWSER_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}


class Thumbnails:
    """Pictures by content hash: asked for in the order of their worth, then made all at once.

    A picture is read from the `images` folder of a run that names it and from nowhere else: only names of 64 hex digits
    are looked up, links out of the folder are not followed, and a file is shown only when its bytes have the hash in
    its name and decode as a picture. The full picture is put into `folder` where the thumbnail shows less.
    """

    def __init__(self, *, folder: Path | None) -> None:
        self._folder = folder
        self._wanted: dict[str, list[Path]] = {}
        self._num_copied_bytes = 0

    def of_run(self, run_dir: Path) -> RunPictures:
        """The pictures of one run."""
        return RunPictures(self, run_dir)

    def want(self, run_dir: Path, sha256: str) -> None:
        """Ask for a picture of a run."""
        if _HASH.fullmatch(sha256):
            runs = self._wanted.setdefault(sha256, [])
            if run_dir not in runs:
                runs.append(run_dir)

    def make(self, *, max_bytes: int | None) -> dict[str, tuple[str, str]]:
        """Key -> (thumbnail as a data address, relative address of the full picture); either may be empty.

        Thumbnails that are beyond `max_bytes` together are left out, the last asked for first.
        """
        entries: dict[str, tuple[str, str]] = {}
        num_bytes = 0
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for batch in _batches(list(self._wanted.items())):
                is_full = max_bytes is not None and num_bytes >= max_bytes
                for sha256, found in pool.map(partial(_find, only_look=is_full), batch):
                    if found is None:
                        continue
                    is_kept = max_bytes is None or num_bytes + len(found.thumbnail) <= max_bytes
                    thumbnail = found.thumbnail if is_kept else ""
                    num_bytes += len(thumbnail)
                    shows_less = found.lost_pixels or not thumbnail
                    full = self._keep(found, sha256) if shows_less and found.suffix else ""
                    entries[sha256[:16]] = (thumbnail, full)
        return entries

    def _keep(self, found: _Found, sha256: str) -> str:
        """Put the full picture into the folder: as a second name of the same file where the file system can."""
        if self._folder is None:
            return ""
        path = self._folder / f"{sha256}.{found.suffix}"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(found.path, path)
            except OSError:
                if self._num_copied_bytes > MAX_COPIED_BYTES:
                    return ""
                self._num_copied_bytes += shutil.copyfile(found.path, path).stat().st_size
        return f"{quote(self._folder.name)}/{path.name}"


def _batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]


class RunPictures:
    """The `axpo.reports.rollout_views.Pictures` of one run."""

    def __init__(self, thumbnails: Thumbnails, run_dir: Path) -> None:
        self._thumbnails = thumbnails
        self._run_dir = run_dir

    def add(self, image: ImageRef) -> Mapping[str, Any]:
        """Key, width and height of a picture; the page finds it by the key when it could be read."""
        self._thumbnails.want(self._run_dir, image.sha256)
        return {"p": image.sha256[:16], "w": image.width_px, "h": image.height_px}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    path: Path
    thumbnail: str
    """A data address; empty when nobody asked for it."""
    suffix: str
    """Of the full picture; empty when browsers do not show its format."""
    lost_pixels: bool


def _find(wanted: tuple[str, Sequence[Path]], *, only_look: bool) -> tuple[str, _Found | None]:
    """The first file with that hash that is a picture, in the runs that name it."""
    sha256, run_dirs = wanted
    paths = (path for run_dir in run_dirs for path in _candidates(run_dir, sha256))
    found = (_reduce(path, sha256, only_look=only_look) for path in paths)
    return sha256, next((one for one in found if one is not None), None)


def _candidates(run_dir: Path, sha256: str) -> Iterator[Path]:
    folder = (run_dir / "images").resolve()
    for suffix in _SUFFIXES:
        path = folder / f"{sha256}.{suffix}"
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_FILE_BYTES:
            yield path


def _reduce(path: Path, sha256: str, *, only_look: bool) -> _Found | None:
    """The thumbnail of a picture, or only what it is; None for other bytes than its name says and for no picture."""
    from PIL import Image, ImageOps

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                suffix, size = _BROWSER_SUFFIXES.get(image.format or "", ""), image.size
                if only_look:
                    return _Found(path=path, thumbnail="", suffix=suffix, lost_pixels=True)
                image.draft("RGB", (MAX_SIDE_PX, MAX_SIDE_PX))
                small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        small.save(buffer, format="WEBP", quality=62, method=2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # the page shows its absence
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    lost_pixels = sorted(small.size) != sorted(size)
    return _Found(path=path, thumbnail=f"data:image/webp;base64,{text}", suffix=suffix, lost_pixels=lost_pixels)
