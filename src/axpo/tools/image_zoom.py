"""`image_zoom_in`: cut a box out of a picture of the dialogue and magnify it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from axpo.errors import ConfigError, ToolError
from axpo.protocols import ToolContext
from axpo.types import Content, FailureKind, ImageRef, JsonValue, ToolCall, ToolSpec

COORDINATE_MAX = 1000
"""Boxes are given in thousandths of the picture's width and height."""
MIN_BOX_PX = 32
"""A smaller side is enlarged around its centre."""
MAX_ASPECT_RATIO = 200
"""Thinner boxes are refused: Qwen's image preprocessing takes nothing beyond it."""

_SPEC = ToolSpec(
    name="image_zoom_in",
    description="Crop a region of an image and magnify it. The crop becomes a new image that later calls can use.",
    parameters={
        "type": "object",
        "properties": {
            "bbox_2d": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 4,
                "maxItems": 4,
                "description": "The box [x1, y1, x2, y2], top-left and bottom-right corner, from 0 to 1000 relative to "
                "the image's width and height.",
            },
            "label": {"type": "string", "description": "What to look for in the box."},
            "img_idx": {"type": "number", "default": 0, "description": "Index of the image, from 0."},
        },
        "required": ["bbox_2d", "label"],
    },
)


class ImageZoomTool:
    """The zoom tool of the paper (section on tools), in thousandths of the picture.

    The crop's sides are multiples of `factor` px and its area lies within `min_pixels..max_pixels` (where no such size
    exists, below). `min_pixels == max_pixels == 9216` makes every roughly square box a crop of 96x96 px. Every mistake
    of the model is answered with a `ToolError` that says what to write instead.
    """

    spec = _SPEC

    def __init__(self, *, min_pixels: int = 256 * 32 * 32, max_pixels: int = 1280 * 32 * 32, factor: int = 32) -> None:
        if not 0 < factor * factor <= min_pixels <= max_pixels:
            raise ConfigError(
                f"image_zoom_in: need factor² <= min_pixels <= max_pixels, got factor={factor}, "
                f"min_pixels={min_pixels}, max_pixels={max_pixels}. Correct the three numbers."
            )
        self._min_pixels = min_pixels
        self._max_pixels = max_pixels
        self._factor = factor

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """The index of the new picture and the crop itself. Raises `ToolError` on bad arguments."""
        box, index = _parse_arguments(call.arguments, num_images=len(context.images))
        source = context.images[index]
        box_px = pixel_box(box, width_px=source.width_px, height_px=source.height_px)
        # In the event loop, not in a thread: a millisecond, and which requests an engine batches stays reproducible.
        crop = self._crop(source, box_px, context)
        return (Content(text=f"img_idx {len(context.images)}:"), Content(image=crop))

    def _crop(self, source: ImageRef, box_px: tuple[int, int, int, int], context: ToolContext) -> ImageRef:
        from PIL.Image import Resampling

        left, top, right, bottom = box_px
        size = crop_size(
            right - left,
            bottom - top,
            min_pixels=self._min_pixels,
            max_pixels=self._max_pixels,
            factor=self._factor,
        )
        crop = context.store.load(source).crop(box_px).resize(size, Resampling.BICUBIC)
        return context.store.add_image(crop)


