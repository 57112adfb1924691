"""A model for the dumps of verifiers: speaks OpenAI's protocol on this machine and answers by chance.

It answers directly, or after a call of the tool, of the tool with a card it does not know, or of a tool that does not
exist.
"""

from __future__ import annotations

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAYERS = {"red": "miller", "blue": "baker", "green": "sailor"}
CALLS = [("look_up", "known"), ("look_up", "pink"), ("search", "known")]


def reply(messages: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    """The stub's turn: what a result says, a guess, or a call."""
    last, card = messages[-1], messages[0]["content"].split()[3]
    if last["role"] == "tool":
        known = [player for player in PLAYERS.values() if player in last["content"]]
        return {"role": "assistant", "content": known[0] if known else rng.choice(list(PLAYERS.values()))}
    if rng.random() < 0.5:
        return {"role": "assistant", "content": rng.choice(list(PLAYERS.values()))}
    tool, word = rng.choice(CALLS)
    arguments = json.dumps({"card": card if word == "known" else word})
    call = {
        "id": f"call-{rng.randrange(10**6)}",
        "type": "function",
        "function": {"name": tool, "arguments": arguments},
    }
    return {"role": "assistant", "content": None, "tool_calls": [call]}


class Stub(BaseHTTPRequestHandler):
    """`POST /v1/chat/completions`."""

    rng = random.Random(0)

    def do_POST(self) -> None:
        """Answer a request."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = reply(request["messages"], self.rng)
        reason = "tool_calls" if "tool_calls" in message else "stop"
        body = {
            "id": "reply",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
        }
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve() -> str:
    """Serve until the program ends; returns the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"
