"""Search on the web or in a local index, recorded and replayed from a cache."""

from axpo.tools.search.build import build_index, index_command
from axpo.tools.search.images import ImageSearchTool
from axpo.tools.search.local import LocalIndex
from axpo.tools.search.tool import SearchTool

__all__ = ["ImageSearchTool", "LocalIndex", "SearchTool", "build_index", "index_command"]
