"""The trainer's side: starts the fork server, gets interpreters from it, talks to them and trusts nothing they say."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from axpo.errors import ConfigError, ToolFault
from axpo.tools.sandbox.isolation import how_to_isolate
from axpo.tools.sandbox.wire import (
    CONFINED,
    FORKED,
    MAX_ASPECT_RATIO,
    MAX_BYTES_PER_CHAR,
    REFUSED,
    REPLY,
    REPLY_IMAGE,
    CellStatus,
    Limits,
    pack_request,
)

GRACE_S = 1.0
"""How long code may take to react to the exception that ends it before its process is killed."""
START_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
_SLACK_CHARS = 2000
"""Marks of cuts and notes, on top of the bounded output."""
_PACKAGE_FOLDER = Path(__file__).parent
_BOOT = """
import sys, types
for name, folder in (("axpo", {axpo!r}), ("axpo.tools", {tools!r}), ("axpo.tools.sandbox", {sandbox!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from axpo.tools.sandbox.zygote import main
main(sys.argv[1:])
"""
"""Hollow packages: the interpreters must not carry what the real ones import."""
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",  # or every thread reserves 64 MB of what is limited
    "MPLBACKEND": "Agg",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
}
"""All that the code gets to see of an environment: nothing of the trainer's."""


class InterpreterLost(Exception):
    """The interpreter died or sent what no interpreter of ours sends; the code that it ran is to blame."""


class InterpreterTimeout(Exception):
    """The code went on after its timeout; its interpreter is dead."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one cell gave."""

    status: CellStatus
    text: str
    images: list[tuple[int, int, bytes]]
    """Width and height in pixels, RGB bytes row by row."""
    is_cut: bool
    """Output or pictures beyond the limits were left out."""


class SandboxServer:
    """One fork server, started at the first `spawn` (or `start`), replaced when it has died or does not answer.

    Use it from one event loop at a time. With `is_isolated=False` the interpreters are separate processes with limits
    on memory, files and system calls, but see the machine's files.
    """

    def __init__(self, *, is_isolated: bool = True, has_libraries: bool = True) -> None:
        self._is_isolated = is_isolated
        self._has_libraries = has_libraries
        self._control: socket.socket | None = None
        self._keeper: _Keeper | None = None
        self._interpreters: WeakSet[Interpreter] = WeakSet()

    def start(self) -> None:
        """Start the process unless it runs; it gets ready in the background."""
        if self._control is not None:
            return
        if sys.platform != "linux":
            raise ConfigError("tool python: needs Linux. Run it there, or leave the tool out.")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._keeper = _Keeper(self._command(theirs.fileno()), _ENVIRONMENT, theirs.fileno())

    async def spawn(self, limits: Limits) -> Interpreter:
        """A fresh interpreter, ready for its first cell.

        Takes at most `START_TIMEOUT_S`. Raises `ConfigError` when this machine cannot isolate or a library is missing,
        `ToolFault` when the fork server failed; the next `spawn` starts another one where that may help.
        """
        control = self._open_control()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with ours:
                async with asyncio.timeout(START_TIMEOUT_S):
                    with theirs:
                        await _send_request(control, limits, theirs)
                    interpreter = await _receive_interpreter(ours, limits)
        except (TimeoutError, InterpreterLost, OSError) as error:
            if isinstance(error, TimeoutError) and control is self._control:
                self._abandon()
            reason = str(error) or f"no answer within {START_TIMEOUT_S:g} s"
            raise self._explain(reason) from error
        if control is self._control:  # or its fork server has been abandoned meanwhile
            self._interpreters.add(interpreter)
        return interpreter

    def has_lost(self, interpreter: Interpreter) -> bool:
        """True when the fork server of an interpreter has ended, and the interpreter with it.

        In time: the fork server closes its socket before the kernel kills its interpreters.
        """
        return interpreter not in self._interpreters or not self._is_alive

    def close(self) -> None:
        """End the fork server and every interpreter; returns when they are gone."""
        for interpreter in list(self._interpreters):
            interpreter.kill()
        if self._control is not None:
            self._control.close()
        if self._keeper is not None:
            self._keeper.end()
        self._interpreters.clear()
        self._control = self._keeper = None

    @property
    def _is_alive(self) -> bool:
        return self._control is not None and self._read_report() is None

    def _abandon(self) -> None:
        """Kill a fork server that hangs, or forget a dead one. The kernel ends its interpreters; calls that wait for
        them find the end of their channel.
        """
        if self._control is not None:
            self._control.close()
        if self._keeper is not None:
            self._keeper.kill()
        self._interpreters.clear()
        self._control = self._keeper = None

    def _command(self, control_fd: int) -> list[str]:
        boot = _BOOT.format(
            axpo=str(_PACKAGE_FOLDER.parents[1]), tools=str(_PACKAGE_FOLDER.parent), sandbox=str(_PACKAGE_FOLDER)
        )
        packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        flags = [str(int(flag)) for flag in (self._is_isolated, self._has_libraries)]
        return [sys.executable, "-s", "-P", "-B", "-c", boot, str(control_fd), *flags, *packages]

    def _open_control(self) -> socket.socket:
        """The control socket of a fork server that lives."""
        if self._control is not None and not self._is_alive:
            fault = self._explain("")
            if isinstance(fault, ConfigError):
                raise fault
            self._abandon()
        self.start()
        assert self._control is not None
        return self._control

    def _read_report(self) -> dict[str, str] | None:
        """What the fork server says of itself; it only does when it ends. None: it lives."""
        assert self._control is not None
        for _ in range(2):
            try:
                return json.loads(self._control.recv(4096, socket.MSG_PEEK) or b"{}")
            except BlockingIOError:
                return None
            except ConnectionResetError:  # it has left requests unread; its report lies behind this error
                continue
        return {}

    def _explain(self, reason: str) -> ConfigError | ToolFault:
        """Whose fault it is that there is no interpreter."""
        report = self._read_report() if self._control is not None else {}
        if report and report["kind"] == "import":
            advice = (
                "Run `pip install numpy scipy sympy pandas`; where you are root, everybody must be able to read them."
            )
            return ConfigError(f"tool python: {report['message']}. {advice}")
        if report:
            return ConfigError(f"tool python: {how_to_isolate(report['message'])}")
        last_words = self._keeper.last_words() if self._keeper is not None and report is not None else ""
        return ToolFault(f"tool python: no interpreter: {reason}. {last_words}".strip())


class _Keeper:
    """Starts a process from a thread that lives as long as the process: its parent-death signal watches a thread."""

    def __init__(self, command: list[str], environment: dict[str, str], control_fd: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._last_lines: deque[bytes] = deque(maxlen=5)
        self._is_started = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(command, environment, control_fd), daemon=True, name="axpo-sandbox-keeper"
        )
        self._thread.start()
        self._is_started.wait()
        if self._error is not None:
            raise ToolFault(f"tool python: cannot start {command[0]}: {self._error}") from self._error

    def _keep(self, command: list[str], environment: dict[str, str], control_fd: int) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[control_fd],
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._is_started.set()
        self._process = process
        with process:
            assert process.stderr is not None
            self._last_lines.extend(process.stderr)

    def last_words(self) -> str:
        """The end of what a dead process printed."""
        self._thread.join(_CLOSE_TIMEOUT_S)
        return b"".join(self._last_lines).decode("utf-8", "replace")

    def kill(self) -> None:
        """End the process now; its thread reaps it."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Wait for the process, whose control socket is closed; kill it when it takes too long."""
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self.kill()
            self._thread.join(_CLOSE_TIMEOUT_S)


class Interpreter:
    """One process, for one rollout. Between cells it is stopped, so that its threads burn nothing."""

    def __init__(self, channel: socket.socket, pidfd: int, limits: Limits) -> None:
        self._channel = channel
        self._pidfd = pidfd
        self._limits = limits
        self._num_cells = 0
        self._is_dead = False

    @property
    def num_cells(self) -> int:
        """Cells that ended."""
        return self._num_cells

    @property
    def is_dead(self) -> bool:
        """True after `kill`, and after every exception of `execute`."""
        return self._is_dead

    async def execute(self, code: str, timeout_s: float, images: Sequence[tuple[bytes, str]] = ()) -> CellResult:
        """Run a cell; `images` are new in the dialogue (encoded bytes, suffix).

        Raises `InterpreterTimeout` and `InterpreterLost`; after these, and when it is cancelled, the process is dead.
        """
        number = self._num_cells + 1
        try:
            self._signal(signal.SIGCONT)
            async with asyncio.timeout(timeout_s + GRACE_S):
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(self._channel, pack_request(number, code, timeout_s, images))
                result = await self._read_reply(number)
            self._signal(signal.SIGSTOP)
        except BaseException as error:
            self.kill()
            if isinstance(error, TimeoutError):
                raise InterpreterTimeout from error
            if isinstance(error, OSError):
                raise InterpreterLost("it ended") from error
            raise
        self._num_cells = number
        return result

    def kill(self) -> None:
        """End the process; calling it again does nothing."""
        if self._is_dead:
            return
        self._is_dead = True
        with contextlib.suppress(OSError):
            self._signal(signal.SIGKILL)
        os.close(self._pidfd)
        self._channel.close()

    def __del__(self) -> None:
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    async def _read_reply(self, number: int) -> CellResult:
        """Every length is checked before anything of that length is allocated."""
        got_number, status, is_cut, text_size, num_images = REPLY.unpack(await _read_exactly(self._channel, REPLY.size))
        max_text_bytes = (self._limits.max_output_chars + _SLACK_CHARS) * MAX_BYTES_PER_CHAR
        if got_number != number or status > max(CellStatus) or text_size > max_text_bytes:
            raise InterpreterLost("it sent a broken reply")
        if num_images > self._limits.max_images:
            raise InterpreterLost(f"it sent {num_images} images")
        sizes = [REPLY_IMAGE.unpack(await _read_exactly(self._channel, REPLY_IMAGE.size)) for _ in range(num_images)]
        for width_px, height_px in sizes:
            if not self._is_acceptable(width_px, height_px):
                raise InterpreterLost(f"it sent an image of {width_px}x{height_px} px")
        text = printable(await _read_exactly(self._channel, text_size))
        images = [(w, h, await _read_exactly(self._channel, 3 * w * h)) for w, h in sizes]
        return CellResult(CellStatus(status), text, images, is_cut=is_cut)

    def _is_acceptable(self, width_px: int, height_px: int) -> bool:
        short_px, long_px = sorted((width_px, height_px))
        return (
            short_px > 0 and long_px <= MAX_ASPECT_RATIO * short_px and short_px * long_px <= self._limits.max_image_px
        )


def printable(data: bytes) -> str:
    """Text that a tokenizer can take: valid Unicode, control characters other than tab and newline spelled out."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_CONTROL_CHARACTERS)


_CONTROL_CHARACTERS = {number: f"\\x{number:02x}" for number in [*range(32), *range(127, 160)] if number not in (9, 10)}


async def _send_request(control: socket.socket, limits: Limits, answer: socket.socket) -> None:
    """Requests wait in the socket while the fork server is starting; some hundreds fit."""
    while control.fileno() >= 0:
        try:
            socket.send_fds(control, [limits.to_bytes()], [answer.fileno()])
            return
        except BlockingIOError:
            await asyncio.sleep(0.01)
    raise InterpreterLost("the fork server ended")


async def _receive_interpreter(answer: socket.socket, limits: Limits) -> Interpreter:
    """Wait for the fork server's answer, then for the interpreter's own word that it is confined."""
    await _wait_readable(answer)
    word, fds, _, _ = socket.recv_fds(answer, 1, 2, socket.MSG_CMSG_CLOEXEC)
    if word != FORKED:
        raise await _refusal(word, answer)
    if len(fds) < 2:  # the kernel drops what this process has no room for
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    pidfd, channel = fds[0], socket.socket(fileno=fds[1])
    channel.setblocking(False)
    interpreter = Interpreter(channel, pidfd, limits)
    try:
        word = await _read_some(channel, 1)
        if word != CONFINED:
            raise await _refusal(word, channel)
    except BaseException:
        interpreter.kill()
        raise
    return interpreter


async def _refusal(word: bytes, sender: socket.socket) -> InterpreterLost:
    if word == REFUSED:
        return InterpreterLost((await _read_some(sender, 1000)).decode("utf-8", "replace"))
    return InterpreterLost("the fork server ended")


async def _wait_readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_readable = loop.create_future()
    loop.add_reader(channel, lambda: is_readable.done() or is_readable.set_result(None))
    try:
        await is_readable
    finally:
        loop.remove_reader(channel)


async def _read_some(channel: socket.socket, max_bytes: int) -> bytes:
    return await asyncio.get_running_loop().sock_recv(channel, max_bytes)


async def _read_exactly(channel: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, loop = memoryview(buffer), asyncio.get_running_loop()
    while view:
        num_bytes = await loop.sock_recv_into(channel, view)
        if num_bytes == 0:
            raise InterpreterLost("it ended")
        view = view[num_bytes:]
    return bytes(buffer)
