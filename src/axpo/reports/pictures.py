"""Pictures of a run as thumbnails that the page embeds once each, whoever shows them."""

from __future__ import annotations

import base64
import io
import re
import warnings
from pathlib import Path

from axpo.images import to_rgb

MAX_SIDE_PX = 480
MAX_PICTURES = 150
"""Later pictures are left out: the page stays below a few megabytes."""

_HASH = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = ("png", "jpg", "webp", "gif", "bmp", "tiff")


class PictureBook:
    """Thumbnails by content hash. The page gives each one CSS class, so a picture shown twenty times is there once."""

    def __init__(self) -> None:
        self._data: dict[str, str | None] = {}

    @property
    def entries(self) -> dict[str, str]:
        """CSS class -> base64 of a JPEG."""
        return {css_class(sha256): data for sha256, data in self._data.items() if data is not None}

    def add(self, run_dir: Path, sha256: str) -> bool:
        """Take in a picture of a run; False when it cannot be shown."""
        if sha256 not in self._data:
            num_shown = sum(data is not None for data in self._data.values())
            self._data[sha256] = _thumbnail(run_dir, sha256) if num_shown < MAX_PICTURES else None
        return self._data[sha256] is not None


def css_class(sha256: str) -> str:
    """Of a picture."""
    return f"p-{sha256[:16]}"


def _thumbnail(run_dir: Path, sha256: str) -> str | None:
    """Only names of 64 hex digits are ever looked up, so that no record can point outside of the run."""
    if not _HASH.fullmatch(sha256):
        return None
    paths = (run_dir / "images" / f"{sha256}.{suffix}" for suffix in _SUFFIXES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.draft("RGB", (2 * MAX_SIDE_PX, 2 * MAX_SIDE_PX))
                small = to_rgb(image)
        small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        small.save(buffer, format="JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # a file that is no picture: the page shows its absence
    return base64.b64encode(buffer.getvalue()).decode("ascii")
