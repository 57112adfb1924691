"""How much of a tool's result reaches the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from axpo.protocols import ImageStore
from axpo.types import Content, ImageRef

Shorten = Callable[[str, int], str]
"""Text and a number of tokens -> the text, or its beginning and end with a mark between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Per result."""

    max_tokens: int = 4096
    """Of all text together; what is longer loses its middle."""
    max_images: int = 8
    max_image_px: int = 4096 * 32 * 32
    """Larger pictures are scaled down."""


def cut_mark(num: int, unit: str) -> str:
    """What stands where something was cut."""
    return f"\n[... {num} {unit} cut ...]\n"


def shorten_by_bytes(text: str, max_tokens: int) -> str:
    """Three bytes of UTF-8 to a token: for use without a tokenizer."""
    data = text.encode(errors="replace")
    max_bytes = 3 * max_tokens
    if len(data) <= max_bytes:
        return text
    head = data[: max_bytes // 2].decode(errors="ignore")
    tail = data[len(data) - max_bytes // 2 :].decode(errors="ignore")
    return head + cut_mark(len(data) - 2 * (max_bytes // 2), "bytes") + tail


def bound_content(
    content: tuple[Content, ...], bounds: Bounds, store: ImageStore, shorten: Shorten
) -> tuple[tuple[Content, ...], bool]:
    """The result as the model sees it, and whether something was lost.

    Text is shortened block by block, each to its share of `max_tokens` by length.
    """
    num_bytes = sum(len(block.text.encode(errors="replace")) for block in content if block.text is not None)
    kept: list[Content] = []
    num_images, is_cut = 0, False
    for block in content:
        if block.image is not None:
            num_images += 1
            if num_images <= bounds.max_images:
                image = _scaled(block.image, bounds.max_image_px, store)
                kept.append(Content(image=image))
                is_cut |= image != block.image
        elif block.text is not None:
            text = block.text
            if num_bytes > bounds.max_tokens:  # a token is at least one byte
                share = len(text.encode(errors="replace")) / num_bytes
                text = shorten(text, max(1, int(bounds.max_tokens * share)))
            is_cut |= text != block.text
            kept.append(Content(text=text))
    if num_images > bounds.max_images:
        kept.append(Content(text=f"[{num_images - bounds.max_images} more images left out]"))
        is_cut = True
    return tuple(kept), is_cut


def _scaled(image: ImageRef, max_px: int, store: ImageStore) -> ImageRef:
    num_px = image.width_px * image.height_px
    if num_px <= max_px:
        return image
    scale = (max_px / num_px) ** 0.5
    size = (max(1, int(image.width_px * scale)), max(1, int(image.height_px * scale)))
    return store.add_image(store.load(image).resize(size))
