"""The program that `axpo.workers` starts: jobs on standard input, results on standard output.

It limits itself as well as its parent does: the kernel ends it when a job takes too much processor or wall-clock time,
even in the middle of one long C call and even when the parent is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

FRAME = struct.Struct(">Q")
"""Length of the JSON text that follows."""
OUT_OF_MEMORY = 77
"""Exit code of a worker that has used up its memory."""
STARTUP_CPU_S = 60.0
"""Processor time for importing the module of a job."""


def main() -> None:
    """Serve until standard input ends."""
    jobs, replies = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the libraries print must not become a result
    memory_bytes = int(sys.argv[1])
    with contextlib.suppress(ValueError, OSError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    while header := jobs.read(FRAME.size):
        request = json.loads(jobs.read(*FRAME.unpack(header)))
        reply = _run(request)
        _limit_time(0.0, 0.0)
        _send(replies, reply)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    try:
        _limit_time(STARTUP_CPU_S, 0.0)
        function = _find(request["job"])
        _limit_time(request["cpu_s"], request["wall_s"])
        return {"result": function(*request["args"])}
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what is left of the heap is not worth another job
    except Exception as error:
        return {"error": type(error).__name__, "args": [_plain(value) for value in error.args]}


def _find(job: str) -> Callable[..., Any]:
    module, _, name = job.partition(":")
    return getattr(importlib.import_module(module), name)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _limit_time(cpu_s: float, wall_s: float) -> None:
    """End this process after this much time unless called again; 0 lifts a limit.

    The signals keep their default action: a Python handler would wait for the current C call to return.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    try:
        data = json.dumps(reply).encode()
    except (TypeError, ValueError, RecursionError) as error:
        data = json.dumps({"error": type(error).__name__, "args": [str(error)[:200]]}).encode()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    replies.write(FRAME.pack(len(data)) + data)
    replies.flush()


if __name__ == "__main__":
    main()
