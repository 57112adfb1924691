"""The report of runs that are still being written: rendered anew beside the requests, when something changed.

Files are opened for reading only. Rendering takes at most a fifth of the time, at the lowest priority the system gives
a thread, and pauses while nobody looks: training goes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axpo.diagnostics.recorder import read_metrics
from axpo.errors import AxpoError, DataError
from axpo.reports.html import build_page
from axpo.reports.runs import check_is_run
from axpo.reports.shell import read_static, render_page
from axpo.reports.thumbnails import Found, Thumbnails

IMAGES = "images"
"""Under which full pictures are served."""
CHECK_S = 1.0
"""Between two looks at the folders."""
LOOKED_AT_S = 60.0
"""For so long after a request somebody is taken to look."""
REST = 4.0
"""Rest after rendering, in units of what it took."""
_NICENESS = 19
_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The newest page."""

    version: str
    page: bytes


@dataclass(slots=True, kw_only=True)
class LiveReport:
    """Pages about runs as they grow. `check` renders; all other members answer at once, from any thread."""

    run_dirs: Sequence[Path]
    poll_ms: int = 2000
    """How often a page asks for a newer one."""
    still_ms: int = 3000
    """A page changes once its reader has done nothing for so long."""
    clock: Callable[[], float] = time.monotonic
    _token: str = field(default_factory=lambda: secrets.token_hex(4))
    _count: int = 0
    _snapshot: Snapshot | None = None
    _awaited: str = ""
    _message: str = ""
    _finished: str = ""
    _seen: tuple[Fingerprint, ...] | None = None
    _not_before: float = 0.0
    _asked_at: float = 0.0
    _made: dict[str, Found] = field(default_factory=dict[str, Found])
    _wake: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._publish(self._waiting_page())
        self._asked_at = self.clock()

    def snapshot(self) -> Snapshot:
        """The newest page, for somebody who looks at it."""
        self._notice()
        assert self._snapshot is not None
        return self._snapshot

    def status(self) -> dict[str, str]:
        """Answer to a page that polls: newest `version`, `awaited` runs, a `message` when something is wrong, and
        whether all runs are `finished`: "yes" or empty.
        """
        version = self.snapshot().version
        return {"version": version, "awaited": self._awaited, "message": self._message, "finished": self._finished}

    def check(self) -> bool:
        """Render when files changed, somebody looks and the rest is over; says whether it did."""
        now = self.clock()
        if now < self._not_before or (self._seen is not None and now - self._asked_at > LOOKED_AT_S):
            return False
        seen = tuple(fingerprint(run_dir) for run_dir in self.run_dirs)
        if seen == self._seen:
            return False
        self._seen = seen
        self._render()
        done = self.clock()
        self._not_before = done + REST * (done - now)
        return True

    def keep_up(self, ended: threading.Event) -> None:
        """Check now and then, until `ended` and a `wake`."""
        with contextlib.suppress(OSError, AttributeError):  # of this thread and those it starts; Linux only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not ended.is_set():
            self.check()
            self._wake.wait(CHECK_S)
            self._wake.clear()

    def wake(self) -> None:
        """Let `keep_up` look at once."""
        self._wake.set()

    # -- rendering ----------------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        now = self.clock()
        was_alone = now - self._asked_at > LOOKED_AT_S
        self._asked_at = now
        if was_alone:
            self.wake()

    def _render(self) -> None:
        """What cannot be read leaves the page before as it is, and is told."""
        try:
            reasons = {run_dir: why_not(run_dir) for run_dir in self.run_dirs}
            ready = [run_dir for run_dir, why in reasons.items() if not why]
            page = self._report(ready) if ready else self._waiting_page()
        except (AxpoError, OSError) as error:
            self._message = str(error)
        except Exception as error:  # a file that nobody thought of must not end the watch
            _log.exception("the report could not be written")
            self._message = f"The report could not be written: {type(error).__name__}: {str(error)[:300]}"
        else:
            self._message = ""
            self._finished = "yes" if all(map(is_finished, self.run_dirs)) else ""
            self._awaited = "; ".join(f"{run_dir}: {why}" for run_dir, why in reasons.items() if why)
            self._publish(page)

    def _publish(self, page: str) -> None:
        self._snapshot = Snapshot(version=self._next_version(), page=page.encode("utf-8", "replace"))
        self._count += 1

    def _next_version(self) -> str:
        return f"{self._token}-{self._count}"

    def _live(self) -> dict[str, str | int]:
        return {"version": self._next_version(), "poll_ms": self.poll_ms, "still_ms": self.still_ms}

    def _report(self, run_dirs: Sequence[Path]) -> str:
        thumbnails = Thumbnails(folder=None, address=IMAGES, made=self._made)
        return build_page(run_dirs, thumbnails=thumbnails, live=self._live())

    def _waiting_page(self) -> str:
        states = [(run_dir, why_not(run_dir)) for run_dir in self.run_dirs]
        is_there = any(not why for _, why in states)
        return render_page(
            "waiting.html.j2",
            scripts=("page.js", "watch.js"),
            styles=[read_static("report.css")],
            data={"page": {"definitions": {}}, "live": self._live()},
            live=True,
            heading="Reading the run" if is_there else "Waiting for the first step",
            text="The report appears here by itself"
            + (" in a moment." if is_there else " once the run has written it."),
            runs=[(run_dir, why or "being read") for run_dir, why in states],
        )


def why_not(run_dir: Path) -> str:
    """Why a run cannot be shown yet; empty when it can. Raises `DataError` when it never will."""
    if run_dir.exists() and not run_dir.is_dir():
        raise DataError(f"{run_dir}: not a folder. Give the folder of a run, as `run.output_dir` names it.")
    check_is_run(run_dir)
    if not run_dir.exists():
        return "not there yet"
    try:
        if (run_dir / "metrics.jsonl").stat().st_size:
            return ""
    except OSError:
        pass
    if (run_dir / "config.toml").exists():
        return "has started, its first step is not written yet"
    return "no run directory yet: it has neither metrics.jsonl nor config.toml"


def is_finished(run_dir: Path) -> bool:
    """True when a run has recorded its last step and, if it has held-out questions, the evaluation after that step."""
    if why_not(run_dir):
        return False
    try:
        config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    steps = {record["kind"]: record["step"] for record in read_metrics(run_dir)}
    last: Any = config.get("train", {}).get("steps")
    if "train" not in steps:  # an evaluation by itself is recorded as a whole
        return "eval" in steps
    return steps["train"] == last and (not config.get("data", {}).get("eval") or steps.get("eval") == last)


def fingerprint(run_dir: Path) -> Fingerprint:
    """Name, size and time of every file that the report shows something of; they are not opened."""
    files = [run_dir / name for name in ("config.toml", "run.json", "metrics.jsonl")]
    found = [entry for path in files if (entry := _entry(path)) is not None]
    with contextlib.suppress(OSError), os.scandir(run_dir / "rollouts") as folder:
        found += [entry for one in folder if one.name.endswith(".jsonl") and (entry := _entry(one)) is not None]
    return tuple(sorted(found))


def _entry(path: Path | os.DirEntry[str]) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return path.name, status.st_size, status.st_mtime_ns
