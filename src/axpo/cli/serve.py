"""An OpenAI-compatible server over the in-process engine: `/v1/chat/completions` and `/v1/models`.

For evaluating a checkpoint as a service, and for trying clients. It keeps what it promises: a parameter that it does
not know is refused, not ignored. Pictures come as data URLs; nothing is ever fetched. A turn with a call that cannot be
read comes back as the text that the model wrote. There is no password: it listens on this machine only by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import tempfile
import threading
from collections.abc import Coroutine, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axpo.cli.build import build_engine, build_parts
from axpo.cli.orders import ChatOrder, Refusal, completion_fields, read_object, read_order
from axpo.cli.rows import context_length
from axpo.errors import AxpoError, ConfigError, EngineFault
from axpo.images import ContentImageStore
from axpo.protocols import InferenceEngine, Renderer
from axpo.trainer.config import Config, DataConfig
from axpo.types import GenerationRequest, JsonValue

MAX_BODY_BYTES = 256 * 2**20
MAX_WAIT_S = 3600.0
"""Of one request."""
IDLE_S = 600.0
"""After which a silent connection is closed."""
_log = logging.getLogger(__name__)


class ChatServer:
    """Answers requests with an engine that it does not own. `url` says where, once `start` has been called.

    `store` is the engine's; it must have a folder, so that pictures do not stay in memory.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        renderer: Renderer,
        *,
        store: ContentImageStore,
        model: str,
        context_tokens: int,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """`port` 0: any that is free. Raises `OSError` when the port is taken."""
        self.model = model
        self._engine = engine
        self._renderer = renderer
        self._store = store
        self._context_tokens = context_tokens
        self._storing = threading.Lock()
        self._http = _Listener((host, port), _handler(self))
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="axpo-serve-loop", daemon=True),
            threading.Thread(target=self._http.serve_forever, args=(0.1,), name="axpo-serve-http", daemon=True),
        ]
        self.url = f"http://{host}:{self._http.server_port}/v1"

    def start(self) -> None:
        """Listen, in threads of its own."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop listening; what is under way is given up."""
        self._http.shutdown()
        self._http.server_close()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(10)
        self._loop.close()

    def list_models(self) -> JsonValue:
        """The one model."""
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "axpo"}
        return {"object": "list", "data": [entry | {"max_model_len": self._context_tokens}]}

    def complete(self, body: bytes) -> JsonValue:
        """A chat completion. Raises `Refusal`. Called in a thread of its connection."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refusal("The body is no JSON.") from error
        with self._storing:
            order = read_order(read_object(fields, "body"), model=self.model, store=self._store)
            for image in (image for message in order.messages for image in message.images):
                self._store.persist(image)
        return self._wait(self._sample(order))

    async def _sample(self, order: ChatOrder) -> JsonValue:
        try:
            prompt = self._renderer.render_prompt(order.messages, order.tools)
        except AxpoError as error:
            raise Refusal(str(error), param="messages") from error
        num_prompt_tokens = len(prompt.token_ids)
        room = self._context_tokens - num_prompt_tokens
        wanted = room if order.max_tokens is None else order.max_tokens
        if room < 1 or wanted > room:
            raise Refusal(
                f"This model's maximum context length is {self._context_tokens} tokens. However, you requested "
                f"{max(wanted, 1) + num_prompt_tokens} tokens ({num_prompt_tokens} in the messages).",
                code="context_length_exceeded",
                param="messages",
            )
        request = GenerationRequest(
            token_ids=prompt.token_ids,
            images=prompt.images,
            max_new_tokens=wanted,
            sampling=order.sampling,
            seed=order.seed,
        )
        completion = await self._engine.generate(request)
        turn = self._renderer.parse_turn(completion.token_ids)
        return completion_fields(
            completion, turn, model=self.model, num_prompt_tokens=num_prompt_tokens, renderer=self._renderer
        )

    def _wait(self, work: Coroutine[Any, Any, JsonValue]) -> JsonValue:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(MAX_WAIT_S)
        except EngineFault as fault:
            raise Refusal(str(fault), status=503) from fault
        except TimeoutError as error:
            future.cancel()
            raise Refusal(f"No answer within {MAX_WAIT_S:g} s.", status=504) from error


@contextlib.contextmanager
def picture_store() -> Generator[ContentImageStore]:
    """A store whose pictures lie on disk for as long as the server lives."""
    with tempfile.TemporaryDirectory(prefix="axpo-serve-") as folder:
        yield ContentImageStore(Path(folder))


def serve_checkpoint(config: Config, *, name: str, host: str, port: int) -> None:
    """Load a checkpoint and serve it under `name` until Ctrl-C. Raises `ConfigError` when the port is taken."""
    with picture_store() as store:
        parts = build_parts(config.model_copy(update={"data": DataConfig(tools=())}), store=store)
        with contextlib.closing(parts.executor), contextlib.closing(build_engine(parts)) as engine:
            try:
                server = ChatServer(
                    engine,
                    parts.renderer,
                    store=store,
                    model=name,
                    context_tokens=context_length(parts.model_path),
                    host=host,
                    port=port,
                )
            except OSError as error:
                raise ConfigError(f"axpo serve: cannot listen at {host}:{port}: {error.strerror}.") from error
            print(f"serving {name} at {server.url}; end it with Ctrl-C", flush=True)
            serve_until_interrupted(server)


def serve_until_interrupted(server: ChatServer) -> None:
    """Serve until Ctrl-C or SIGTERM. Call it in the main thread."""
    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        stop.set()

    # set, not left to the default: a process that a shell started in the background would ignore Ctrl-C
    known = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    server.start()
    try:
        stop.wait()
    finally:
        server.close()
        for number, handler in known.items():
            signal.signal(number, handler)


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was lost is nobody's error."""
        _log.debug("connection of %s lost", client_address, exc_info=True)


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_S
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send(200, server.list_models())
            else:
                self._refuse(Refusal(f"There is no GET {self.path[:100]}.", status=404))

        def do_POST(self) -> None:
            try:
                body = self._read_body()
                if self.path != "/v1/chat/completions":
                    raise Refusal(f"There is no POST {self.path[:100]}.", status=404)
                reply = server.complete(body)
            except Refusal as refusal:
                self._refuse(refusal)
            except Exception as error:
                _log.exception("a request failed")
                self._refuse(Refusal(f"{type(error).__name__}: {str(error)[:200]}", status=500))
            else:
                self._send(200, reply)

        def _read_body(self) -> bytes:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit():
                self.close_connection = True
                raise Refusal("A request needs its Content-Length.", status=411)
            if len(length) > 12 or int(length) > MAX_BODY_BYTES:
                self.close_connection = True
                raise Refusal(f"The body may have {MAX_BODY_BYTES} bytes.", status=413)
            return self.rfile.read(int(length))

        def _refuse(self, refusal: Refusal) -> None:
            self._send(refusal.status, refusal.body())

        def _send(self, status: int, fields: JsonValue) -> None:
            data = json.dumps(fields, ensure_ascii=False).encode(errors="replace")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            _log.debug(format, *args)

    return Handler
