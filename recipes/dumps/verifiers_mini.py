"""Make a real dump of verifiers with a tool and a scripted model on this machine. CPU, seconds.

    pip install "verifiers<0.4"
    python recipes/dumps/verifiers_mini.py runs/verifiers_mini
    axpo diagnose runs/verifiers_mini/results.jsonl

verifiers runs its own ToolEnv, calls the tool, scores and writes `results.jsonl`. The model is a stub that speaks
OpenAI's protocol and answers by chance: directly, or after a call of the tool, of the tool with a word it does not
know, or of a tool that does not exist.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset

PLAYERS = {"red": "miller", "blue": "baker", "green": "sailor"}
CALLS = [("look_up", "known"), ("look_up", "pink"), ("search", "known")]


def look_up(card: str) -> str:
    """Who plays a card.

    Args:
        card: The colour of the card.
    """
    return f"The {PLAYERS[card]} plays it."


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


async def right(completion: Any, answer: str) -> float:
    """1 when the last message names the player."""
    return float(completion[-1].content == answer)


def main(output: Path) -> None:
    """Six rollouts of each question."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["STUB_KEY"] = "none"
    client = vf.ClientConfig(api_key_var="STUB_KEY", api_base_url=f"http://127.0.0.1:{server.server_port}/v1")
    rows = [{"question": f"Who plays the {card} card?", "answer": player} for card, player in PLAYERS.items()]
    env = vf.ToolEnv(tools=[look_up], dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[right]), max_turns=3)
    asyncio.run(
        env.evaluate(client, "stub", rollouts_per_example=6, max_concurrent=1, results_path=output, save_results=True)
    )
    server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
