"""The fork server's process: has the scientific stack imported and forks an interpreter per request.

The trainer starts it with a hollow `axpo` package, so that nothing of the trainer is imported. Two processes: the outer
one enters the namespaces and waits, the inner one is pid 1 of the new pid namespace and serves. When the trainer dies,
in whatever way, the kernel kills the outer one, with it the inner one and with that all interpreters.

Arguments: the control socket, "1" to isolate, "1" to import the scientific stack, paths of further packages.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile

from axpo.tools.sandbox import interpreter, jail, kernel, scratch
from axpo.tools.sandbox.wire import FORKED, REFUSED, Limits

PRELOADED = (
    "matplotlib.pyplot",
    "mpl_toolkits.mplot3d",
    "numpy.random",
    "pandas",
    "PIL.Image",
    "PIL.ImageDraw",
    "PIL.ImageFont",
    "PIL.ImageOps",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "scipy.integrate",
    "scipy.interpolate",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
    "sympy",
    *("collections", "csv", "datetime", "decimal", "fractions", "itertools", "random", "re", "statistics", "typing"),
)


def main(arguments: list[str]) -> None:
    """Serve until the control socket closes. A failure to get there is reported on it as JSON."""
    control = socket.socket(fileno=int(arguments[0]))
    is_isolated, has_libraries = arguments[1] == "1", arguments[2] == "1"
    jail.die_with_parent()
    try:
        if is_isolated:
            jail.enter_namespaces()
            jail.die_with_parent()
        else:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # code that runs as the same user must not write into its memory
        inner = os.fork()
        if inner == 0:
            _Zygote(control, is_isolated=is_isolated).serve(arguments[3:], has_libraries=has_libraries)
    except (jail.IsolationError, ImportError, PermissionError) as error:
        kind = "isolation" if isinstance(error, jail.IsolationError) else "import"
        control.send(json.dumps({"kind": kind, "message": str(error)}).encode())
        os._exit(1)
    control.close()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)


class _Zygote:
    def __init__(self, control: socket.socket, *, is_isolated: bool) -> None:
        self._control = control
        self._is_isolated = is_isolated
        self._children: dict[int, tuple[int, str | None]] = {}
        """pid and folder to remove, by pidfd."""

    def serve(self, library_paths: list[str], *, has_libraries: bool) -> None:
        self._proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        if self._is_isolated:
            jail.build_root(library_paths)
            socket.sethostname("sandbox")
            jail.become_nobody()
            self._home = jail.WORK
        else:
            self._home = scratch.claim_folder()
        os.environ.update(HOME=self._home, MPLCONFIGDIR=self._home)
        jail.die_with_parent()  # changing the user id has cleared it
        sys.path += [path for path in library_paths if path not in sys.path]
        if has_libraries:
            _preload()
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._control.fileno():
                    self._reap(fd)
                elif not self._accept():
                    self._end()

    def _accept(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not message:
            return False
        with socket.socket(fileno=fds[0]) as answer:
            try:
                pidfd, channel = self._fork(Limits.from_bytes(message))
            except OSError as error:
                with contextlib.suppress(OSError):
                    answer.sendall(REFUSED + str(error).encode())
                return True
            with channel, contextlib.suppress(OSError):  # the trainer has given up on it
                socket.send_fds(answer, [FORKED], [pidfd, channel.fileno()])
        return True

    def _fork(self, limits: Limits) -> tuple[int, socket.socket]:
        """The pidfd of a new interpreter, and the trainer's end of its channel."""
        # A socket stays in the network namespace that made it, and one of the trainer's can read the machine's network
        # cards. This one is made in the namespace of the sandbox, which has none.
        outer, inner = socket.socketpair()
        folder = None if self._is_isolated else tempfile.mkdtemp(dir=self._home)
        if self._is_isolated:
            kernel.setns(self._pid_namespace, kernel.CLONE_NEWPID)  # a second unshare without it is refused
            kernel.unshare(kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            self._become_interpreter(limits, inner, folder)
        inner.close()
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, folder)
        self._poll.register(pidfd, select.POLLIN)
        return pidfd, outer

    def _become_interpreter(self, limits: Limits, channel: socket.socket, folder: str | None) -> None:
        try:
            jail.keep_open(channel.fileno(), self._proc_fd)
            if folder is not None:
                jail.die_with_parent()
                os.chdir(folder)
            jail.confine(limits, is_isolated=self._is_isolated)
        except BaseException as error:
            os.write(jail.CHANNEL_FD, REFUSED + f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        interpreter.run(jail.CHANNEL_FD, limits, folder or jail.WORK)

    def _end(self) -> None:
        """The kernel kills what lives in the pid namespace; without one, nobody else would, nor remove its folder."""
        if not self._is_isolated:
            for pidfd in list(self._children):
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                self._reap(pidfd)
            scratch.remove_folder(self._home)
        os._exit(0)

    def _reap(self, pidfd: int) -> None:
        pid, folder = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.waitpid(pid, 0)
        os.close(pidfd)
        if folder is not None:
            scratch.remove_folder(folder)


def _preload() -> None:
    """Import once what every interpreter shares; the garbage collector leaves it alone, so it stays shared."""
    import matplotlib

    matplotlib.use("Agg")
    for name in PRELOADED:
        importlib.import_module(name)
    interpreter.warm_up()
    gc.collect()
    gc.freeze()
