"""Runs a command as an ordinary user: `python tests/ordinary_user.py COMMAND...`, as root.

Root becomes nobody inside the sandbox, an ordinary user stays who it is there. So only an ordinary user can own the
libraries that its sandbox shows, and the kernel lets an owner do more to a file than it lets others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from axpo.tools.sandbox import kernel

UID = 54_321
"""No account has to exist for it."""


def main(command: list[str]) -> None:
    """Become the user, then the command; never returns."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    open_closed_folders([sys.base_prefix, sys.prefix, str(Path(__file__).parents[1])])
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.execv(command[0], command)


def open_closed_folders(paths: list[str]) -> None:
    """Let everyone reach `paths` in this mount namespace, for example a Python below root's own home folder.

    A folder that others may not enter is covered with an empty one that contains only the way to those paths.
    """
    ways: dict[Path, list[tuple[Path, int]]] = {}
    for path in dict.fromkeys(Path(os.path.realpath(path)) for path in paths):
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if closed:
            ways.setdefault(closed[0], []).append((path, os.open(path, os.O_PATH)))
    for folder, targets in ways.items():
        kernel.mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
        for path, fd in targets:
            path.mkdir(parents=True)
            kernel.bind(f"/proc/self/fd/{fd}", str(path))


if __name__ == "__main__":
    main(sys.argv[1:])
