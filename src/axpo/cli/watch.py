"""`axpo watch`: the report of runs that are being written, on this machine only.

What it answers is `/`, `/status` and pictures by their hash. Files are read, never written, and no path of a request
ever reaches the file system.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import re
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axpo.errors import ConfigError
from axpo.reports.live import IMAGES, LiveReport, why_not
from axpo.reports.thumbnails import read_picture

MAX_CONNECTIONS = 24
"""At once; more are closed."""
IDLE_S = 20.0
"""After which a silent connection is closed."""

_PICTURE = re.compile(rf"/{IMAGES}/([0-9a-f]{{64}})\.(?:png|jpg|webp|gif|bmp)")
_PIECE_BYTES = 2**18
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PAGE_POLICY = "frame-ancestors 'none'"
"""The page itself says what it may do."""
_OTHER_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
_log = logging.getLogger(__name__)


def run_watch(
    runs: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = False,
    wait: Callable[[], object] | None = None,
) -> int:
    """Serve the report of `runs` until Ctrl-C; returns 0. A run that does not exist yet is waited for.

    `port` 0 is any that is free. `wait` returns when it is time to end; by default never.
    Raises `ConfigError` when the host is not this machine or the port is taken, `DataError` when a run is a file.
    """
    for run in runs:
        if reason := why_not(run):
            near = [] if run.exists() else difflib.get_close_matches(run.name, _runs_beside(run), n=1)
            hint = f" Did you mean {run.with_name(near[0])}?" if near else ""
            print(f"{run}: {reason}. Waiting for it.{hint}", flush=True)
    server = WatchServer(LiveReport(run_dirs=tuple(runs)), host=host, port=port)
    try:
        server.start()
        print(f"watching {', '.join(map(str, runs))} at {server.url}; end it with Ctrl-C", flush=True)
        if open_browser and not webbrowser.open(server.url):
            print("no browser was found: open the address yourself", flush=True)
        (wait or threading.Event().wait)()
    except KeyboardInterrupt:
        print("\nended", flush=True)
    finally:
        server.close()
    return 0


def _runs_beside(run: Path) -> list[str]:
    try:
        return [
            path.name for path in run.parent.iterdir() if (path / "config.toml").is_file() and path.name != run.name
        ]
    except OSError:
        return []


class WatchServer:
    """Answers requests about a `LiveReport`, and lets it keep up with its runs. `url` says where."""

    def __init__(self, report: LiveReport, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Raises `ConfigError` when the host is not this machine or the port is taken."""
        if not is_loopback(host):
            raise ConfigError(
                f"axpo watch: {host} is not this machine. There is no password, so it listens on 127.0.0.1 only; from "
                "elsewhere: ssh -L PORT:127.0.0.1:PORT."
            )
        self._report = report
        self._ended = threading.Event()
        try:
            self._http = _Listener((host, port), _handler(report))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"axpo watch: cannot listen at {host}:{port}: {error}.") from error
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.1,), name="axpo-watch-http", daemon=True),
            threading.Thread(target=report.keep_up, args=(self._ended,), name="axpo-watch-render", daemon=True),
        ]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_port}/"

    def start(self) -> None:
        """Listen and render, in threads of its own."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop listening. A page that is being rendered is given up: nobody waits for it."""
        self._ended.set()
        self._report.wake()
        if self._threads[0].is_alive():
            self._http.shutdown()
        self._http.server_close()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "evil.example", "")]
    [True, True, True, False, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_host(header: str) -> bool:
    """Whether a `Host` header names this machine: a page elsewhere whose name was turned to 127.0.0.1 does not.

    Any port is right, since a tunnel has its own.

    >>> [is_own_host(name) for name in ("localhost:1234", "127.0.0.1", "[::1]:80", "evil.example:80", "127.0.0.1:x")]
    [True, True, True, False, False]
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9.-]{1,60}))(?::[0-9]{1,5})?", header)
    return match is not None and is_loopback(match[1] or match[2])


class _Listener(ThreadingHTTPServer):
    """With a bound on its threads."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, unless too many are at work."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was lost is nobody's error."""
        _log.debug("connection of %s lost", client_address, exc_info=True)


def _handler(report: LiveReport) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S
        server_version, sys_version = "axpo", ""

        def do_GET(self) -> None:
            hosts = self.headers.get_all("Host", [])
            picture = _PICTURE.fullmatch(self.path)
            if len(hosts) != 1 or not is_own_host(hosts[0]):
                self._refuse(HTTPStatus.FORBIDDEN, "Ask for 127.0.0.1 or localhost.")
            elif self.path == "/":
                self._send(report.snapshot().page, "text/html; charset=utf-8", policy=_PAGE_POLICY)
            elif self.path == "/status":
                self._send(json.dumps(report.status()).encode(), "application/json")
            elif picture is not None:
                self._send_picture(picture[1])
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "There are /, /status and images.")

        do_HEAD = do_GET

        def _refuse_method(self) -> None:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "This only reads: GET and HEAD.", {"Allow": "GET, HEAD"})

        do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

        def _send_picture(self, sha256: str) -> None:
            found = read_picture(report.run_dirs, sha256)
            if found is None:
                self._refuse(HTTPStatus.NOT_FOUND, "No run has this image.")
            else:
                self._send(*found)

        def _refuse(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
            self._send(f"{text}\n".encode(), "text/plain; charset=utf-8", status=status, headers=headers)

        def _send(
            self,
            data: bytes,
            media_type: str,
            *,
            status: HTTPStatus = HTTPStatus.OK,
            policy: str = _OTHER_POLICY,
            headers: dict[str, str] | None = None,
        ) -> None:
            self.send_response(status)
            sizes = {"Content-Type": media_type, "Content-Length": str(len(data)), "Content-Security-Policy": policy}
            for name, value in {**_HEADERS, **sizes, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                for start in range(0, len(data), _PIECE_BYTES):  # the time limit holds for each piece
                    self.wfile.write(data[start : start + _PIECE_BYTES])

        def log_message(self, format: str, *args: Any) -> None:
            _log.debug(format, *args)

    return Handler
