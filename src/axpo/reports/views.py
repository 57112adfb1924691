"""A transcript as a page without scripts shows it: blocks, and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_TEXT_CHARS = 4000

BlockKind = Literal["thinking", "open", "call", "result", "answer", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureView:
    """An image; `css_class` is None when it cannot be shown."""

    css_class: str | None
    aspect: float
    """Width over height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """One segment of a transcript."""

    kind: BlockKind
    text: str
    pictures: tuple[PictureView, ...] = ()
    is_failure: bool = False
