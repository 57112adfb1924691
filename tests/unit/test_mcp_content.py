"""What MCP servers answer, as blocks of the dialogue."""

from __future__ import annotations

import base64
import io
import weakref

import pytest
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from axpo.errors import ToolError
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.mcp import content
from axpo.tools.mcp.content import MAX_IMAGES, read_result
from axpo.types import ImageRef


def picture(width: int, height: int = 10, mode: str = "1") -> ImageContent:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return ImageContent(type="image", mime_type="image/png", data=base64.b64encode(buffer.getvalue()).decode())


class OneAtATime(ContentImageStore):
    """Fails where the picture before is still in memory."""

    before: weakref.ref[Image.Image] | None = None
    num_added = 0

    def add_image(self, image: Image.Image) -> ImageRef:
        assert self.before is None or self.before() is None
        self.before = weakref.ref(image)
        self.num_added += 1
        return super().add_image(image)


def read(*pictures: ImageContent) -> tuple[list[str | None], ToolContext, OneAtATime]:
    store = OneAtATime()
    context = ToolContext(rollout_id="r", images=[], store=store)
    blocks = read_result(CallToolResult(content=list(pictures)), "act", context)
    return [block.text for block in blocks], context, store


def test_pictures_beyond_a_number_are_left_out_undecoded() -> None:
    texts, context, store = read(*[picture(10 + n) for n in range(MAX_IMAGES + 3)])
    assert store.num_added == MAX_IMAGES
    assert texts[-3:] == [f"img_idx {MAX_IMAGES - 1}:", None, "(3 more images are left out)"]
    assert context.is_cut


def test_pictures_beyond_a_number_of_pixels_are_left_out_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_IMAGE_PX", 1000)
    texts, context, store = read(picture(40), picture(50), picture(20), picture(10), picture(101), picture(9))
    assert texts == [
        *("img_idx 0:", None, "img_idx 1:", None, "img_idx 2:", None),
        *("(an image of 101x10 px is left out)", "(2 more images are left out)"),
    ]
    assert store.num_added == 3
    assert context.is_cut


def test_a_picture_that_breaks_while_it_is_decoded_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_IMAGE_PX", 10_000)
    data = base64.b64decode(picture(80, 80, "RGB").data)
    broken = ImageContent(type="image", mime_type="image/png", data=base64.b64encode(data[:60]).decode())
    texts, *_ = read(*[broken] * 50)
    assert texts[0] is not None and "cannot be read" in texts[0]
    assert texts[1:] == ["(49 more images are left out)"]


def test_all_pictures_of_a_modest_result_are_kept() -> None:
    texts, context, _ = read(picture(10), picture(20))
    assert texts == ["img_idx 0:", None, "img_idx 1:", None]
    assert not context.is_cut


@pytest.mark.parametrize(("num_chars", "is_cut"), [(4000, False), (4001, True)])
def test_an_error_is_cut_and_its_pictures_are_not_looked_at(num_chars: int, is_cut: bool) -> None:
    store = OneAtATime()
    context = ToolContext(rollout_id="r", images=[], store=store)
    reason = TextContent(type="text", text="x" * num_chars)
    with pytest.raises(ToolError, match="act: xxx"):
        read_result(CallToolResult(content=[reason, picture(10)], is_error=True), "act", context)
    assert (store.num_added, context.is_cut) == (0, is_cut)
