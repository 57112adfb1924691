"""What trainer, fork server and interpreter send each other: fixed binary layouts, lengths first.

Nothing that comes from an interpreter is parsed: a reply is numbers, text and raw RGB pixels. The code that runs there
can write any bytes it likes into the channel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from struct import Struct

REQUEST = Struct("<IdII")
"""Number of the call, timeout in seconds, bytes of code, pictures."""
REQUEST_IMAGE = Struct("<I8s")
"""Bytes of the encoded picture, its suffix."""
REPLY = Struct("<IB?II")
"""Number of the call, `CellStatus`, whether something was left out, bytes of text, pictures."""
REPLY_IMAGE = Struct("<II")
"""Width and height in pixels."""

FORKED, CONFINED, REFUSED = b"f", b"+", b"-"
"""`FORKED` is the fork server's answer to a request, with the pidfd of the interpreter and the trainer's end of its
channel. `CONFINED` is the first byte on that channel, sent when the interpreter is confined. `REFUSED` with a text
instead of either: there is no interpreter."""

MAX_BYTES_PER_CHAR = 4
MAX_ASPECT_RATIO = 200
"""A thinner picture is not shown: image preprocessing of vision-language models takes nothing beyond it."""


class CellStatus(IntEnum):
    """How a cell ended."""

    DONE = 0
    RAISED = 1
    TIMED_OUT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one interpreter may use."""

    memory_mb: int = 1024
    """Private memory on top of the preloaded libraries."""
    tmp_mb: int = 64
    max_threads: int = 16
    max_output_chars: int = 20_000
    max_images: int = 8
    max_image_px: int = 1280 * 32 * 32

    def to_bytes(self) -> bytes:
        """For the fork server."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Limits:
        """Inverse of `to_bytes`."""
        return cls(**json.loads(data))


def pack_request(number: int, code: str, timeout_s: float, images: Sequence[tuple[bytes, str]]) -> bytes:
    """A cell to run, with the pictures that are new in the dialogue (encoded bytes and suffix)."""
    code_bytes = code.encode("utf-8", "surrogatepass")
    heads = [REQUEST_IMAGE.pack(len(data), suffix.encode()[:8]) for data, suffix in images]
    head = REQUEST.pack(number, timeout_s, len(code_bytes), len(images))
    return b"".join([head, *heads, code_bytes, *(data for data, _ in images)])


@dataclass(frozen=True, slots=True)
class Request:
    """A cell to run, as the interpreter gets it."""

    number: int
    timeout_s: float
    code: str
    images: list[tuple[bytes, str]]


def read_request(read: Callable[[int], bytes]) -> Request:
    """`read(n)` returns exactly n bytes."""
    number, timeout_s, code_size, num_images = REQUEST.unpack(read(REQUEST.size))
    heads = [REQUEST_IMAGE.unpack(read(REQUEST_IMAGE.size)) for _ in range(num_images)]
    code = read(code_size).decode("utf-8", "surrogatepass")
    return Request(number, timeout_s, code, [(read(size), suffix.rstrip(b"\0").decode()) for size, suffix in heads])