def pixel_box(box: Sequence[float], *, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in whole pixels: covering the given one, at least 32 px a side where the
    picture is that large, and inside the picture. Raises `ToolError` when it is a mere stripe.
    """
    x1, y1, x2, y2 = box
    left, right = _pixel_range(x1, x2, size_px=width_px)
    top, bottom = _pixel_range(y1, y2, size_px=height_px)
    short_px, long_px = sorted((right - left, bottom - top))
    if long_px > MAX_ASPECT_RATIO * short_px:
        raise _bad_arguments(
            f"the box is {right - left}x{bottom - top} px, longer than {MAX_ASPECT_RATIO} times its width. "
            "Choose a box nearer to a square."
        )
    return left, top, right, bottom


def _pixel_range(low: float, high: float, *, size_px: int) -> tuple[int, int]:
    start, stop = math.floor(low * size_px / COORDINATE_MAX), math.ceil(high * size_px / COORDINATE_MAX)
    wanted_px = min(MIN_BOX_PX, size_px)
    if stop - start < wanted_px:
        start = math.floor((start + stop - wanted_px) / 2)
        start = min(max(start, 0), size_px - wanted_px)
        stop = start + wanted_px
    return start, stop


def crop_size(width_px: int, height_px: int, *, min_pixels: int, max_pixels: int, factor: int) -> tuple[int, int]:
    """Width and height, multiples of `factor`, nearest to the box's shape with an area within the bounds.

    Inside the bounds each side is rounded to the nearest multiple, as Qwen's `smart_resize` does. At the bounds its
    rounding of one side at a time leaves them or distorts the box, so the four neighbouring sizes are compared. Where
    none of them is within the bounds, `max_pixels` is kept.
    """
    area = width_px * height_px
    scale = math.sqrt(min(max(area, min_pixels), max_pixels) / area)
    wanted = [max(side_px * scale, factor) for side_px in (width_px, height_px)]
    # a short side held at `factor` costs the long one
    longer = wanted.index(max(wanted))
    wanted[longer] = min(wanted[longer], max_pixels / min(wanted))

    def badness(size: tuple[int, int]) -> tuple[int, float]:
        num_pixels = size[0] * size[1]
        violation = 2 if num_pixels > max_pixels else 1 if num_pixels < min_pixels else 0
        return violation, abs(size[0] - wanted[0]) + abs(size[1] - wanted[1])

    widths, heights = ([round_(side / factor) * factor for round_ in (math.floor, math.ceil)] for side in wanted)
    return min(itertools.product(widths, heights), key=badness)


# -- arguments --------------------------------------------------------------------------------------------------------


def _parse_arguments(arguments: Mapping[str, JsonValue], *, num_images: int) -> tuple[tuple[float, ...], int]:
    known = _SPEC.parameters["properties"]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise _bad_arguments(f"there is no argument {_show(unknown[0])}; the arguments are {', '.join(known)}.")
    for name in _SPEC.parameters["required"]:
        if name not in arguments:
            raise _bad_arguments(f"the argument {name} is missing.")
    if not isinstance(arguments["label"], str):
        raise _bad_arguments(f"label must be a string, got {_show(arguments['label'])}.")
    return _parse_box(arguments["bbox_2d"]), _parse_index(arguments.get("img_idx", 0), num_images=num_images)


def _parse_box(value: JsonValue) -> tuple[float, ...]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if len(items) != 4 or not all(_is_number(item) for item in items):
        raise _bad_arguments(f"bbox_2d must be four numbers [x1, y1, x2, y2] from 0 to 1000, got {_show(value)}.")
    x1, y1, x2, y2 = (min(max(item, 0), COORDINATE_MAX) for item in items)
    if x2 <= x1 or y2 <= y1:
        raise _bad_arguments(
            f"bbox_2d is empty: within the image it is [{x1:g}, {y1:g}, {x2:g}, {y2:g}]. It needs x1 < x2 and y1 < y2, "
            "from the top-left to the bottom-right corner."
        )
    return x1, y1, x2, y2


def _parse_index(value: JsonValue, *, num_images: int) -> int:
    if num_images == 0:
        raise _bad_arguments("this dialogue has no image to zoom into.")
    if not _is_number(value) or value != int(value) or not 0 <= value < num_images:
        existing = "0" if num_images == 1 else f"0 to {num_images - 1}"
        raise _bad_arguments(f"img_idx {_show(value)} does not exist; the images are {existing}.")
    return int(value)


def _is_number(value: object) -> bool:
    """A finite JSON number; `true` and `false` are none."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _show(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number beyond all bounds"
    return text if len(text) <= 60 else text[:57] + "..."


def _bad_arguments(message: str) -> ToolError:
    return ToolError(FailureKind.BAD_ARGUMENTS, f"image_zoom_in: {message}")
