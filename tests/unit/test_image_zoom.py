"""The zoom tool: which pixels a box means, how large the crop gets, what a bad box is answered with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from axpo.cli.tools import build_tools
from axpo.errors import ConfigError, ToolError
from axpo.images import ContentImageStore
from axpo.protocols import Tool, ToolContext
from axpo.tools.fakes import EchoTool, FailingTool
from axpo.tools.image_zoom import ImageZoomTool, crop_size, pixel_box
from axpo.types import Content, FailureKind, ToolCall


def context(*sizes: tuple[int, int]) -> ToolContext:
    """A dialogue with black pictures, the right half of each white."""
    store = ContentImageStore()
    refs = []
    for width, height in sizes:
        picture = Image.new("RGB", (width, height))
        picture.paste((255, 255, 255), (width // 2, 0, width, height))
        refs.append(store.add_image(picture))
    return ToolContext(rollout_id="r", images=refs, store=store)


def zoom(tool: Tool, arguments: dict[str, Any], where: ToolContext) -> tuple[Content, ...]:
    return asyncio.run(tool.run(ToolCall(id="c", name="image_zoom_in", arguments=arguments), where))


SMALL = ImageZoomTool(min_pixels=9216, max_pixels=9216)


def test_the_schema_is_the_published_one() -> None:
    spec = ImageZoomTool().spec
    properties = spec.parameters["properties"]
    assert spec.name == "image_zoom_in"
    assert {name: {k: v for k, v in schema.items() if k != "description"} for name, schema in properties.items()} == {
        "bbox_2d": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
        "label": {"type": "string"},
        "img_idx": {"type": "number", "default": 0},
    }
    assert spec.parameters["required"] == ["bbox_2d", "label"]
    assert isinstance(build_tools(["image_zoom_in"], {})["image_zoom_in"], Tool)


def test_the_crop_is_the_box_magnified_and_its_index_is_told() -> None:
    where = context((400, 400), (200, 100))
    text, crop = zoom(SMALL, {"bbox_2d": [500, 0, 1000, 500], "label": "white"}, where)
    assert text.text == "img_idx 2:"
    assert crop.image is not None and (crop.image.width_px, crop.image.height_px) == (96, 96)
    assert where.store.load(crop.image).getextrema() == ((255, 255),) * 3  # only the white half
    assert len(where.images) == 2  # the loop appends, not the tool


def test_img_idx_chooses_the_picture_and_a_crop_can_be_zoomed_again() -> None:
    where = context((400, 400), (64, 64))
    _, crop = zoom(SMALL, {"bbox_2d": [250, 0, 750, 500], "label": "edge", "img_idx": 0}, where)
    assert crop.image is not None
    where.images.append(crop.image)
    text, half = zoom(SMALL, {"bbox_2d": [0, 0, 400, 400], "label": "black", "img_idx": 2.0}, where)
    assert text.text == "img_idx 3:"
    assert half.image is not None and where.store.load(half.image).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # 870/1000*640 = 556.8 -> 556, 945/1000*640 = 604.8 -> 605; 450/1000*480 = 216, 517/1000*480 = 248.16 -> 249
        ((870, 450, 945, 517), (556, 216, 605, 249)),
        # 320 +- 0.64 px: 319..321, enlarged to 32 px around 320; the same vertically around 240
        ((499, 499, 501, 501), (304, 224, 336, 256)),
        # in the corner the enlarged box is pushed back into the picture
        ((0, 0, 1, 1), (0, 0, 32, 32)),
        ((999, 999, 1000, 1000), (608, 448, 640, 480)),
        ((0, 0, 1000, 1000), (0, 0, 640, 480)),
    ],
)
def test_boxes_become_whole_pixels(box: tuple[float, ...], expected: tuple[int, ...]) -> None:
    assert pixel_box(box, width_px=640, height_px=480) == expected


def test_a_picture_smaller_than_the_smallest_box_is_taken_whole() -> None:
    assert pixel_box((200, 200, 300, 300), width_px=20, height_px=10) == (0, 0, 20, 10)


def test_a_stripe_is_refused() -> None:
    assert pixel_box((0, 0, 1000, 1), width_px=6400, height_px=480) == (0, 0, 6400, 32)  # 200 : 1
    with pytest.raises(ToolError, match=r"6401x32 px, longer than 200 times its width"):
        pixel_box((0, 0, 1000, 1), width_px=6401, height_px=480)


@pytest.mark.parametrize(
    ("box", "bounds", "expected"),
    [
        ((320, 100), (1024, 10**6), (320, 96)),  # within the bounds: nearest multiples of 32
        ((100, 100), (9216, 9216), (96, 96)),
        ((32, 32), (9216, 9216), (96, 96)),
        ((50, 51), (9216, 9216), (96, 96)),  # a pixel of rounding must not change the crop's shape
        ((3000, 3000), (9216, 9216), (96, 96)),
        # scaled to an area of 9216: 135.8 x 67.9; no neighbour has it, 128x64 = 8192 is the nearest below
        ((100, 50), (9216, 9216), (128, 64)),
        # scaled: 150.0 x 61.5; 160x64 would be nearer, but more pixels than allowed
        ((122, 50), (9216, 9216), (128, 64)),
        # scaled: 3.8 x 1090; no side is below 32, so 16384 / 32 = 512 is left for the other
        ((1, 290), (4096, 16384), (32, 512)),
        # scaled to an area of 262144: 512 x 512
        ((64, 64), (256 * 32 * 32, 1280 * 32 * 32), (512, 512)),
        # scaled to 1310720: 1321.9 x 991.5; 1312x992 = 1301504 is below the bound
        ((4000, 3000), (256 * 32 * 32, 1280 * 32 * 32), (1312, 992)),
    ],
)  # fmt: skip
def test_crop_sizes(box: tuple[int, int], bounds: tuple[int, int], expected: tuple[int, int]) -> None:
    assert crop_size(*box, min_pixels=bounds[0], max_pixels=bounds[1], factor=32) == expected


corners = st.floats(-2000, 3000) | st.integers(-2000, 3000)


@given(st.tuples(corners, corners, corners, corners), st.integers(1, 300), st.integers(1, 300))
def test_every_box_gives_a_crop_within_the_bounds_or_an_error_text(
    box: tuple[Any, ...], width: int, height: int
) -> None:
    where = context((width, height))
    try:
        _, crop = zoom(ImageZoomTool(min_pixels=4096, max_pixels=16384), {"bbox_2d": list(box), "label": ""}, where)
    except ToolError as error:
        x1, y1, x2, y2 = (min(max(value, 0), 1000) for value in box)
        is_stripe = max(width, height) > 200 * min(width, height)
        assert error.kind == FailureKind.BAD_ARGUMENTS and (x2 <= x1 or y2 <= y1 or is_stripe)
    else:
        assert crop.image is not None
        assert crop.image.width_px % 32 == crop.image.height_px % 32 == 0
        assert crop.image.width_px * crop.image.height_px <= 16384


BOX = [0, 0, 500, 500]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "x"}, r"the argument bbox_2d is missing"),
        ({"bbox_2d": BOX}, r"the argument label is missing"),
        ({"bbox_2d": BOX, "label": 3}, r"label must be a string, got 3"),
        ({"bbox_2d": BOX, "label": "x", "zoom": 2}, r"no argument 'zoom'; the arguments are bbox_2d, label, img_idx"),
        ({"bbox_2d": [0, 0, 1], "label": "x"}, r"bbox_2d must be four numbers .*, got \[0, 0, 1\]"),
        ({"bbox_2d": "[0, 0, 1, 1]", "label": "x"}, r"bbox_2d must be four numbers .*, got '\[0, 0, 1, 1\]'"),
        ({"bbox_2d": [0, 0, 1, "1"], "label": "x"}, r"bbox_2d must be four numbers"),
        ({"bbox_2d": [0, 0, 1, True], "label": "x"}, r"bbox_2d must be four numbers"),
        ({"bbox_2d": [0, 0, 1, None], "label": "x"}, r"bbox_2d must be four numbers"),
        ({"bbox_2d": [0, 0, float("nan"), 1], "label": "x"}, r"bbox_2d must be four numbers"),
        ({"bbox_2d": [0, 0, float("inf"), 1], "label": "x"}, r"bbox_2d must be four numbers"),
        ({"bbox_2d": [500, 0, 500, 9], "label": "x"}, r"bbox_2d is empty: within the image it is \[500, 0, 500, 9\]"),
        ({"bbox_2d": [9, 9, 1, 1], "label": "x"}, r"needs x1 < x2 and y1 < y2"),
        ({"bbox_2d": [1200, 0, 10**400, 9], "label": "x"}, r"is empty: within the image it is \[1000, 0, 1000, 9\]"),
        ({"bbox_2d": [10**5000], "label": "x"}, r"got a number beyond all bounds"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": 2}, r"img_idx 2 does not exist; the images are 0 to 1"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": -1}, r"img_idx -1 does not exist"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": 0.5}, r"img_idx 0.5 does not exist"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": "0"}, r"img_idx '0' does not exist"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": True}, r"img_idx True does not exist"),
        ({"bbox_2d": BOX, "label": "x", "img_idx": 10**5000}, r"img_idx a number beyond all bounds does not exist"),
    ],
)
def test_a_mistake_of_the_model_is_answered_with_what_to_write(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=message) as caught:
        zoom(SMALL, arguments, context((40, 40), (40, 40)))
    assert caught.value.kind == FailureKind.BAD_ARGUMENTS
    assert caught.value.message.startswith("image_zoom_in: ") and len(caught.value.message) < 250


def test_a_dialogue_without_images_says_so() -> None:
    with pytest.raises(ToolError, match="this dialogue has no image to zoom into"):
        zoom(SMALL, {"bbox_2d": BOX, "label": "x"}, context())


def test_contradicting_pixel_bounds_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"factor=32, min_pixels=100, max_pixels=9216"):
        ImageZoomTool(min_pixels=100, max_pixels=9216)


def test_the_fakes_echo_and_fail() -> None:
    call = ToolCall(id="c", name="echo", arguments={"text": "hi"})
    assert asyncio.run(EchoTool().run(call, context())) == (Content(text="hi"),)
    with pytest.raises(ToolError, match="echo: text must be a string"):
        asyncio.run(EchoTool().run(ToolCall(id="c", name="echo"), context()))
    for failure, raised in [
        (FailureKind.TIMEOUT, "ToolError"),
        (FailureKind.TOOL_FAULT, "ToolFault"),
        (OSError("disk"), "OSError"),
    ]:
        with pytest.raises(Exception, match=r"on purpose|disk") as caught:
            asyncio.run(FailingTool(failure).run(call, context()))
        assert type(caught.value).__name__ == raised
