"""Processes for work on hostile text.

Checking arguments against a third party's schema, reading a web page or comparing two formulas can take forever or use
all memory, and most of it runs in C code that no exception interrupts. Such work runs in a worker process with limits
on processor time, wall-clock time, memory and the size of its result. A worker that exceeds a limit is killed, and the
next job gets a new one.

A job is a function of this package, named as `module:function`, which takes and returns JSON values. Jobs and results
travel as JSON, never as pickles: a process that read hostile text may have been taken over by it. The process is
started as a program of its own (`axpo.worker_process`) because a fork of a process with threads can deadlock.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

from axpo import errors
from axpo.errors import AxpoError, ToolFault, UserError
from axpo.worker_process import FRAME, OUT_OF_MEMORY

WALL_PER_CPU_SECOND = 10.0
"""Wall-clock limit of a job without a limit of its own: machines are busy."""
START_TIMEOUT_S = 60.0
GRACE_S = 1.0
"""Time for a worker to end itself before it is killed from outside."""
MAX_RESULT_BYTES = 64_000_000
TOO_LONG = "it takes too long"
_REASONS = {
    -signal.SIGPROF: TOO_LONG,
    -signal.SIGALRM: TOO_LONG,
    OUT_OF_MEMORY: "it needs too much memory",
}
"""Exit code of a worker that exceeded one of its own limits."""
_PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT", "VIRTUAL_ENV")
"""Environment variables that a worker gets: the whole environment contains keys and tokens."""


class WorkError(AxpoError):
    """A job gave no result: it exceeded a limit, crashed, or raised. Its input is to blame, not the machine."""


class WorkerPool:
    """Up to `size` worker processes, started when they are needed. Safe to call from any thread.

    `memory_bytes` limits the address space of one worker.
    """

    def __init__(self, *, size: int = 2, memory_bytes: int = 2 * 2**30) -> None:
        self._size = size
        self._memory_bytes = memory_bytes
        self._forget()
        _pools.add(self)

    def run(self, job: str, *args: Any, cpu_s: float, wall_s: float | None = None) -> Any:
        """The result of a job. Blocks; waits for a free worker first.

        Raises `WorkError` when the job exceeds a limit, crashes its worker twice or raises an exception; a `UserError`
        and an `ImportError` are raised as they are. Raises `ToolFault` when no worker can be started, and what
        `json.dumps` raises for arguments that are no JSON.
        """
        wall_s = WALL_PER_CPU_SECOND * cpu_s if wall_s is None else wall_s
        request = json.dumps({"job": job, "args": args, "cpu_s": cpu_s, "wall_s": wall_s}).encode()
        worker = self._take()
        try:
            for _ in range(2):  # someone else may have killed an idle worker
                worker = worker or _Worker(self._memory_bytes)
                try:
                    reply = worker.ask(job, request, wall_s)
                except _LostError as error:
                    worker = None
                    if error.reason:
                        raise WorkError(error.reason) from error
                else:
                    return _unwrap(reply)
            raise WorkError("it crashed the process that worked on it")
        except OSError as error:
            raise ToolFault(f"a worker process cannot be started: {error}") from error
        finally:
            self._give_back(worker)

    def close(self) -> None:
        """End the idle workers; the next job starts another."""
        with self._condition:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def _take(self) -> _Worker | None:
        """A free worker, or None where a new one may be started."""
        with self._condition:
            self._condition.wait_for(lambda: self._num_taken < self._size)
            self._num_taken += 1
            return self._idle.pop() if self._idle else None

    def _give_back(self, worker: _Worker | None) -> None:
        with self._condition:
            self._num_taken -= 1
            if worker is not None and not worker.has_ended:
                self._idle.append(worker)
            self._condition.notify()

    def _forget(self) -> None:
        self._condition = threading.Condition()
        self._idle: list[_Worker] = []
        self._num_taken = 0

    def forget_parent(self) -> None:
        """Start over in a forked child: two processes must not share one pair of pipes."""
        for worker in self._idle:
            worker.close_pipes()
        self._forget()


class _LostError(Exception):
    """The worker had to be ended, or ended by itself. `reason`: the limit that the job exceeded, if it was one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Worker:
    """One process. Used by one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        self.has_ended = False
        self._known_jobs: set[str] = set()
        self._deadline_s = 0.0
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        # numpy reserves address space for each thread of its linear algebra
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            # -P: the current folder may hold a file that hides a module of the standard library
            [sys.executable, "-P", "-X", "utf8", "-m", "axpo.worker_process", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)  # a worker that does not read must not hold up the caller

    def ask(self, job: str, request: bytes, wall_s: float) -> dict[str, Any]:
        """The reply. Raises `_LostError`; the process has ended then."""
        # the first job of a kind imports what it needs before its limits start
        start_s = 0.0 if job in self._known_jobs else START_TIMEOUT_S
        self._deadline_s = time.monotonic() + wall_s + GRACE_S + start_s
        try:
            self._write(FRAME.pack(len(request)) + request)
            (size,) = FRAME.unpack(self._read(FRAME.size))
            if size > MAX_RESULT_BYTES:
                self.end()
                raise _LostError("its result is too large")
            reply = json.loads(self._read(size))
        except TimeoutError as error:
            self.end()
            raise _LostError(TOO_LONG) from error
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise _LostError(_REASONS.get(self.end(patience_s=1.0), "")) from error
        except BaseException:  # an interrupt: a late reply must not be read as that of the next job
            self.end()
            raise
        self._known_jobs.add(job)
        return reply

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._stdin.fileno(), select.POLLOUT)
            rest = rest[os.write(self._stdin.fileno(), rest) :]

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._stdout.fileno(), select.POLLIN)
            chunk = os.read(self._stdout.fileno(), min(size - len(data), 2**20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def _wait(self, file: int, event: int) -> None:
        poll = select.poll()
        poll.register(file, event)
        if not poll.poll(max(0.0, 1000 * (self._deadline_s - time.monotonic()))):
            raise TimeoutError

    def end(self, *, patience_s: float = 0.0) -> int:
        """End the process, which gets this long to end by itself. Returns its exit code, or minus the signal."""
        self.has_ended = True
        self.close_pipes()
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close_pipes(self) -> None:
        """Let go of the process."""
        self._stdin.close()
        self._stdout.close()


def _unwrap(reply: dict[str, Any]) -> Any:
    if "result" in reply:
        return reply["result"]
    name, args = str(reply["error"]), reply["args"]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, UserError):
        raise kind(*args)
    if name in ("ImportError", "ModuleNotFoundError"):
        raise ImportError(*args)
    raise WorkError(f"{name}: {' '.join(map(str, args))[:200]}")


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _for_each_pool(method: str) -> None:
    for pool in list(_pools):
        getattr(pool, method)()


os.register_at_fork(after_in_child=lambda: _for_each_pool("forget_parent"))
atexit.register(lambda: _for_each_pool("close"))

text_workers = WorkerPool()
"""Workers for schemas, pages and files."""
