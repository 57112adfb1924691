"""HTTP servers on this machine that answer as Tavily, SearXNG and an image endpoint do, and misbehave on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "tvly-secret-0123456789"

PAGES = [
    {
        "title": f"{animal.title()} {number}",
        "url": f"https://{host}/{animal}/{number}",
        "content": f"The {animal} is animal number {number}.",
    }
    for animal in ("otter", "heron")
    for number, host in enumerate(["a.org", "www.b.com", "c.net", "blog.b.com", "d.org", "e.org"], start=1)
]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def params(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}


@dataclass
class Reply:
    status: int = 200
    body: Any = b""
    """Bytes, an iterator of bytes, or what becomes JSON."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    url: str
    respond: Callable[[Request], Reply]
    requests: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over: what hangs waits for it."""


@contextmanager
def serving(respond: Callable[[Request], Reply]) -> Iterator[Server]:
    """A server on a free port. Change `respond` at any time."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.rfile.read(length))
            server.requests.append(request)
            reply = server.respond(request)
            try:
                self.write(reply)
            except OSError:  # the client had enough
                self.close_connection = True

        def write(self, reply: Reply) -> None:
            is_json = not isinstance(reply.body, bytes) and not hasattr(reply.body, "__next__")
            body = json.dumps(reply.body).encode() if is_json else reply.body
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if isinstance(body, bytes):
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_header("Connection", "close")
            self.end_headers()
            for part in body:
                self.wfile.write(part)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    http = QuietServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}", respond)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


def tavily(request: Request) -> Reply:
    """As api.tavily.com: the key in a header, domains left out by the server."""
    if request.method != "POST" or request.path != "/search":
        return Reply(404, {"detail": "Not Found"})
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return Reply(401, {"detail": {"error": "Unauthorized: missing or invalid API key."}})
    query = request.json["query"]
    if len(query) > 400 or "forbidden" in query:
        return Reply(400, {"detail": {"error": "Query is too long. Max query length is 400 characters."}})
    hits = [page for page in PAGES if set(query.lower().split()) & set(page["title"].lower().split())]
    excluded = request.json["exclude_domains"]
    hits = [page for page in hits if not any(domain in page["url"] for domain in excluded)]
    results = [page | {"score": 0.9, "raw_content": None} for page in hits[: request.json["max_results"]]]
    return Reply(200, {"query": query, "answer": None, "images": [], "results": results, "response_time": 0.1})


def searxng(request: Request) -> Reply:
    """As a SearXNG instance: a fixed number of results, commands in the query, 403 for a format it does not offer."""
    if request.params.get("format") != "json":
        return Reply(403, b"Forbidden")
    query = request.params["q"]
    if any(word.startswith("!!") for word in query.split()):
        return Reply(302, b"", {"Location": "https://elsewhere.example/"})
    hits = [page for page in PAGES if set(query.lower().split()) & set(page["title"].lower().split())]
    results = [page | {"engine": "x", "parsed_url": [], "publishedDate": None} for page in hits]
    return Reply(200, {"query": query, "number_of_results": 0, "results": results, "unresponsive_engines": []})
