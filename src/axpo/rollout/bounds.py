"""How much of a tool's result reaches the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from axpo.protocols import ImageStore
from axpo.types import Content, ImageRef

Shorten = Callable[[str, int], str]
"""Text and a number of tokens -> the text, or its beginning and end with a mark between them."""

MAX_ASPECT_RATIO = 200
"""Thinner pictures are no pictures to Qwen's image preprocessing."""
_ANNOUNCEMENT = re.compile(r"\s*img_idx \d+:\s*")


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
    content: Sequence[Content], bounds: Bounds, store: ImageStore, shorten: Shorten
) -> tuple[tuple[Content, ...], bool]:
    """The result as the model sees it, and whether something was lost."""
    kept, is_cut = _bound_images(content, bounds, store)
    num_bytes = sum(_num_bytes(block) for block in kept)
    if num_bytes <= bounds.max_tokens:  # a token is at least one byte
        return tuple(kept), is_cut
    joined = _join_texts(kept)  # so that there are no more texts than pictures and one
    shortened = [
        block
        if block.text is None
        else Content(text=shorten(block.text, max(1, bounds.max_tokens * _num_bytes(block) // num_bytes)))
        for block in joined
    ]
    return tuple(shortened), is_cut or shortened != joined


def _bound_images(content: Sequence[Content], bounds: Bounds, store: ImageStore) -> tuple[list[Content], bool]:
    """Pictures within bounds; those beyond leave without their announcement, and are counted at the end."""
    kept: list[Content] = []
    num_kept = num_left_out = 0
    is_cut = False
    for block in content:
        if block.image is None:
            kept.append(block)
            continue
        image = block.image
        is_stripe = max(image.width_px, image.height_px) > MAX_ASPECT_RATIO * min(image.width_px, image.height_px)
        if num_kept == bounds.max_images or is_stripe:
            num_left_out += 1
            if kept and kept[-1].text is not None and _ANNOUNCEMENT.fullmatch(kept[-1].text):
                kept.pop()
            continue
        num_kept += 1
        scaled = _scaled(image, bounds.max_image_px, store)
        is_cut |= scaled != image
        kept.append(Content(image=scaled))
    if num_left_out:
        kept.append(Content(text=f"[{num_left_out} pictures left out: too many, or longer than 200 times their width]"))
    return kept, is_cut or num_left_out > 0


def _join_texts(content: Sequence[Content]) -> list[Content]:
    joined: list[Content] = []
    for block in content:
        if joined and block.text is not None and (before := joined[-1].text) is not None:
            joined[-1] = Content(text=before + block.text)
        else:
            joined.append(block)
    return joined


def _num_bytes(block: Content) -> int:
    return 0 if block.text is None else len(block.text.encode(errors="replace"))


def _scaled(image: ImageRef, max_px: int, store: ImageStore) -> ImageRef:
    num_px = image.width_px * image.height_px
    if num_px <= max_px:
        return image
    scale = (max_px / num_px) ** 0.5
    size = [max(1, int(side * scale)) for side in (image.width_px, image.height_px)]
    least = -(-max(size) // MAX_ASPECT_RATIO)
    return store.add_image(store.load(image).resize((max(size[0], least), max(size[1], least))))
