"""Working folders of interpreters that are not isolated: on the machine's disk, so they have to be removed.

An isolated interpreter has a `tmpfs` of its own instead, which goes with its mount namespace. Like
`axpo.files.temporary_folder`, which the fork server does not use because it imports nothing of the trainer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

_PREFIX = "axpo-sandbox-"


def claim_folder() -> str:
    """Make a folder that is this process's until it ends, and remove those of processes that were killed.

    The claim is a lock on the folder, which the kernel releases when the process ends, however it ends.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its owner runs
            remove_folder(str(path))
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # stays open
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.exists(folder):  # or another process that starts took it for an abandoned one
            return folder
        os.close(fd)


def remove_folder(folder: str) -> None:
    """Remove what can be removed: the code may have left folders nested too deeply for `rmtree`."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Generator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)
