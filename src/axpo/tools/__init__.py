"""What the policy may call. A tool is any object that fits `axpo.protocols.Tool`.

`axpo.tools.function.FunctionTool` makes one of a typed Python function; `axpo.tools.fakes` holds the public fakes.
"""

from collections.abc import Callable

from axpo.errors import ToolError
from axpo.protocols import Tool
from axpo.tools.image_zoom import ImageZoomTool

BUILTIN_TOOLS: dict[str, Callable[[], Tool]] = {"image_zoom_in": ImageZoomTool}
"""Names that a configuration may use; anything else is `module:attribute`."""

__all__ = ["BUILTIN_TOOLS", "ImageZoomTool", "ToolError"]
