"""Pictures as data URLs that chat services take, each made once."""

from __future__ import annotations

import base64
import io
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from axpo.errors import EngineFault
from axpo.protocols import ImageStore
from axpo.threads import run_in_daemon_thread
from axpo.types import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

MIME_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""Sent as they are stored. Everything else becomes PNG: an animation is its first frame."""
JPEG_QUALITY = 95
_EXIF_ORIENTATION = 0x0112


class DataUrls:
    """Data URLs of a store's pictures; those used last are kept, `max_bytes` in all.

    A picture of more than `max_px` pixels is scaled down. One that a camera held sideways is turned upright first: not
    every service looks at its orientation.
    """

    def __init__(self, store: ImageStore, *, max_px: int | None, max_bytes: int) -> None:
        self._store = store
        self._max_px = max_px
        self._max_bytes = max_bytes
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._num_bytes = 0

    def sent_px(self, image: ImageRef) -> int:
        """Pixels of the picture as it is sent."""
        width_px, height_px = self._sent_size(image)
        return width_px * height_px

    async def get(self, image: ImageRef) -> str:
        """Its data URL. Raises `EngineFault` when the picture cannot be read."""
        if (url := self._urls.get(image.sha256)) is not None:
            self._urls.move_to_end(image.sha256)
            return url
        try:
            url = await run_in_daemon_thread(self._encode, image)
        except (OSError, KeyError, ValueError) as error:
            raise EngineFault(f"picture {image.sha256[:12]} cannot be sent: {type(error).__name__}: {error}") from error
        if image.sha256 not in self._urls:
            self._urls[image.sha256] = url
            self._num_bytes += len(url)
        while self._num_bytes > self._max_bytes and len(self._urls) > 1:
            self._num_bytes -= len(self._urls.popitem(last=False)[1])
        return url

    def _sent_size(self, image: ImageRef) -> tuple[int, int]:
        num_px = image.width_px * image.height_px
        if self._max_px is None or num_px <= self._max_px:
            return image.width_px, image.height_px
        scale = math.sqrt(self._max_px / num_px)
        return max(1, int(image.width_px * scale)), max(1, int(image.height_px * scale))

    def _encode(self, image: ImageRef) -> str:
        data, suffix = self._store.encoded(image)
        size = self._sent_size(image)
        if size != (image.width_px, image.height_px) or suffix not in MIME_TYPES or _is_turned(data):
            picture = self._store.load(image)
            if size != picture.size:
                picture = picture.resize(size)
            data, suffix = _save(picture, is_photo=suffix == "jpg")
        return f"data:{MIME_TYPES[suffix]};base64,{base64.b64encode(data).decode('ascii')}"


def _is_turned(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return picture.getexif().get(_EXIF_ORIENTATION, 1) != 1


def _save(picture: Image, *, is_photo: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if is_photo:
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(buffer, format="PNG")
    return buffer.getvalue(), "jpg" if is_photo else "png"
