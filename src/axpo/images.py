"""Images by content: every picture is stored once, whoever refers to it."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.errors import DataError
from axpo.files import writing
from axpo.types import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_PX = 178_956_970
"""Pictures above this many pixels are refused before they are decoded (Pillow's own decompression-bomb bound)."""
_EXIF_ORIENTATION = 0x0112
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows more, EPS among them, for which it starts another program."""


class ContentImageStore:
    """An `axpo.protocols.ImageStore` keyed by the SHA-256 of the encoded bytes.

    Bytes stay in memory until `persist` writes them to `folder`, once, as `<sha256>.<png|jpg|...>`, and reads them from
    there again: a long run makes more crops than memory holds, and its records can be read without its data set.
    The pictures used last stay decoded, `max_decoded_px` pixels (of three bytes) in all.
    """

    def __init__(self, folder: Path | None = None, *, max_decoded_px: int = 2**26) -> None:
        self._folder = folder
        self._refs: dict[str, ImageRef] = {}
        """Every image that was added."""
        self._bytes: dict[str, bytes] = {}
        self._formats: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        """Of the pictures that were persisted."""
        self._lock = threading.Lock()
        self._decoded: OrderedDict[str, Image] = OrderedDict()
        self._num_decoded_px = 0
        self._max_decoded_px = max_decoded_px

    def add_bytes(self, data: bytes, *, origin: str = "image") -> ImageRef:
        """Store an encoded image. Raises `DataError` naming `origin` unless every pixel of it can be decoded.

        A broken image would otherwise end a run at the step that first draws its question. New bytes take about 10 ms a
        megapixel, bytes that are stored already none.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._refs:
            (width_px, height_px), image_format = _check(data, origin)
            self._keep(data, ImageRef(sha256=sha256, width_px=width_px, height_px=height_px), image_format)
        return self._refs[sha256]

    def add_file(self, path: Path, *, origin: str | None = None) -> ImageRef:
        """Store a picture file."""
        name = origin or str(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot read image {path}: {error.strerror}. Check the path.") from error
        return self.add_bytes(data, origin=name)

    def add_image(self, image: Image) -> ImageRef:
        """Store an image made in memory, as PNG."""
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, format="PNG", compress_level=1)
        data = buffer.getvalue()
        ref = ImageRef(sha256=hashlib.sha256(data).hexdigest(), width_px=image.width, height_px=image.height)
        self._keep(data, ref, "png")
        return ref

    def load(self, ref: ImageRef) -> Image:
        """The decoded RGB picture. Treat it as read-only: it is shared."""
        with self._lock:
            if ref.sha256 in self._decoded:
                self._decoded.move_to_end(ref.sha256)
                return self._decoded[ref.sha256]
        image = _decode(self._read(ref.sha256))
        with self._lock:
            if ref.sha256 not in self._decoded:
                self._decoded[ref.sha256] = image
                self._num_decoded_px += image.width * image.height
            while self._num_decoded_px > self._max_decoded_px and len(self._decoded) > 1:
                _, oldest = self._decoded.popitem(last=False)
                self._num_decoded_px -= oldest.width * oldest.height
        return image

    def encoded(self, ref: ImageRef) -> tuple[bytes, str]:
        """The stored bytes and their file suffix (`png`, `jpg`, ...)."""
        return self._read(ref.sha256), self._formats[ref.sha256]

    def persist(self, ref: ImageRef) -> None:
        """Write the picture into the store's folder unless it lies there already, and let go of its bytes."""
        if self._folder is None or ref.sha256 in self._paths:
            return
        data, suffix = self.encoded(ref)
        path = self._folder / f"{ref.sha256}.{suffix}"
        if not path.exists():
            with writing(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}.partial")
                partial.write_bytes(data)
                partial.replace(path)
        self._paths[ref.sha256] = path  # before the bytes go: a thread of a tool may be reading
        self._bytes.pop(ref.sha256, None)

    def _keep(self, data: bytes, ref: ImageRef, image_format: str) -> None:
        if ref.sha256 not in self._refs:
            self._bytes[ref.sha256], self._formats[ref.sha256] = data, image_format
            self._refs[ref.sha256] = ref  # last: a thread of a tool may be looking

    def _read(self, sha256: str) -> bytes:
        data = self._bytes.get(sha256)
        return self._paths[sha256].read_bytes() if data is None else data


def to_rgb(image: Image) -> Image:
    """In RGB, transparency left out."""
    # Pillow warns of a palette with transparent colours unless it goes through RGBA; the colours are the same
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _decode(data: bytes) -> Image:
    """The image in RGB, turned upright."""
    from PIL import Image as PilImage
    from PIL import ImageOps

    with PilImage.open(io.BytesIO(data), formats=FORMATS) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def _check(data: bytes, origin: str) -> tuple[tuple[int, int], str]:
    """Size of the upright image, and the suffix of its format. Raises `DataError` when it cannot be decoded."""
    from PIL import Image as PilImage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of much that it then decodes
            with PilImage.open(io.BytesIO(data), formats=FORMATS) as image:
                width_px, height_px = image.size
                image_format = (image.format or "png").lower()
                if width_px * height_px <= MAX_IMAGE_PX:
                    image.load()
                    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                        width_px, height_px = _decode(data).size
    except Exception as error:  # decoders raise anything
        raise DataError(
            f"{origin}: not a readable image ({len(data)} bytes): {error}. Copy or save it again, as PNG, JPEG or WebP."
        ) from error
    if width_px * height_px > MAX_IMAGE_PX:
        raise DataError(f"{origin}: image of {width_px}x{height_px} px is above the limit of {MAX_IMAGE_PX} pixels.")
    if _is_cut_off(data, image_format):
        raise DataError(f"{origin}: the image ends too early ({len(data)} bytes). Copy or save it again.")
    return (width_px, height_px), {"jpeg": "jpg"}.get(image_format, image_format)


def _is_cut_off(data: bytes, image_format: str) -> bool:
    """True when the end marker is missing, which Pillow forgives where all pixels are there, and other decoders do not.

    Bytes after the marker are legal.
    """
    if image_format == "png":
        return b"IEND" not in data
    if image_format == "jpeg":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")  # end of image, start of scan
    return False
