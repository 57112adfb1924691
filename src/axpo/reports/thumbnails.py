"""Pictures of runs for one page: thumbnails inside it, the full ones in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from axpo.images import FORMATS
from axpo.types import ImageRef

MAX_SIDE_PX = 360
MAX_FILE_BYTES = 64_000_000
"""Larger files are not opened."""

_HASH = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = ("png", "jpg", "webp", "gif", "bmp", "tiff")
_BROWSER_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}


class Thumbnails:
    """Thumbnails by content hash, each there once, `max_bytes` of them in all.

    A picture is read from the `images` folder of the run that names it and from nowhere else: only names of 64 hex
    digits are looked up, links out of the folder are not followed, and a file is shown only when its bytes have the
    hash in its name and decode as a picture. The full picture is copied to `folder` where the thumbnail is smaller.
    """

    def __init__(self, *, folder: Path | None, max_bytes: int | None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: dict[str, tuple[str, str] | None] = {}
        self._num_left_out = 0

    @property
    def entries(self) -> dict[str, tuple[str, str]]:
        """Key -> (thumbnail as a data address or empty, relative address of the full picture or empty)."""
        return {key: entry for key, entry in self._entries.items() if entry is not None}

    @property
    def num_left_out(self) -> int:
        """Pictures that exist but whose thumbnail would have been beyond the bound."""
        return self._num_left_out

    def of_run(self, run_dir: Path) -> RunPictures:
        """The pictures of one run."""
        return RunPictures(self, run_dir)

    def take(self, run_dir: Path, sha256: str) -> None:
        """Take in a picture of a run, unless it is known already."""
        key = sha256[:16]
        if self._entries.get(key) is not None or not _HASH.fullmatch(sha256):
            return
        data = _read(run_dir, sha256)
        is_full = self._max_bytes is not None and self._num_bytes >= self._max_bytes
        made = None if data is None else _reduce(data, only_look=is_full)
        if data is None or made is None:
            self._entries[key] = None
            return
        full = self._keep(data, f"{sha256}.{made.suffix}") if made.suffix and (is_full or made.lost_pixels) else ""
        self._num_left_out += is_full
        self._num_bytes += len(made.thumbnail)
        self._entries[key] = (made.thumbnail, full)

    def _keep(self, data: bytes, name: str) -> str:
        if self._folder is None:
            return ""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / name
        if not path.exists() or path.stat().st_size != len(data):
            path.write_bytes(data)
        return f"{quote(self._folder.name)}/{name}"


class RunPictures:
    """The `axpo.reports.dialogues.Pictures` of one run."""

    def __init__(self, thumbnails: Thumbnails, run_dir: Path) -> None:
        self._thumbnails = thumbnails
        self._run_dir = run_dir

    def add(self, image: ImageRef) -> Mapping[str, Any]:
        """Key, width and height of a picture; its thumbnail is in the page when it could be read."""
        self._thumbnails.take(self._run_dir, image.sha256)
        return {"p": image.sha256[:16], "w": image.width_px, "h": image.height_px}


def _read(run_dir: Path, sha256: str) -> bytes | None:
    """The bytes with that hash; None when there is no such file in the run's own folder of pictures."""
    folder = (run_dir / "images").resolve()
    for suffix in _SUFFIXES:
        path = folder / f"{sha256}.{suffix}"
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            continue
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reduced:
    thumbnail: str
    """A data address; empty when nobody asked for it."""
    suffix: str
    """Of the full picture; empty when browsers do not show its format."""
    lost_pixels: bool


def _reduce(data: bytes, *, only_look: bool) -> _Reduced | None:
    """The thumbnail of a picture, or only what it is; None for what is no picture."""
    from PIL import Image, ImageOps

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                suffix, size = _BROWSER_SUFFIXES.get(image.format or "", ""), image.size
                if only_look:
                    return _Reduced(thumbnail="", suffix=suffix, lost_pixels=True)
                image.draft("RGB", (2 * MAX_SIDE_PX, 2 * MAX_SIDE_PX))
                small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        small.save(buffer, format="JPEG", quality=72)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # the page shows its absence
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return _Reduced(
        thumbnail=f"data:image/jpeg;base64,{text}", suffix=suffix, lost_pixels=sorted(small.size) != sorted(size)
    )
