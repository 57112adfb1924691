"""Tools of any MCP server, over standard input and output or streamable HTTP, through the official `mcp` SDK."""

from axpo.tools.mcp.options import McpOptions
from axpo.tools.mcp.server import McpServer, McpTool, mcp_tools

__all__ = ["McpOptions", "McpServer", "McpTool", "mcp_tools"]
