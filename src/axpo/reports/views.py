"""A dialogue as a page without scripts shows it: blocks, and pictures with boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_TEXT_CHARS = 4000

BlockKind = Literal["thinking", "open", "call", "result", "answer", "text"]
Outcome = Literal["right", "wrong", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxView:
    """A box on a picture, in percent of its sides."""

    left: float
    top: float
    width: float
    height: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureView:
    """A picture with boxes; `css_class` is None when it cannot be shown."""

    css_class: str | None
    aspect: float
    boxes: tuple[BoxView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """One segment of a dialogue."""

    kind: BlockKind
    text: str
    pictures: tuple[PictureView, ...] = ()
    advantage: float | None = None
    """None: these tokens do not learn in this row."""
    is_frozen: bool = False
    is_failure: bool = False
