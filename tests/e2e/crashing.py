"""Runs the command line and kills itself with SIGKILL at a chosen moment. `python crashing.py MOMENT COUNT -- ARGV`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(count: int) -> Callable[[], None]:
    """A function that returns `count - 1` times."""
    calls = iter(range(1, count + 1))

    def tick() -> None:
        if next(calls) == count:
            die()

    return tick


def arm(moment: str, count: int) -> None:
    """Die at the `count`-th time that `moment` comes."""
    tick = die_at(count)
    if moment == "backward":
        import torch

        backward = torch.autograd.backward

        def dying_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            # the innermost hook of the graph: gradients of some parameters exist, those of others do not
            loss.register_hook(lambda _: tick())
            backward(loss, *args, **kwargs)

        torch.autograd.backward = dying_backward
    elif moment == "fsync":
        # every file that must survive goes through here: rollouts, metrics, each file of a checkpoint, pointers
        fsync = os.fsync

        def dying_fsync(descriptor: int) -> None:
            tick()
            fsync(descriptor)

        os.fsync = dying_fsync
    elif moment == "rename":
        rename = Path.rename

        def dying_rename(path: Path, target: Any) -> Path:
            tick()
            return rename(path, target)

        Path.rename = dying_rename
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    from axpo.cli.main import main

    if sys.argv[1] != "never":
        arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[4:]))
