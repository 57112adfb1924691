"""Trackers beside a run: what they do happens in threads of their own and can neither stop nor slow it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from axpo.diagnostics.health import Alarm
from axpo.errors import AxpoError
from axpo.files import write_atomically
from axpo.integrations.tracked_samples import SAMPLE_COLUMNS, TABLE_COLUMNS, read_samples
from axpo.protocols import TrackedRun, Tracker

MAX_WAITING = 256
"""Calls that wait for one tracker; what comes on top is dropped and counted."""

CLOSE_TIMEOUT_S = 30.0
"""How long the end of a run waits for all trackers together."""

_log = logging.getLogger(__name__)

Job = Callable[[Tracker], None]


class Tracking:
    """An `axpo.trainer.loop.Observer` that passes everything on to trackers. Use it as a context manager.

    The ids under which trackers know the run lie in `trackers.json` of its folder, so that a resumed run goes on there.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        folder: Path,
        config: Mapping[str, Any],
        first_step: int,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._ids = _Ids(folder / "trackers.json")
        self._close_timeout_s = close_timeout_s
        self._standing: set[str] = set()
        self._workers = [
            _Worker(name, tracker, self._run_for(name, config, first_step), self._ids)
            for name, tracker in trackers.items()
        ]

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status: Literal["finished", "failed", "interrupted"] = "finished"
        if kind is not None:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        deadline_s = time.monotonic() + self._close_timeout_s
        for worker in self._workers:
            worker.put_last(lambda tracker: tracker.finish(status))
        for worker in self._workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))

    def on_start(self, step: int) -> None:
        """Nothing: there is no number yet."""

    def on_step(self, step: int, metrics: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
        """Numbers, and alarms that did not stand at the step before."""
        self._put_numbers(step, metrics)
        for alarm in alarms:
            if alarm.name not in self._standing:
                self._put(_alarm_job(alarm))
        self._standing = {alarm.name for alarm in alarms}

    def on_eval(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers, a table of the held-out questions, a few dialogues with their pictures."""
        self._put_numbers(step, metrics)
        folder = self._folder

        def log_samples(tracker: Tracker) -> None:
            found = read_samples(folder, step)
            if not found.questions:
                return
            tracker.log_table(step, "eval/questions_table", TABLE_COLUMNS, found.questions)
            tracker.log_table(step, "eval/samples_table", SAMPLE_COLUMNS, found.dialogues)
            tracker.log_images(step, "eval/pictures", found.pictures)

        self._put(log_samples)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Nothing: a checkpoint stays where it is."""

    def _put_numbers(self, step: int, metrics: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        self._put(lambda tracker: tracker.log(step, numbers))

    def _put(self, job: Job) -> None:
        for worker in self._workers:
            worker.put(job)

    def _run_for(self, name: str, config: Mapping[str, Any], first_step: int) -> TrackedRun:
        return TrackedRun(
            id=self._ids.run_id,
            known_id=self._ids.known(name),
            folder=self._folder,
            config=config,
            first_step=first_step,
        )


def _alarm_job(alarm: Alarm) -> Job:
    text = f"{alarm.text} {alarm.advice}"
    return lambda tracker: tracker.log_alarm(alarm.step, name=alarm.name, level=alarm.level, text=text)


class _Ids:
    """What trackers call the run, on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            self.run_id = str(saved["id"])
            self._known = {str(name): str(value) for name, value in saved["trackers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the first start; or begin anew
            self.run_id, self._known = secrets.token_hex(4), dict[str, str]()
            self._save()

    def known(self, name: str) -> str | None:
        return self._known.get(name)

    def keep(self, name: str, value: str) -> None:
        with self._lock:
            self._known[name] = value
            self._save()

    def _save(self) -> None:
        write_atomically(self._path, [json.dumps({"id": self.run_id, "trackers": self._known}, indent=1)])


class _Worker:
    """One tracker, its thread and what waits for it."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, ids: _Ids) -> None:
        self._name = name
        self._tracker = tracker
        self._run = run
        self._ids = ids
        self._jobs: queue.Queue[tuple[Job, bool]] = queue.Queue(maxsize=MAX_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"axpo-tracker-{name}")
        self._is_off = False
        self._num_failed = 0
        self._num_dropped = 0

    def start(self) -> None:
        self._thread.start()

    def put(self, job: Job) -> None:
        if self._is_off:
            return
        try:
            self._jobs.put_nowait((job, False))
        except queue.Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                self._warn(f"{MAX_WAITING} calls wait for it, further ones are left out")

    def put_last(self, job: Job) -> None:
        with contextlib.suppress(queue.Empty):
            if self._jobs.full():  # only this thread puts: there is room afterwards
                self._jobs.get_nowait()
                self._num_dropped += 1
        self._jobs.put_nowait((job, True))

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn(f"did not finish in time; about {self._jobs.qsize() + 1} calls are lost")
        elif not self._is_off and (self._num_failed or self._num_dropped):
            self._warn(f"{self._num_failed} calls failed, {self._num_dropped} were left out")

    def _work(self) -> None:
        if not self._start_tracker():
            return
        is_last = False
        while not is_last:
            job, is_last = self._jobs.get()
            try:
                job(self._tracker)
            except Exception as error:
                self._num_failed += 1
                if self._num_failed == 1:
                    self._warn(f"{type(error).__name__}: {error}; further faults are counted, not told")

    def _start_tracker(self) -> bool:
        try:
            own_id = self._tracker.start(self._run)
            if own_id is not None:
                self._ids.keep(self._name, own_id)
        except Exception as error:
            kind = "" if isinstance(error, AxpoError) else f"{type(error).__name__}: "
            self._is_off = True
            self._warn(f"could not start: {kind}{error}; nothing is sent there")
            return False
        return True

    def _warn(self, text: str) -> None:
        _log.warning("tracker %s: %s. The run goes on; its folder holds everything.", self._name, text[:500])
