"""The process of one rollout: reads a cell from its channel, runs it, writes text and pixels back, until killed."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable

from axpo.tools.sandbox.cells import CellRunner
from axpo.tools.sandbox.pictures import Gallery
from axpo.tools.sandbox.wire import CONFINED, REPLY, REPLY_IMAGE, Limits, Request, read_request

_read, _write = os.read, os.write


def run(channel_fd: int, limits: Limits, folder: str) -> None:
    """Serve one channel; never returns."""
    try:
        _settle(folder)
        gallery = Gallery(limits, folder)
        runner = CellRunner(gallery, limits)
        _write(channel_fd, CONFINED)
        while True:
            request = read_request(lambda size: _read_exactly(channel_fd, size))
            _write_all(channel_fd, _answer(runner, gallery, request))
    finally:
        os._exit(0)


def warm_up() -> None:
    """Before the fork: a first figure takes a tenth of a second, and what it loads is shared by all."""
    import matplotlib.pyplot as plt

    figure = plt.figure()
    figure.add_subplot().plot([0, 1])
    figure.canvas.draw()
    plt.close(figure)


def _settle(folder: str) -> None:
    os.environ.update(HOME=folder, TMPDIR=folder, MPLCONFIGDIR=folder)
    tempfile.tempdir = folder
    sys.argv = [""]
    random.seed(0)  # a replayed call gives what it gave
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(0)


def _answer(runner: CellRunner, gallery: Gallery, request: Request) -> bytes:
    for data, suffix in request.images:
        gallery.add_to_dialogue(data, suffix)
    status, text, is_cut = runner.run(request.code, request.timeout_s)
    text_bytes = text.encode("utf-8", "backslashreplace")
    shown = gallery.take_shown()
    heads = [REPLY_IMAGE.pack(width_px, height_px) for width_px, height_px, _ in shown]
    head = REPLY.pack(request.number, status, is_cut, len(text_bytes), len(shown))
    return b"".join([head, *heads, text_bytes, *(pixels for _, _, pixels in shown)])


def _read_exactly(fd: int, size: int, *, read: Callable[[int, int], bytes] = _read) -> bytes:
    parts: list[bytes] = []
    while size:
        part = read(fd, min(size, 2**20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[_write(fd, rest) :]
