"""What an MCP server answered, as blocks of the dialogue."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from axpo.errors import ToolError
from axpo.protocols import ToolContext
from axpo.tools.function import cut_middle
from axpo.types import Content, FailureKind

if TYPE_CHECKING:
    from mcp.types import CallToolResult
    from PIL.Image import Image

MAX_ERROR_CHARS = 4000
MAX_IMAGE_PX = 2**26
MAX_ASPECT_RATIO = 200
"""Thinner pictures are left out: Qwen's image preprocessing takes nothing beyond it."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
NO_OUTPUT = "(no output)"


def read_result(result: CallToolResult, name: str, context: ToolContext) -> tuple[Content, ...]:
    """Texts and pictures; each picture announced by the `img_idx` it will have.

    Raises `ToolError` (`EXECUTION_ERROR`) with the server's text when it says that the call failed. Blocking: decodes
    pictures.
    """
    blocks = [block for content in result.content for block in _read_block(content)]
    texts = [block for block in blocks if isinstance(block, str)]
    if result.is_error:
        message = cut_middle("\n".join(texts) or "the server gave no reason", MAX_ERROR_CHARS)
        raise ToolError(FailureKind.EXECUTION_ERROR, f"{name}: {message}")
    if not blocks and result.structured_content is not None:
        blocks = [json.dumps(result.structured_content, ensure_ascii=False)]
    return _to_content(blocks or [NO_OUTPUT], context)


def _to_content(blocks: Sequence[str | Image], context: ToolContext) -> tuple[Content, ...]:
    contents: list[Content] = []
    index = len(context.images)
    for block in blocks:
        if isinstance(block, str):
            contents.append(Content(text=block))
        else:
            contents += [Content(text=f"img_idx {index}:"), Content(image=context.store.add_image(block))]
            index += 1
    return tuple(contents)


def _read_block(block: Any) -> Iterator[str | Image]:
    if block.type == "text":
        if block.text:
            yield block.text
    elif block.type == "image":
        yield _decode(block.data)
    elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
        yield block.resource.text
    elif block.type == "resource":
        kind = block.resource.mime_type or "binary data"
        yield _decode(block.resource.blob) if kind.startswith("image/") else f"({kind} is left out)"
    elif block.type == "resource_link":
        yield f"(a link to {block.uri})"
    else:
        yield f"({block.type} is left out)"


def _decode(data: str) -> str | Image:
    """The picture, or a note in its place."""
    from PIL import Image as PilImage

    try:
        with PilImage.open(io.BytesIO(base64.b64decode(data)), formats=IMAGE_FORMATS) as image:
            short_px, long_px = sorted(image.size)
            if short_px * long_px > MAX_IMAGE_PX or long_px > MAX_ASPECT_RATIO * short_px:
                return f"(an image of {image.width}x{image.height} px is left out)"
            return image.convert("RGB")
    except Exception as error:  # decoders of pictures raise anything
        return f"(an image that cannot be read is left out: {type(error).__name__})"
