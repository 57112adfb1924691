"""An MCP server of the SDK over streamable HTTP: `python birds.py <port> [stateful|json]`."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

RED_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92"
    "ef0000000049454e44ae426082"
)
server = MCPServer("birds")


@server.tool()
async def act(how: str) -> object:
    """Does what it is told."""
    if how == "picture":
        return Image(data=RED_PNG, format="png")
    if how == "hang":
        await asyncio.sleep(1000)
    if how == "huge":
        return "a" * 3_000_000
    if how == "die":
        os._exit(3)
    if how == "raise":
        raise ToolError("no such bird")
    return how


if __name__ == "__main__":
    is_json = "json" in sys.argv
    server.run(
        "streamable-http", host="127.0.0.1", port=int(sys.argv[1]), json_response=is_json, stateless_http=is_json
    )
