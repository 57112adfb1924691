"""Runs cells of code like a notebook: state stays, the last expression is echoed, output and errors become text."""

from __future__ import annotations

import ast
import builtins
import io
import linecache
import signal
import sys
import traceback
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

from axpo.tools.sandbox.pictures import Gallery
from axpo.tools.sandbox.wire import CellStatus, Limits

MAX_TRACEBACK_LINES = 60
_REPEAT_S = 0.1
"""The alarm rings again where code has swallowed the exception."""
_BUILTINS = dict(vars(builtins))


class CellTimeout(BaseException):
    """The cell ran for too long. Not an `Exception`, so that a general `except` does not swallow it."""


class CellRunner:
    """One namespace, one number per cell."""

    def __init__(self, gallery: Gallery, limits: Limits) -> None:
        self._gallery = gallery
        self._max_output_bytes = limits.max_output_chars
        self._module = ModuleType("__main__")
        self._module.__dict__.update(__builtins__=builtins, display=self._display)
        sys.modules["__main__"] = self._module
        sys.set_int_max_str_digits(0)  # digits of huge numbers are honest questions, and time is limited anyway
        self._output = BoundedBytes(self._max_output_bytes)
        self._num_cells = 0
        self._is_armed = False

    def run(self, code: str, timeout_s: float) -> tuple[CellStatus, str, bool]:
        """How it ended, what it printed (errors included), and whether a part of that or pictures were left out."""
        output = BoundedBytes(self._max_output_bytes)
        self._prepare(output)
        try:
            try:
                status = self._run_armed(code, timeout_s)
            finally:
                self._is_armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except CellTimeout:
            self._is_armed = False
            status = CellStatus.TIMED_OUT
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        self._gallery.close_figures()
        if self._gallery.num_left_out:
            output.write(f"\n[{self._gallery.num_left_out} more images left out]".encode())
        text = output.text()
        return status, text, output.is_cut or self._gallery.num_left_out > 0

    def _prepare(self, output: BoundedBytes) -> None:
        self._module.__dict__.update(_images=list(self._gallery.paths), _pil_images=list(self._gallery.images))
        self._output = output
        stream = io.TextIOWrapper(output, encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[arg-type]  # a raw stream will do
        sys.stdout = sys.stderr = stream
        signal.signal(signal.SIGALRM, self._on_alarm)
        self._num_cells += 1

    def _run_armed(self, code: str, timeout_s: float) -> CellStatus:
        """Everything that may call the user's code, formatting its exception included."""
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, timeout_s, _REPEAT_S)
        try:
            self._execute(code)
            self._gallery.show_figures()
        except CellTimeout:
            raise
        except SystemExit as error:
            if error.code in (None, 0):
                return CellStatus.DONE
            self._output.write(f"SystemExit: {error.code}".encode("utf-8", "backslashreplace"))
            return CellStatus.RAISED
        except BaseException as error:
            _update(_builtins, _BUILTINS)
            self._output.write(format_error(error).encode("utf-8", "backslashreplace"))
            return CellStatus.RAISED
        finally:
            _update(_builtins, _BUILTINS)  # what the code has changed must not change what follows
        return CellStatus.DONE

    def _execute(self, code: str) -> None:
        name = f"<cell {self._num_cells}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        body, echoed = compile_cell(code, name)
        namespace = self._module.__dict__
        exec(body, namespace)
        if echoed is not None:
            value = eval(echoed, namespace)
            if value is not None:
                namespace["_"] = value
                self._display(value)

    def _display(self, *values: Any) -> None:
        """Show pictures as pictures, everything else as its repr."""
        for value in values:
            if not self._gallery.is_picture(value):
                print(repr(value))
            elif not self._gallery.is_open(value):
                self._gallery.show(value)

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        if self._is_armed:
            raise CellTimeout


_builtins, _update = vars(builtins), dict[str, Any].update


def compile_cell(code: str, name: str) -> tuple[CodeType, CodeType | None]:
    """The statements, and the last one apart when it is an expression without a trailing semicolon."""
    tree = ast.parse(code, name)
    echoed = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        echoed = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
    return compile(tree, name, "exec", dont_inherit=True), echoed


def format_error(error: BaseException) -> str:
    """The traceback, with frames of cells only."""
    try:
        _forget_frames(error, set())
        lines = "".join(traceback.format_exception(error)).splitlines()
    except Exception as fault:  # of the exception's own methods, or of a library that the code has changed
        return f"{_name(error)} (its traceback cannot be shown: {_name(fault)})"
    if len(lines) > MAX_TRACEBACK_LINES:
        half = MAX_TRACEBACK_LINES // 2
        lines[half:-half] = [f"[... {len(lines) - 2 * half} lines left out ...]"]
    return "\n".join(lines)


def _name(error: BaseException) -> str:
    return type.__getattribute__(type(error), "__name__")


def _forget_frames(error: BaseException | None, seen: set[int]) -> None:
    """Cut frames of libraries and our own out of an exception and of those it came from."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames: list[TracebackType] = []
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename.startswith("<cell "):
                frames.append(trace)
            trace = trace.tb_next
        following = None
        for frame in reversed(frames):
            frame.tb_next, following = following, frame
        error.__traceback__ = following
        _forget_frames(error.__cause__, seen)
        error = error.__context__


class BoundedBytes(io.RawIOBase):
    """Keeps the beginning and the end of what is written, and counts what lies between."""

    def __init__(self, max_bytes: int) -> None:
        self._max_head, self._max_tail = max_bytes - max_bytes // 2, max_bytes // 2
        self._head, self._tail = bytearray(), bytearray()
        self._num_cut = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """Takes everything."""
        view = memoryview(data).cast("B")
        room = self._max_head - len(self._head)
        self._head += view[:room]
        rest = view[max(room, 0) :]
        kept = rest[max(0, len(rest) - self._max_tail) :]
        self._num_cut += len(rest) - len(kept)
        self._tail += kept
        if len(self._tail) > 2 * self._max_tail:  # not at every write: a program may print byte by byte
            self._cut_tail()
        return len(view)

    @property
    def is_cut(self) -> bool:
        """True once `text` has left something out."""
        return self._num_cut > 0

    def text(self) -> str:
        """What was kept, the cut marked."""
        self._cut_tail()
        if not self._num_cut:
            return (self._head + self._tail).decode("utf-8", "replace")
        head, tail = (part.decode("utf-8", "ignore") for part in (self._head, self._tail))
        return f"{head}\n[... {self._num_cut} bytes left out ...]\n{tail}"

    def _cut_tail(self) -> None:
        excess = len(self._tail) - self._max_tail
        if excess > 0:
            del self._tail[:excess]
            self._num_cut += excess


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except BaseException:  # the code's own stream, or one that it closed
        return
