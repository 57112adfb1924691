"""A chat endpoint for tests: calls a tool, answers by the request's seed, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CALL = {"name": "image_zoom_in", "arguments": json.dumps({"bbox_2d": [100, 100, 500, 500], "label": "card"})}


@dataclass
class ChatStub:
    """Answers the first `max_answers` requests and leaves the others waiting."""

    max_answers: int | None = None
    is_broken: bool = False
    """HTTP 500 to everything."""
    answered: list[str] = field(default_factory=list)
    """Hashes of the bodies that got an answer."""
    waiting: int = 0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    changed: threading.Condition = field(init=False)
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.changed = threading.Condition(self._lock)

    def admit(self, body: bytes) -> bool:
        with self.changed:
            is_answered = self.max_answers is None or len(self.answered) < self.max_answers
            if is_answered:
                self.answered.append(hashlib.sha256(body).hexdigest())
            else:
                self.waiting += 1
            self.changed.notify_all()
            return is_answered

    def wait_for_waiting(self, count: int, timeout_s: float) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.waiting >= count, timeout=timeout_s), "nobody waits"


def reply_to(fields: dict[str, Any]) -> dict[str, Any]:
    """A call as long as no tool has answered and the seed allows one, then a number from 1 to 4."""
    number = int(hashlib.sha256(str(fields["seed"]).encode()).hexdigest(), 16)
    has_result = any(message["role"] == "tool" for message in fields["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": f"<answer>{1 + number % 4}</answer>"}
    if not has_result and number % 3:
        message = {"role": "assistant", "content": "", "reasoning_content": "look closer"}
        message["tool_calls"] = [{"id": "call", "type": "function", "function": CALL}]
    usage = {"prompt_tokens": 50, "completion_tokens": 7}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def always(text: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same text to everything, without a tool call."""
    message = {"role": "assistant", "content": text}
    choices = [{"message": message, "finish_reason": "stop"}]
    return lambda fields: {"choices": choices, "usage": {"prompt_tokens": 50, "completion_tokens": 7}}


@contextlib.contextmanager
def chat_stub(
    max_answers: int | None = None,
    *,
    is_broken: bool = False,
    reply: Callable[[dict[str, Any]], dict[str, Any]] = reply_to,
) -> Generator[ChatStub]:
    """A stub that serves on a free port of this machine; `reply` makes the answer to a request's fields."""
    stub = ChatStub(max_answers=max_answers, is_broken=is_broken)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if stub.is_broken:
                self.send_error(500)
                return
            if not stub.admit(body):
                stub.closed.wait(120)
                self.close_connection = True
                return
            data = json.dumps(reply(json.loads(body))).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
