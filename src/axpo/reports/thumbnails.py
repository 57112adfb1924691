"""Pictures of runs for one page: thumbnails inside it, the full ones in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from axpo.images import FORMATS, to_rgb
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
    its name and decode as a picture. The full picture is put into `folder` where the thumbnail shows less, or stays
    where it is when somebody serves it under `address`. `made`: thumbnails of an earlier page, taken over and kept up.
    """

    def __init__(self, *, folder: Path | None, address: str = "", made: dict[str, Found] | None = None) -> None:
        self._folder = folder
        self._address = address
        self._made = made
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
        before = dict(self._made or {})
        made: dict[str, Found] = {}
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for batch in _batches(list(self._wanted.items())):
                is_full = max_bytes is not None and num_bytes >= max_bytes
                for sha256, found in pool.map(partial(_find, made=before, only_look=is_full), batch):
                    if found is None:
                        continue
                    made[sha256] = found
                    is_kept = max_bytes is None or num_bytes + len(found.thumbnail) <= max_bytes
                    thumbnail = found.thumbnail if is_kept else ""
                    num_bytes += len(thumbnail)
                    shows_less = found.lost_pixels or not thumbnail
                    full = self._keep(found, sha256) if shows_less and found.suffix else ""
                    entries[sha256[:16]] = (thumbnail, full)
        if self._made is not None:
            self._made.clear()
            self._made.update(made)
        return entries

    def _keep(self, found: Found, sha256: str) -> str:
        """Put the full picture into the folder: as a second name of the same file where the file system can."""
        if self._address:
            return f"{self._address}/{sha256}.{found.suffix}"
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
class Found:
    """A picture of a run."""

    path: Path
    thumbnail: str
    """A data address; empty when nobody asked for it."""
    suffix: str
    """Of the full picture; empty when browsers do not show its format."""
    lost_pixels: bool


def _find(
    wanted: tuple[str, Sequence[Path]], *, made: Mapping[str, Found], only_look: bool
) -> tuple[str, Found | None]:
    """The first file with that hash that is a picture, in the runs that name it."""
    sha256, run_dirs = wanted
    if sha256 in made and (only_look or made[sha256].thumbnail):
        return sha256, made[sha256]
    paths = (path for run_dir in run_dirs for path in _candidates(run_dir, sha256))
    found = (_reduce(path, sha256, only_look=only_look) for path in paths)
    return sha256, next((one for one in found if one is not None), None)


def _candidates(run_dir: Path, sha256: str) -> Iterator[Path]:
    folder = (run_dir / "images").resolve()
    for suffix in _SUFFIXES:
        path = folder / f"{sha256}.{suffix}"
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_FILE_BYTES:
            yield path


def read_picture(run_dirs: Sequence[Path], sha256: str) -> tuple[bytes, str] | None:
    """The bytes of a picture of these runs and its media type; None when they have none that a browser shows.

    Under the same conditions as a thumbnail; a link or a pipe that takes the file's place meanwhile is not opened.
    """
    from PIL import Image

    if not _HASH.fullmatch(sha256):
        return None
    for path in (path for run_dir in run_dirs for path in _candidates(run_dir, sha256)):
        data = _read_file(path)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            continue
        try:
            with Image.open(io.BytesIO(data), formats=tuple(_BROWSER_SUFFIXES)) as image:
                return data, Image.MIME[image.format or ""]
        except (OSError, ValueError, SyntaxError, KeyError, Warning, Image.DecompressionBombError):
            continue
    return None


def _read_file(path: Path) -> bytes | None:
    """Of a plain file of bearable size; None for anything else."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                return None
            return file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None


def read_thumbnail(run_dir: Path, sha256: str, *, max_side_px: int) -> str | None:
    """An image of a run as a data URL, under the conditions of `Thumbnails`; None when it cannot be shown."""
    if not _HASH.fullmatch(sha256):
        return None
    found = (_reduce(path, sha256, max_side_px=max_side_px) for path in _candidates(run_dir, sha256))
    return next((one.thumbnail for one in found if one is not None), None)


def _reduce(path: Path, sha256: str, *, only_look: bool = False, max_side_px: int = MAX_SIDE_PX) -> Found | None:
    """The thumbnail of a picture, or only what it is; None for other bytes than its name says and for no picture."""
    from PIL import Image, ImageOps

    data = _read_file(path)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        return None
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                suffix, size = _BROWSER_SUFFIXES.get(image.format or "", ""), image.size
                if only_look:
                    return Found(path=path, thumbnail="", suffix=suffix, lost_pixels=True)
                image.draft("RGB", (2 * max_side_px, 2 * max_side_px))
                small = to_rgb(ImageOps.exif_transpose(image))
        small.thumbnail((max_side_px, max_side_px))
        small.save(buffer, format="WEBP", quality=62, method=2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # the page shows its absence
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    lost_pixels = sorted(small.size) != sorted(size)
    return Found(path=path, thumbnail=f"data:image/webp;base64,{text}", suffix=suffix, lost_pixels=lost_pixels)
