"""The cache of answers when disks fill, files break and processes die; the rate limit by a clock of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from axpo.errors import ConfigError, ToolFault
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.search import cache as cache_module
from axpo.tools.search.cache import AnswerCache
from axpo.tools.search.http import TooManyRequests
from axpo.tools.search.rate import RateLimiter
from axpo.tools.search.service import Service

ROOT = Path(__file__).parents[2]


def context() -> ToolContext:
    return ToolContext(rollout_id="r", images=[], store=ContentImageStore())


def test_the_first_final_outcome_stands(tmp_path: Path) -> None:
    one, two = AnswerCache(tmp_path / "c.sqlite"), AnswerCache(tmp_path / "c.sqlite")
    request = {"query": "a", "n": 1}
    assert one.get(request) is None
    assert one.put(request, {"fault": "down"}, is_final=False) == {"fault": "down"}
    assert two.get({"n": 1, "query": "a"}) == ({"fault": "down"}, False)
    assert two.put(request, {"value": 1}, is_final=True) == {"value": 1}
    assert one.put(request, {"value": 2}, is_final=True) == {"value": 1}
    assert one.put(request, {"fault": "down"}, is_final=False) == {"value": 1}
    assert (one.get(request), one.get({"query": "b", "n": 1})) == (({"value": 1}, True), None)
    one.close()
    two.close()


def test_many_may_create_the_file_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def open_and_put(path: Path, number: int) -> None:
        barrier.wait()
        cache = AnswerCache(path)
        cache.put({"n": number}, number, is_final=True)
        assert cache.num_lost == 0
        cache.close()

    for repeat in range(25):
        path = tmp_path / f"{repeat}.sqlite"
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(open_and_put, [path] * 8, range(8)))
        cache = AnswerCache(path)
        assert [cache.get({"n": number}) for number in range(8)] == [(number, True) for number in range(8)]
        cache.close()


def test_a_full_disk_loses_no_answer_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service("search", cache=str(tmp_path / "c.sqlite"), cache_mode="record", max_requests=100)
    cache: Any = service._cache  # pyright: ignore[reportPrivateUsage]  # the disk is filled behind its back
    cache._writer.execute("PRAGMA max_page_count = 1")

    async def ask() -> str:
        return "x" * 50_000

    caplog.set_level(logging.WARNING)
    for number in range(3):
        assert asyncio.run(service.answer({"n": number}, ask, context())) == "x" * 50_000
    assert service.stats()["lost"] == 3
    assert [record.message.count("cannot be written") for record in caplog.records] == [1]
    cache._writer.execute("PRAGMA max_page_count = 100000")
    asyncio.run(service.answer({"n": 0}, ask, context()))
    again = context()
    asyncio.run(service.answer({"n": 0}, ask, again))
    assert again.is_cached
    service.close()


def test_a_locked_file_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_BUSY_TIMEOUT_S", 0.01)
    cache = AnswerCache(tmp_path / "c.sqlite")
    cache.put({"n": 0}, "stored", is_final=True)
    other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert cache.put({"n": 1}, "lost", is_final=True) == "lost"
    assert cache.get({"n": 0}) == ("stored", True)  # readers do not wait
    assert cache.reserve("search", 5)
    assert cache.num_lost == 1
    other.execute("COMMIT")
    other.close()
    assert cache.put({"n": 1}, "found", is_final=True) == "found" and cache.get({"n": 1}) == ("found", True)
    cache.close()


def test_a_read_of_a_locked_file_is_tried_again_instead_of_stopping_the_run(tmp_path: Path) -> None:
    class Locked:
        def execute(self, *_: Any) -> Any:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY | 1 << 8  # another process recovers the file
            raise error

    cache: Any = AnswerCache(tmp_path / "c.sqlite")
    reader, cache._reader = cache._reader, Locked()
    assert reader.execute("PRAGMA busy_timeout").fetchone() == (100,)  # the event loop waits that long at most
    with pytest.raises(ToolFault, match=r"c\.sqlite is locked") as caught:
        cache.get({"n": 0})
    assert caught.value.can_retry
    assert cache.put({"n": 0}, "found", is_final=True) == "found"
    cache._reader = reader
    assert cache.get({"n": 0}) == ("found", True)
    cache.close()


def not_sqlite(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to have a header" * 100)


def another_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE answers (a)")
    connection.commit()
    connection.close()


def torn(path: Path) -> None:
    cache = AnswerCache(path)
    for number in range(100):
        cache.put({"n": number}, "x" * 1000, is_final=True)
    cache.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


@pytest.mark.parametrize("damage", [not_sqlite, another_database, torn])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "c.sqlite"
    damage(path)
    with pytest.raises(ConfigError, match=rf"cache {path} cannot be read as a search cache: .*\. Restore it"):
        cache = AnswerCache(path)
        try:
            cache.get({"n": 5})
        finally:
            cache.close()


DAMAGE = [
    "outcome = '{'",
    "outcome = '{\"value\": 2}'",
    "outcome = '[]'",
    "outcome = CAST(x'22ff22' AS TEXT)",
    "outcome = 3",
    "request = '{}'",
    "is_final = 0",
    "is_final = 'x'",
    "digest = 'x'",
    "digest = x'ff'",
]


@pytest.mark.parametrize("change", DAMAGE)
def test_a_damaged_entry_is_asked_for_again_and_never_answers(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    cache = AnswerCache(path)
    for number in (4, 5, 6):
        cache.put({"n": number}, {"value": number}, is_final=True)
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE answers SET {change} WHERE request != '{{\"n\":4}}'")
    connection.commit()
    connection.close()
    replay = AnswerCache(path, must_exist=True)
    assert replay.get({"n": 4}) == ({"value": 4}, True)
    with pytest.raises(ConfigError, match=rf"cache {path}: the stored answer to .*5.* is damaged\. Restore the file"):
        replay.get({"n": 5})
    replay.close()
    caplog.set_level(logging.WARNING)
    cache = AnswerCache(path)
    assert cache.get({"n": 5}) is None and cache.get({"n": 6}) is None
    assert [f"cache {path} is damaged" in record.message for record in caplog.records] == [True]
    assert cache.put({"n": 5}, {"value": "new"}, is_final=True) == {"value": "new"}
    assert cache.get({"n": 5}) == ({"value": "new"}, True)
    cache.close()


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_give_a_wrong_answer(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "c.sqlite"
    cache = AnswerCache(path)
    for number in range(20):
        cache.put({"n": number}, {"value": f"answer {number}" * 20}, is_final=True)
    cache.close()
    data, random = bytearray(path.read_bytes()), Random(seed)
    for _ in range(20):
        data[random.randrange(100, len(data))] = random.randrange(256)
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        cache = AnswerCache(path)
        for number in range(20):
            with contextlib.suppress(ConfigError):
                assert cache.get({"n": number}) in (None, ({"value": f"answer {number}" * 20}, True))
            with contextlib.suppress(ConfigError):
                cache.put({"n": number}, {"value": "new"}, is_final=True)
                cache.reserve("search", 5)
                cache.release("search")
        cache.close()


def test_a_replay_creates_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.sqlite does not exist\. Record it first"):
        AnswerCache(tmp_path / "c.sqlite", must_exist=True)
    (tmp_path / "c.sqlite").touch()
    with pytest.raises(ConfigError, match="another format"):
        AnswerCache(tmp_path / "c.sqlite", must_exist=True)
    with pytest.raises(ConfigError, match="its folder does not exist"):
        AnswerCache(tmp_path / "no" / "c.sqlite")


def test_a_replay_may_read_from_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a #?% b.sqlite"
    cache = AnswerCache(path)
    cache.put({"n": 1}, "x", is_final=True)
    cache.close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    cache = AnswerCache(path, must_exist=True)
    assert cache.get({"n": 1}) == ("x", True)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]  # no -wal, no -shm
    cache.close()
    (tmp_path / f"{path.name}-wal").write_bytes(b"rest")
    with pytest.raises(ConfigError, match="was not closed, and its folder is read-only"):
        AnswerCache(path, must_exist=True)


KILLED = """
import sys
from axpo.tools.search.cache import AnswerCache
cache = AnswerCache(sys.argv[1])
for number in range(10**9):
    cache.put({"n": number}, "x" * 5000, is_final=True)
    print(number, flush=True)
