"""What the policy may call. A tool is any object that fits `axpo.protocols.Tool`; see `docs/tools.md`.

`axpo.tools.function.FunctionTool` makes one of a typed Python function, `axpo.tools.stateful` of a class with one
instance per rollout, `axpo.tools.mcp` of a server's tools; `axpo.tools.fakes` holds the public fakes.
"""

from axpo.errors import ToolError
from axpo.tools.image_zoom import ImageZoomTool

BUILTIN_TOOLS = {
    "image_zoom_in": "axpo.tools.image_zoom:ImageZoomTool",
    "python": "axpo.tools.python_exec:PythonTool",
    "search": "axpo.tools.search:SearchTool",
    "image_search": "axpo.tools.search:ImageSearchTool",
    "tavily-search": "axpo.tools.search:SearchTool",
}
"""Names that a configuration may use, and where they lie."""
PRESET_OPTIONS = {
    "tavily-search": {"name": "tavily-search", "backend": "tavily", "exclude_domains": ["huggingface.co"]},
}
"""What a built-in tool of that name is made with unless the configuration says otherwise."""
PAPER_TOOLS = ("python", "image_zoom_in", "tavily-search")
"""The tools of arXiv:2605.28774, section on tools, under its names."""

__all__ = ["BUILTIN_TOOLS", "PAPER_TOOLS", "PRESET_OPTIONS", "ImageZoomTool", "ToolError"]
