"""Worker processes for hostile text: whatever a job does, its limits end it and the next job works."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from axpo.errors import DataError, ToolFault
from axpo.workers import WorkerPool, WorkError

JOBS = """
import os, signal, sys, time
from axpo.errors import DataError

def echo(value): return value
def loop_in_c(): return (2**100_000_000) ** 3 % 7 + sum(range(10**12))
def sleep(seconds): time.sleep(seconds)
def allocate(): return len("a" * 2**33)
def allocate_bit_by_bit():
    kept = []
    while True: kept.append(bytearray(2**20))
def answer_at_length(): return "a" * 100_000
def crash(): os.abort()
def crash_once(marker):
    if os.path.exists(marker): return "survived"
    open(marker, "w").close()
    os.abort()
def fail(): raise ValueError("no such bird")
def refuse(): raise DataError("row 3 is wrong")
def speak(): print("noise"); return "signal"
def recurse(): return recurse()
def deep():
    value = []
    for _ in range(100_000): value = [value]
    return value
def look(): return dict(os.environ)
def import_nothing(): import no_such_module
"""


@pytest.fixture(scope="module", autouse=True)
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "worker_jobs.py").write_text(JOBS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(size=1, memory_bytes=2**30)
    yield pool
    pool.close()


def run(pool: WorkerPool, job: str, *args: Any, cpu_s: float = 0.3, **limits: Any) -> Any:
    return pool.run(f"worker_jobs:{job}", *args, cpu_s=cpu_s, **limits)


@pytest.mark.parametrize("value", [None, 3, "ü\ud800\0", {"a": [1.5, True, {}]}, "a" * 3_000_000])
def test_values_pass_both_ways(pool: WorkerPool, value: Any) -> None:
    assert run(pool, "echo", value) == value


@pytest.mark.parametrize(
    ("job", "args", "reason"),
    [
        ("loop_in_c", [], "it takes too long"),
        ("allocate", [], "it needs too much memory"),
        ("allocate_bit_by_bit", [], "it needs too much memory|it takes too long"),
        ("crash", [], "it crashed the process that worked on it"),
        ("fail", [], "ValueError: no such bird"),
        ("recurse", [], "RecursionError"),
        ("deep", [], "RecursionError"),
    ],
)
def test_a_job_that_does_harm_ends_and_the_next_one_works(pool: WorkerPool, job: str, args: Any, reason: str) -> None:
    with pytest.raises(WorkError, match=reason):
        run(pool, job, *args)
    assert run(pool, "echo", 1) == 1


def test_a_job_that_sleeps_ends_at_its_wall_clock_limit(pool: WorkerPool) -> None:
    run(pool, "echo", 1)
    started_s = time.monotonic()
    with pytest.raises(WorkError, match="it takes too long"):
        run(pool, "sleep", 60, wall_s=0.3)
    assert time.monotonic() - started_s < 10


def test_a_worker_that_ignores_its_own_limit_is_killed_from_outside(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axpo.workers.GRACE_S", 0.0)
    monkeypatch.setattr("axpo.workers.START_TIMEOUT_S", 0.0)
    run(pool, "echo", 1, wall_s=10)
    (worker,) = cast("Any", pool)._idle
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(WorkError, match="it takes too long"):
        run(pool, "echo", 1, wall_s=0.2)
    assert run(pool, "echo", 1, wall_s=10) == 1


def test_an_interrupt_ends_the_job_at_once(pool: WorkerPool) -> None:
    run(pool, "echo", 1)
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(pool, "sleep", 60, cpu_s=60.0)
    assert time.monotonic() - started_s < 10
    assert run(pool, "echo", 2) == 2


def test_a_result_beyond_the_limit_is_not_read(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axpo.workers.MAX_RESULT_BYTES", 1000)
    with pytest.raises(WorkError, match="its result is too large"):
        run(pool, "answer_at_length")
    assert run(pool, "echo", 1) == 1


def test_a_crash_that_happens_once_is_tried_again(pool: WorkerPool, tmp_path: Path) -> None:
    assert run(pool, "crash_once", str(tmp_path / "marker")) == "survived"


def test_a_worker_killed_while_idle_is_replaced(pool: WorkerPool) -> None:
    run(pool, "echo", 1)
    (worker,) = cast("Any", pool)._idle
    worker._process.kill()
    worker._process.wait()
    assert run(pool, "echo", 2) == 2


def test_errors_of_the_user_pass_as_they_are(pool: WorkerPool) -> None:
    with pytest.raises(DataError, match="row 3 is wrong"):
        run(pool, "refuse")
    with pytest.raises(ImportError, match="no_such_module"):
        run(pool, "import_nothing")


def test_what_a_library_prints_is_no_result(pool: WorkerPool) -> None:
    assert run(pool, "speak") == "signal"


def test_a_worker_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXPO_SECRET", "s3cret")
    pool = WorkerPool(size=1)
    try:
        assert "s3cret" not in run(pool, "look").values()
    finally:
        pool.close()


def test_more_threads_than_workers_wait_for_each_other(pool: WorkerPool) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(run(pool, "echo", n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(results) == list(range(8))


def test_a_worker_that_cannot_be_started_is_an_infrastructure_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ToolFault, match="a worker process cannot be started"):
        run(WorkerPool(), "echo", 1)


def test_a_forked_child_starts_a_worker_of_its_own(pool: WorkerPool) -> None:
    run(pool, "echo", 1)
    (worker,) = cast("Any", pool)._idle
    if not (child := os.fork()):
        is_right = run(pool, "echo", 2) == 2 and cast("Any", pool)._idle[0]._process.pid != worker._process.pid
        pool.close()
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert run(pool, "echo", 3) == 3 and cast("Any", pool)._idle == [worker]


def test_a_job_costs_about_a_millisecond(pool: WorkerPool) -> None:
    run(pool, "echo", 1)
    started_s = time.monotonic()
    for _ in range(50):
        run(pool, "echo", {"a": 1})
    assert (time.monotonic() - started_s) / 50 < 0.02
