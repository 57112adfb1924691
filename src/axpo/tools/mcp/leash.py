"""Runs a command that must not outlive the program that asked for it: `python leash.py <parent pid> <command...>`.

A process of its own between trainer and MCP server, for what neither of them can do: when the trainer dies, even by
SIGKILL, the kernel tells this process, which kills the server and everything that the server started (`npx` and `uvx`
start the real server as a child). Standard library only; it is run as a file, without site packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
EXIT_NOT_STARTED = 127


def main(parent: int, command: list[str]) -> int:
    """Run the command to its end, or until the parent dies; its exit code."""
    signal.signal(signal.SIGTERM, _leave)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the server become children of this process
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        return EXIT_NOT_STARTED
    try:
        return subprocess.Popen(command).wait()
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return EXIT_NOT_STARTED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _kill_descendants()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _kill_descendants() -> None:
    """Kill until none is left: what starts a process while being killed leaves it to this one."""
    while descendants := _descendants(os.getpid()):
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name, in parentheses, may hold anything
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found = list(children[root])
    for pid in found:
        found += children[pid]
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
