"""A chat endpoint for tests that treats a request as vLLM's server does.

It renders the messages with the chat template of the checkpoint that ships, counts the prompt's tokens, and takes what
"the model" wrote apart as `--reasoning-parser deepseek_r1` and `--tool-call-parser hermes` do, or leaves it whole where
the server was started without them. What the model writes is the test's choice; by default it calls a tool or answers,
by the request's seed.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from axpo.tasks import mini

CALL = {"name": "image_zoom_in", "arguments": {"bbox_2d": [100, 100, 500, 500], "label": "card"}}
NO_TOOL_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
IMAGE_PAD = "<|image_pad|>"
THINK_CLOSE = "</think>"
_CALL_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """What the model reads."""

    token_ids: tuple[int, ...]
    """Image placeholders are expanded."""
    text: str
    images: tuple[bytes, ...]
    fields: dict[str, Any]
    """The body of the request."""


Write = Callable[[Prompt], Sequence[int]]


@dataclass(kw_only=True)
class ChatStub:
    """Answers the first `max_answers` requests and leaves the others waiting."""

    max_answers: int | None = None
    is_broken: bool = False
    """HTTP 500 to everything."""
    has_tool_parser: bool = True
    has_reasoning_parser: bool = True
    takes_seed: bool = True
    """False: a request with a seed kills the engine, as on a CPU."""
    refuses: Callable[[dict[str, Any]], str | None] = lambda fields: None
    """HTTP 400 with these words."""
    reads_reasoning: bool = True
    """False: the thinking of earlier turns is dropped, as by a server that does not know the field."""
    context_tokens: int = 65536
    write: Write | None = None
    answered: list[str] = field(default_factory=list)
    """Hashes of the bodies that got an answer."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
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

    def respond(self, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        self.requests.append(fields)
        if "seed" in fields and not self.takes_seed:
            self.is_broken = True
        if self.is_broken:
            return 500, _error(500, ENGINE_DEAD, "InternalServerError")
        refusal = self.refuses(fields)
        if refusal is None and fields.get("tools") and not self.has_tool_parser:
            refusal = NO_TOOL_PARSER
        if refusal is not None:
            return 400, _error(400, refusal, "BadRequestError")
        prompt = render(fields, reads_reasoning=self.reads_reasoning)
        room = self.context_tokens - len(prompt.token_ids)
        wanted = fields.get("max_tokens", room)
        if room < 1 or wanted > room:
            words = f"This model's maximum context length is {self.context_tokens} tokens. However, you requested "
            return 400, _error(400, f"{words}{wanted} output tokens", "BadRequestError")
        self.prompts.append(prompt)
        ids = list((self.write or write_by_seed)(prompt))
        is_cut = len(ids) > wanted
        text = tokenizer().decode(ids[:wanted], skip_special_tokens=True)
        message = self._take_apart(text, has_tools=bool(fields.get("tools")))
        finish = "length" if is_cut else "tool_calls" if message.get("tool_calls") else "stop"
        num_written = min(len(ids), wanted)
        return 200, {
            "object": "chat.completion",
            "model": fields["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": len(prompt.token_ids),
                "completion_tokens": num_written,
                "total_tokens": len(prompt.token_ids) + num_written,
            },
        }

    def _take_apart(self, text: str, *, has_tools: bool) -> dict[str, Any]:
        reasoning, content = None, text
        if self.has_reasoning_parser:  # everything up to the closing tag, or all of it
            reasoning, tag, content = text.partition(THINK_CLOSE)
            content = content if tag else ""
        if not has_tools or "<tool_call>" not in content:
            return {"reasoning": reasoning, "content": content or None, "tool_calls": []}
        try:
            calls = [json.loads(closed or open_) for closed, open_ in _CALL_BLOCK.findall(content)]
            listed = [_listed(number, call) for number, call in enumerate(calls)]
        except (ValueError, KeyError, TypeError):  # one that cannot be read: all stay text
            return {"reasoning": reasoning, "content": content, "tool_calls": []}
        before = content[: content.find("<tool_call>")]
        return {"reasoning": reasoning, "content": before or None, "tool_calls": listed}


def _listed(number: int, call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": f"chatcmpl-tool-{number}", "type": "function", "function": function}


def _error(code: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# -- rendering, as vLLM does it ---------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(mini.checkpoint_path())


def render(fields: dict[str, Any], *, reads_reasoning: bool) -> Prompt:
    """The prompt of a request."""
    images: list[bytes] = []
    messages = [_for_template(message, images, reads_reasoning=reads_reasoning) for message in fields["messages"]]
    text = tokenizer().apply_chat_template(
        messages, tools=fields.get("tools"), add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer().encode(text, add_special_tokens=False)
    pad = tokenizer().convert_tokens_to_ids(IMAGE_PAD)
    counts = map(_num_image_tokens, images)
    expanded = [token for i in ids for token in ([i] * next(counts) if i == pad else [i])]
    return Prompt(token_ids=tuple(expanded), text=text, images=tuple(images), fields=fields)


def _for_template(message: dict[str, Any], images: list[bytes], *, reads_reasoning: bool) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message["role"]}
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks = [_block(part, images) for part in parts]
    is_text = all(block["type"] == "text" for block in blocks)
    rendered["content"] = "".join(block["text"] for block in blocks) if is_text else blocks
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning is not None and reads_reasoning:
        rendered |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if message.get("tool_calls"):
        functions = [call["function"] for call in message["tool_calls"]]
        rendered["tool_calls"] = [
            {"type": "function", "function": {**function, "arguments": json.loads(function["arguments"])}}
            for function in functions
        ]
    return rendered


def _block(part: dict[str, Any], images: list[bytes]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    images.append(base64.b64decode(part["image_url"]["url"].partition(";base64,")[2]))
    return {"type": "image"}


def _num_image_tokens(data: bytes) -> int:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    settings = json.loads((mini.checkpoint_path() / "preprocessor_config.json").read_text())
    factor = settings["patch_size"] * settings["merge_size"]
    with Image.open(io.BytesIO(data)) as image:
        height, width = smart_resize(
            image.height,
            image.width,
            factor=factor,
            min_pixels=settings["size"]["shortest_edge"],
            max_pixels=settings["size"]["longest_edge"],
        )
    return height * width // factor**2


def write_by_seed(prompt: Prompt) -> Sequence[int]:
    """A call as long as no tool has answered and the seed allows one, then a number from 1 to 4."""
    seed = prompt.fields.get("seed", prompt.text)
    number = int(hashlib.sha256(str(seed).encode()).hexdigest(), 16)
    has_result = any(message["role"] == "tool" for message in prompt.fields["messages"])
    text = f"{THINK_CLOSE}\n\n<answer>{1 + number % 4}</answer>"
    if prompt.fields.get("tools") and not has_result and number % 3:
        text = f"look closer\n{THINK_CLOSE}\n\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
    return tokenizer().encode(text, add_special_tokens=False)


def writes(text: str) -> Write:
    """A model that always writes this."""
    return lambda prompt: tokenizer().encode(text, add_special_tokens=False)


# -- the server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def chat_stub(max_answers: int | None = None, **options: Any) -> Generator[ChatStub]:
    """A stub that serves on a free port of this machine."""
    stub = ChatStub(max_answers=max_answers, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not stub.admit(body):
                stub.closed.wait(120)
                self.close_connection = True
                return
            status, reply = stub.respond(json.loads(body))
            data = json.dumps(reply).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
