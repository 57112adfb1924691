"""Ending a command early: Ctrl-C, SIGTERM and SIGHUP end it cleanly, a second one ends it at once.

A clean end is a `KeyboardInterrupt` in the main thread, as Python makes of Ctrl-C; `Interrupts.hold` puts it off while
something must be finished that cannot be repeated or undone, such as an update of the weights.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import threading
from collections.abc import Generator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_OF_SIGNAL = 128
"""A shell reports a process that signal N ended with exit code 128 + N."""
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupts:
    """The signals of a command. Without `listen` it changes nothing, and `hold` holds nothing back."""

    def __init__(self) -> None:
        self._is_listening = False
        self._signum = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """Exit code of a command that a signal ended."""
        return _EXIT_OF_SIGNAL + self._signum

    @contextlib.contextmanager
    def listen(self) -> Generator[Interrupts]:
        """Turn SIGTERM and SIGHUP into a `KeyboardInterrupt` too, and end the process at the second signal.

        A signal that is ignored, as by nohup, stays ignored. Outside of the main thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        # SIGINT keeps Python's own handler: asyncio takes over no other one, and cancels its tasks in order
        known = {number: signal.signal(number, self._pass_on) for number in heard if number != signal.SIGINT}
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # A thread counts the signals: the main thread runs no Python while it is inside a library
        counter = threading.Thread(target=self._count, args=(reader,), daemon=True, name="axpo-signals")
        counter.start()
        self._is_listening = True
        try:
            yield self
        finally:
            self._is_listening = False
            signal.set_wakeup_fd(before)
            for number, handler in known.items():
                signal.signal(number, handler)
            os.close(writer)  # ends the thread
            counter.join(timeout=5)

    @contextlib.contextmanager
    def hold(self) -> Generator[None]:
        """Finish the block first: a signal that comes meanwhile interrupts at its end."""
        if not self._is_listening:
            yield
            return
        came: list[int] = []
        known = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, known)
        if came and callable(known):
            known(signal.SIGINT, None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do what Ctrl-C would do at this moment."""
        self._signum = signal.Signals(number)
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    @staticmethod
    def _count(reader: int) -> None:
        num_signals = 0
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] not in SIGNALS:
                    continue
                num_signals += 1
                if num_signals > 1:
                    _say("stopped at once")
                    os._exit(_EXIT_OF_SIGNAL + number[0])
                _leave_dead_terminal()
                _say("interrupted; ending in order. Ctrl-C or another signal stops at once.")


def _say(text: str) -> None:
    """Write a line past every buffer and lock: the main thread may hold them."""
    with contextlib.suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"\n{text}\n".encode())


def _leave_dead_terminal() -> None:
    """Point the outputs at nothing where their terminal was closed: writing to it would end the run with an error."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream)
                os.close(nothing)
