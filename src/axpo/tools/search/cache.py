"""Answers of paid services on disk: asked once, replayed for ever, shared by processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path

from axpo.errors import ConfigError, ToolFault
from axpo.types import JsonValue

_FORMAT = 2
_BUSY_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 0.1
"""Reads hold up the event loop; who finds the file locked comes again."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, outcome TEXT NOT NULL, is_final INTEGER NOT NULL, unix_time_s REAL,
    digest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS requests (service TEXT PRIMARY KEY, sent INTEGER NOT NULL);
"""
# as bytes: text that damage made invalid cannot be read as text
_COLUMNS = "CAST(request AS BLOB), CAST(outcome AS BLOB), CAST(is_final AS BLOB)"
_GET = f"SELECT {_COLUMNS}, CAST(digest AS BLOB) FROM answers WHERE key = ?"
# a final entry stays, unless it is damaged
_PUT = f"""
INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
SET request = excluded.request, outcome = excluded.outcome, is_final = excluded.is_final,
    unix_time_s = excluded.unix_time_s, digest = excluded.digest
WHERE NOT is_final OR digest IS NOT digest_of(CAST(key AS BLOB), {_COLUMNS})
"""
_RESERVE = """
INSERT INTO requests VALUES (?, 1) ON CONFLICT (service) DO UPDATE SET sent = sent + 1 WHERE sent < ?
"""

logger = logging.getLogger(__name__)


class AnswerCache:
    """Outcomes of requests in one SQLite file (WAL): readers never wait, an answer reported as stored survives a kill.

    An outcome that is not final (a fault) gives way to a later one; the first final one stays, whichever process
    stored it. Not for network file systems: SQLite's WAL needs shared memory.

    Each entry has a checksum. A damaged one counts as missing: it is logged once and asked for again; in a replay it
    is a `ConfigError`, as is a file that is not a cache or cannot be read at all. When storing fails (full disk,
    lock), the answer still counts: it is logged once and counted in `num_lost`.
    """

    def __init__(self, path: str | Path, *, must_exist: bool = False) -> None:
        self.path = Path(path)
        self.num_lost = 0
        """Answers that could not be stored."""
        self._has_warned = self._has_warned_of_damage = False
        self._is_replay = must_exist
        if must_exist and not self.path.is_file():
            raise ConfigError(f'search: cache {self.path} does not exist. Record it first: cache_mode = "record".')
        if not self.path.parent.is_dir():
            raise ConfigError(f"search: cache {self.path}: its folder does not exist. Create it.")
        # two connections: a write that waits for another process holds up no reader
        self._reader, self._read_lock = self._open(may_create=not must_exist), threading.Lock()
        self._reader.execute(f"PRAGMA busy_timeout = {round(1000 * _READ_TIMEOUT_S)}")
        self._writer, self._write_lock = self._open(may_create=not must_exist), threading.Lock()

    def get(self, request: Mapping[str, JsonValue]) -> tuple[JsonValue, bool] | None:
        """The stored outcome and whether it is final. Raises `ToolFault` while the file is locked."""
        with self._read_lock, self._readable():
            try:
                row = self._reader.execute(_GET, (_key(request),)).fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                raise ToolFault(f"search: cache {self.path} is locked by another program") from error
        if row is None:
            return None
        stored, outcome, is_final, digest = row
        whole = canonical(dict(request)).encode()
        if stored != whole or digest != _digest(_key(request).encode(), whole, outcome, is_final).encode():
            self._report_damage(request)
            return None
        return json.loads(outcome), is_final == b"1"

    def put(self, request: Mapping[str, JsonValue], outcome: JsonValue, *, is_final: bool) -> JsonValue:
        """Store an outcome; returns the one that stands, which another process may have stored before."""
        key, whole, value = _key(request), canonical(dict(request)), canonical(outcome)
        digest = _digest(key.encode(), whole.encode(), value.encode(), b"1" if is_final else b"0")
        row = (key, whole, value, is_final, time.time(), digest)
        try:
            with self._write_lock:
                self._writer.execute(_PUT, row)
        except sqlite3.OperationalError as error:
            self.num_lost += 1
            self._warn_once(error)
            return outcome
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        with contextlib.suppress(ToolFault):  # locked for reading: what came counts
            if (standing := self.get(request)) is not None:
                return standing[0]
        return outcome

    def reserve(self, service: str, limit: int) -> bool:
        """Count one more request to a service; False when `limit` have been sent through this file."""
        try:
            with self._write_lock:
                return self._writer.execute(_RESERVE, (service, limit)).rowcount > 0
        except sqlite3.OperationalError as error:  # the caller counts its own requests all the same
            self._warn_once(error)
            return True
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def release(self, service: str) -> None:
        """A reserved request was never answered and does not count."""
        with self._write_lock, contextlib.suppress(sqlite3.DatabaseError):  # the next request meets it again
            self._writer.execute("UPDATE requests SET sent = sent - 1 WHERE service = ?", (service,))

    def close(self) -> None:
        """Close the file."""
        for connection in (self._reader, self._writer):
            connection.close()

    def _open(self, *, may_create: bool) -> sqlite3.Connection:
        # a replay may read from a read-only place, where SQLite can keep no record of its readers
        is_fixed = not may_create and not os.access(self.path.parent, os.W_OK)
        if is_fixed and Path(f"{self.path}-wal").exists():
            raise ConfigError(
                f"search: cache {self.path} was not closed, and its folder is read-only. "
                "Replay it once where it can be written, then copy it again."
            )
        address = self.path.resolve().as_uri() + ("?immutable=1" if is_fixed else "")
        deadline_s = time.monotonic() + _BUSY_TIMEOUT_S
        with self._readable():
            while True:
                try:
                    return _connect(address, may_create=may_create)
                except sqlite3.OperationalError as error:  # SQLite itself does not wait while the mode changes to WAL
                    if "locked" not in str(error) or time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.01)

    @contextlib.contextmanager
    def _readable(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"search: cache {self.path} cannot be read as a search cache: {error}. Restore it, or name another file."
        )

    def _report_damage(self, request: Mapping[str, JsonValue]) -> None:
        entry = canonical(dict(request))[:500]
        if self._is_replay:
            raise ConfigError(
                f"search: cache {self.path}: the stored answer to {entry} is damaged. Restore the file, or record the "
                'entry again: cache_mode = "record".'
            )
        if not self._has_warned_of_damage:
            self._has_warned_of_damage = True
            logger.warning("search: cache %s is damaged: what is lost is asked for again, first %s", self.path, entry)

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("search: cache %s cannot be written: %s. The run goes on.", self.path, error)


def _connect(address: str, *, may_create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.create_function("digest_of", 4, _digest, deterministic=True)
        if may_create:
            _create(connection)
        if _version(connection) != _FORMAT:
            raise sqlite3.DatabaseError("it has another format")
        # in WAL mode a killed process loses nothing, a power cut the last answers
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
    except BaseException:
        connection.close()
        raise


def _create(connection: sqlite3.Connection) -> None:
    if _version(connection) == 0:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) == 0:  # no other process was faster
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError("it holds something else")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")
    if _version(connection) == _FORMAT:
        connection.execute("PRAGMA journal_mode = WAL")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def canonical(value: JsonValue) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _key(request: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(canonical(dict(request)).encode()).hexdigest()


def _digest(*parts: bytes | None) -> str:
    """Checksum of an entry: key, request, outcome, whether it is final."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
