"""What an MCP server answered, as blocks of the dialogue."""

from __future__ import annotations

import base64
import io
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axpo.errors import ToolError
from axpo.protocols import ToolContext
from axpo.tools.function import MAX_ASPECT_RATIO, MAX_IMAGE_PX, cut_middle
from axpo.types import Content, FailureKind

if TYPE_CHECKING:
    from mcp.types import CallToolResult

MAX_ERROR_CHARS = 4000
MAX_IMAGES = 16
"""Of one result. Further ones are not even decoded: a message of a few megabytes can hold hundreds of gigabytes,
nor are they beyond `MAX_IMAGE_PX` pixels in all."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
NO_OUTPUT = "(no output)"

_decoders = threading.BoundedSemaphore(4)
"""So many pictures are in memory at once, however many calls come back."""


def read_result(result: CallToolResult, name: str, context: ToolContext) -> tuple[Content, ...]:
    """Texts and pictures; each picture announced by the `img_idx` it will have.

    Raises `ToolError` (`EXECUTION_ERROR`) with the server's text when it says that the call failed. Blocking: decodes
    pictures.
    """
    blocks = [block for content in result.content if (block := _read_block(content))]
    if result.is_error:
        reason = "\n".join(block for block in blocks if isinstance(block, str)) or "the server gave no reason"
        context.is_cut = len(reason) > MAX_ERROR_CHARS
        raise ToolError(FailureKind.EXECUTION_ERROR, f"{name}: {cut_middle(reason, MAX_ERROR_CHARS)}")
    if not blocks and result.structured_content is not None:
        blocks = [json.dumps(result.structured_content, ensure_ascii=False)]
    gallery = _Gallery(context)
    contents: list[Content] = []
    for block in blocks or [NO_OUTPUT]:
        contents += [Content(text=block)] if isinstance(block, str) else gallery.add(block)
    return (*contents, *gallery.note())


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A picture in base64."""

    data: str


def _read_block(block: Any) -> str | _Encoded:
    if block.type == "text":
        return block.text
    if block.type == "image":
        return _Encoded(block.data)
    if block.type == "resource" and getattr(block.resource, "text", None) is not None:
        return block.resource.text
    if block.type == "resource":
        kind = block.resource.mime_type or "binary data"
        return _Encoded(block.resource.blob) if kind.startswith("image/") else f"({kind} is left out)"
    if block.type == "resource_link":
        return f"(a link to {block.uri})"
    return f"({block.type} is left out)"


@dataclass(slots=True)
class _Gallery:
    """Takes the pictures of one result into the dialogue: one after the other, within bounds."""

    context: ToolContext
    num_kept: int = 0
    num_left_out: int = 0
    num_tried: int = 0
    num_px_tried: int = 0

    def add(self, picture: _Encoded) -> list[Content]:
        """The picture behind its index, or a note in its place, or nothing where there were too many."""
        from PIL import Image as PilImage

        if self.num_tried == MAX_IMAGES:
            return self._leave_out()
        try:
            data = io.BytesIO(base64.b64decode(picture.data))
            with _decoders, PilImage.open(data, formats=IMAGE_FORMATS) as image:
                short_px, long_px = sorted(image.size)
                if short_px * long_px > MAX_IMAGE_PX or long_px > MAX_ASPECT_RATIO * short_px:
                    self.context.is_cut = True
                    return [Content(text=f"(an image of {image.width}x{image.height} px is left out)")]
                if self.num_px_tried + short_px * long_px > MAX_IMAGE_PX:
                    return self._leave_out()
                self.num_tried += 1
                self.num_px_tried += short_px * long_px
                ref = self.context.store.add_image(image)
        except Exception as error:  # decoders of pictures raise anything
            return [Content(text=f"(an image that cannot be read is left out: {type(error).__name__})")]
        index = len(self.context.images) + self.num_kept
        self.num_kept += 1
        return [Content(text=f"img_idx {index}:"), Content(image=ref)]

    def _leave_out(self) -> list[Content]:
        self.context.is_cut = True
        self.num_left_out += 1
        return []

    def note(self) -> list[Content]:
        """What stands for the pictures that were too many."""
        return [Content(text=f"({self.num_left_out} more images are left out)")] if self.num_left_out else []
