"""An MCP server without the SDK, so that it can break every rule. Its tool `act` does what its argument `how` says.

`python raw.py [start mode]`; also what it does when it is started. Understands the handshake of 2025 only.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import threading
import time
import zlib
from typing import Any

from PIL import Image

lock = threading.Lock()
SCHEMA = {"type": "object", "properties": {"how": {"type": "string"}}, "required": ["how"]}
TEXT = {"type": "text", "text": "x"}


def write(message: Any) -> None:
    with lock:
        sys.stdout.write((message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", **message})) + "\n")
        sys.stdout.flush()


def picture(width: int = 5, height: int = 4) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return {"type": "image", "mimeType": "image/png", "data": base64.b64encode(buffer.getvalue()).decode()}


def promising(side_px: int) -> dict[str, Any]:
    """A PNG whose header promises a large square."""
    data = bytearray(base64.b64decode(picture()["data"]))
    data[16:24] = side_px.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return {"type": "image", "mimeType": "image/png", "data": base64.b64encode(data).decode()}


RESULTS: dict[str, Any] = {
    "text": {"content": [TEXT]},
    "empty": {"content": []},
    "error": {"content": [{"type": "text", "text": "no such bird"}], "isError": True},
    "structured": {"content": [], "structuredContent": {"n": 1, "name": "ü"}},
    "backtracking": {"content": [], "structuredContent": {"name": "a" * 60 + "!"}},
    "bombs": {"content": [promising(100_000), TEXT, promising(9_000)]},
    "stripe": {"content": [picture(width=2000, height=2)]},
    "broken image": {"content": [{"type": "image", "mimeType": "image/png", "data": "bm8="}]},
    "images": {"content": [TEXT, picture(), {"type": "text", "text": "y"}, picture(width=3)]},
    "others": {
        "content": [
            {"type": "audio", "mimeType": "audio/wav", "data": "bm8="},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "file:///b", "blob": "bm8=", "mimeType": "application/zip"}},
            {"type": "resource", "resource": {"uri": "file:///c", "blob": picture()["data"], "mimeType": "image/png"}},
            {"type": "resource_link", "uri": "file:///d", "name": "d"},
        ]
    },
    "not a list": {"content": "x"},
    "unknown block": {"content": [{"type": "smell"}]},
    "no result": "x",
    "environment": {"content": [{"type": "text", "text": json.dumps(dict(os.environ))}]},
    "pid": {"content": [{"type": "text", "text": str(os.getpid())}]},
    "cwd": {"content": [{"type": "text", "text": os.getcwd()}]},
}
ERRORS = {"invalid params": -32602, "internal error": -32603, "own error": -32099, "no such method": -32601}


def act(number: int, how: str) -> None:
    if how in RESULTS:
        write({"id": number, "result": RESULTS[how]})
    elif how in ERRORS:
        write({"id": number, "error": {"code": ERRORS[how], "message": "because"}})
    elif how == "die":
        sys.stderr.write("fatal: out of cheese\n")
        sys.stderr.flush()
        os._exit(3)
    elif how == "wedge":
        time.sleep(1000)
    elif how == "surrogate":
        write(f'{{"jsonrpc":"2.0","id":{number},"result":{{"content":[{{"type":"text","text":"\\ud800"}}]}}}}')
    elif how in ("huge", "huge, id last"):
        text = "a" * 3_000_000
        ends = (
            (f'{{"jsonrpc":"2.0","id":{number},', "}") if how == "huge" else ("{", f',"jsonrpc":"2.0","id":{number}}}')
        )
        write(f'{ends[0]}"result":{{"content":[{{"type":"text","text":"{text}"}}]}}{ends[1]}')
    elif how == "endless line":
        while True:
            sys.stdout.write("a" * 65536)
    elif how == "endless notifications":
        while True:
            write({"method": "notifications/message", "params": {"level": "info", "data": "a" * 1000}})
    elif how == "endless requests":
        for request in range(10**6):
            write({"id": f"r{request}", "method": "ping"})
    elif how == "megabytes on stderr":
        for _ in range(200):
            sys.stderr.write("e" * 65536 + "\n")
        write({"id": number, "result": RESULTS["text"]})
    elif how == "chatty":
        write("debug: not json")
        write({"method": "notifications/message", "params": {"level": "info", "data": "a"}})
        write({"id": "own", "method": "ping"})
        assert json.loads(sys.stdin.readline()) == {"jsonrpc": "2.0", "id": "own", "result": {}}
        write({"id": number, "result": RESULTS["text"]})
    elif how != "hang":
        raise NotImplementedError(how)


def main(mode: str) -> None:
    if mode == "dies at start":
        sys.exit("no licence found")
    if mode == "ignores the end of its input":
        if os.fork():
            os.wait()
        else:
            os.setsid()
    for line in sys.stdin:
        request = json.loads(line)
        number, method = request.get("id"), request.get("method")
        if mode == "silent":
            sys.stderr.write("waiting for a sign\n")
            sys.stderr.flush()
        elif method == "initialize":
            info = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
            write({"id": number, "result": {**info, "serverInfo": {"name": "raw", "version": "1"}}})
        elif method == "tools/list":
            tools = (
                json.loads(os.environ["TOOLS"]) if "TOOLS" in os.environ else [{"name": "act", "inputSchema": SCHEMA}]
            )
            write({"id": number, "result": {"tools": tools}})
        elif method == "tools/call":
            act(number, request["params"]["arguments"]["how"])
        elif number is not None and method is not None:
            write({"id": number, "error": {"code": -32601, "message": "no such method"}})
    if mode == "ignores the end of its input":
        time.sleep(1000)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