"""


def test_an_answer_reported_as_stored_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    for repeat in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        assert process.stdout is not None
        reported = [int(process.stdout.readline()) for _ in range(200 * (repeat + 1))]
        process.send_signal(signal.SIGKILL)
        reported += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.stdout.close()
        process.wait()
        cache = AnswerCache(path, must_exist=True)
        assert all(cache.get({"n": number}) == ("x" * 5000, True) for number in reported)
        cache.close()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_mode": "offline"}, "cache_mode must be live, record or replay, got 'offline'"),
        ({"cache_mode": "record"}, "record and replay need a cache"),
        ({"cache": "c.sqlite"}, "live uses none"),
        ({"max_requests": 0}, "max_requests must be above 0, got 0"),
        ({"requests_per_second": -1.0}, "requests_per_second must be above 0"),
        ({"cost_per_request": -0.1}, "cost_per_request must not be negative"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Service("search", **options)


# -- rate -------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        await asyncio.sleep(0)
        self.now_s += seconds


def test_requests_are_spaced_evenly_in_order_of_the_calls() -> None:
    clock = Clock()
    limiter = RateLimiter(4.0, clock=clock, sleep=clock.sleep)

    async def burst() -> None:
        assert await asyncio.gather(*(limiter.wait() for _ in range(4))) == [0.0, 0.25, 0.5, 0.75]

    asyncio.run(burst())
    assert clock.slept == [0.25, 0.25, 0.25]
    clock.now_s += 10
    assert asyncio.run(limiter.wait()) == 0.0


def test_who_is_cancelled_while_waiting_gives_the_turn_up() -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        if len(clock.slept) == 0:
            clock.slept.append(seconds)
            await asyncio.Event().wait()  # until it is cancelled
        await clock.sleep(seconds)

    limiter = RateLimiter(0.01, clock=clock, sleep=sleep)

    async def main() -> None:
        await limiter.wait()
        abandoned = asyncio.create_task(limiter.wait())
        queued = asyncio.create_task(limiter.wait())
        while not clock.slept:
            await asyncio.sleep(0)
        abandoned.cancel()
        assert await queued == 100.0

    asyncio.run(main())


def test_a_pause_holds_up_those_who_wait_already() -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        if not clock.slept:
            limiter.pause(60.0)
        await clock.sleep(seconds)

    limiter = RateLimiter(1.0, clock=clock, sleep=sleep)

    async def main() -> None:
        await limiter.wait()
        assert await limiter.wait() == 60.0

    asyncio.run(main())


def test_without_a_rate_nobody_waits_until_the_service_asks_for_patience() -> None:
    clock = Clock()
    limiter = RateLimiter(None, clock=clock, sleep=clock.sleep)
    service = Service("search", limiter=limiter)

    async def too_many() -> str:
        raise TooManyRequests("HTTP 429", retry_after_s=7.0)

    with pytest.raises(ToolFault, match="HTTP 429"):
        asyncio.run(service.answer({}, too_many, context()))
    assert clock.slept == []

    async def works() -> str:
        return "fine"

    into = context()
    assert asyncio.run(service.answer({}, works, into)) == "fine"
    assert clock.slept == [7.0] and into.waited_s == 7.0
    service.close()
