"""The rows of a table partition in one SQLite file (mode 0600, write-ahead log).

A file is open in one process at a time; a second one gets StateError. After a failed read or write, closing the storage
removes the file. A write may go on while its owner does other things (begin_write).
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from gokamsg.engine.sqlite.failures import error_code, state_error
from gokamsg.engine.sqlite.file import LOCK_WAIT_S, PAGE_BYTES, is_clean, make_clean, make_unclean, prepare, remove_file
from gokamsg.engine.sqlite.thread import Database, Job, Work
from gokamsg.engine.storage import PendingWrite
from gokamsg.errors import StateError

_WRITE_ROWS = 4096
_READ_ROWS = 2048
_SETTINGS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    f"PRAGMA busy_timeout={int(LOCK_WAIT_S * 1000)}",
    "PRAGMA cache_size=-4096",
    "PRAGMA wal_autocheckpoint=4000",
    # Takes the lock now, not at the first write.
    "BEGIN IMMEDIATE",
    "COMMIT",
)


class SQLiteStorage:
    """See the module. Threads: as every storage's (engine/storage.py)."""

    def __init__(self, path: str | Path, *, topic_id: str, boot_id: str | None) -> None:
        """Open the file, emptied if it cannot be trusted; StateError if it is in use or not allowed."""
        self.path = path = Path(path)
        self._boot = boot_id
        self._broken = False
        self._lost: Exception | None = None  # why a write failed: what is read after it is not what was written
        self._database: Database | None = None
        try:
            meta = prepare(path, topic_id=topic_id, boot_id=boot_id)
            self._database = Database(path)
        except (OSError, sqlite3.Error) as error:
            raise state_error(path, "be opened", error) from error
        self._position: int | None = meta.get("position")
        self._marked = meta.get("boot") == boot_id and not is_clean(path)
        try:
            self._finish(self._submit(_set_up, "be opened"), "be opened")
        except StateError:
            self._end(remove=False)
            raise

    @classmethod
    def open(cls, path: str | Path, *, topic_id: str, boot_id: str | None) -> "SQLiteStorage":
        """The storage in that file."""
        return cls(path, topic_id=topic_id, boot_id=boot_id)

    def get(self, key: bytes) -> bytes | None:
        rows = self._run("SELECT value FROM rows WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        remaining = iter(keys)
        while chunk := list(islice(remaining, _READ_ROWS)):
            count = _padded(chunk)
            found.update(self._run(f"SELECT key, value FROM rows WHERE key IN ({_marks('?', count)})", chunk))
        return found

    def has(self, key: bytes) -> bool:
        return bool(self._run("SELECT 1 FROM rows WHERE key = ?", (key,)))

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        bound, edge = ("", ()) if limit is None else (" AND key < ?", (limit,))
        # Every BLOB sorts after every number, so this is below the empty key too.
        after: Any = -1 if start is None else start
        compare = ">="
        while True:
            sql = f"SELECT key, value FROM rows WHERE key {compare} ?{bound} ORDER BY key LIMIT {_READ_ROWS}"
            rows = self._run(sql, (after, *edge))
            yield from rows
            if len(rows) < _READ_ROWS:
                return
            after, compare = rows[-1][0], ">"

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        self.begin_write(changes, position).wait()

    def begin_write(self, changes: Mapping[bytes, bytes | None], position: int) -> PendingWrite:
        """As write(), and does not wait. Reads from now on come after it, and raise its StateError if it fails.
        `changes` must not change before it ends."""
        boot = self._mark()

        def work(cursor: sqlite3.Cursor) -> list[Any]:
            try:
                cursor.execute("BEGIN IMMEDIATE")
                if boot:
                    cursor.execute("REPLACE INTO meta (key, value) VALUES ('boot', ?)", boot)
                _write(cursor, changes)
                cursor.execute("REPLACE INTO meta (key, value) VALUES ('position', ?)", (position,))
                cursor.execute("COMMIT")
            except Exception as error:
                self._lost = error.with_traceback(None)
                raise
            return []

        write = _Write(self, self._submit(work, doing="be written"))
        self._position = position
        return write

    def _mark(self) -> tuple[str | None, ...]:
        """Before the first write, make it known that the file is not clean any more; the boot id to write, or ()."""
        if self._marked:
            return ()
        try:
            make_unclean(self.path)
        except OSError as error:
            raise state_error(self.path, "be written", error) from error
        self._marked = True
        return (self._boot,)

    def position(self) -> int | None:
        return self._position

    def size_bytes(self) -> int:
        return int(self._run("PRAGMA page_count")[0][0] - self._run("PRAGMA freelist_count")[0][0]) * PAGE_BYTES

    def __len__(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM rows")[0][0])

    def clear(self) -> None:
        boot = self._mark()
        self._run("BEGIN IMMEDIATE", doing="be cleared")
        if boot:
            self._run("REPLACE INTO meta (key, value) VALUES ('boot', ?)", boot, doing="be cleared")
        self._run("DELETE FROM rows", doing="be cleared")
        self._run("DELETE FROM meta WHERE key = 'position'", doing="be cleared")
        self._run("COMMIT", doing="be cleared")
        self._position = None

    def close(self, *, clean: bool = True) -> None:
        if self._database is None:
            return
        try:
            if clean and not self._broken and self._marked:
                busy = self._run("PRAGMA wal_checkpoint(TRUNCATE)", doing="be closed")[0][0]
                if not busy:
                    make_clean(self.path)
        except OSError as error:
            raise state_error(self.path, "be closed", error) from error
        finally:
            self._end(remove=self._broken)

    def discard(self) -> None:
        self._end(remove=True)

    def _end(self, *, remove: bool) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.end()
        if remove:
            remove_file(self.path)

    def _run(self, sql: str, parameters: Iterable[Any] = (), *, doing: str = "be read") -> list[Any]:
        """Run one statement in the database's thread, wait, and return its rows; any error breaks the storage."""
        values = tuple(parameters)
        return self._finish(self._submit(lambda cursor: cursor.execute(sql, values).fetchall(), doing), doing)

    def _submit(self, work: Work, doing: str) -> Job:
        database = self._database
        thread = None if database is None or self._broken else database.conn
        if thread is None:
            raise StateError(f"local table {str(self.path)!r} cannot {doing}: it is closed")
        job = Job(work, thread)
        try:
            thread.execute(job)
        except (sqlite3.Error, RuntimeError) as error:
            raise self._failed(error, doing) from error
        return job

    def _finish(self, job: Job, doing: str) -> list[Any]:
        job.wait()
        if self._lost is not None:
            raise self._failed(self._lost, "be written") from self._lost
        if job.error is not None:
            raise self._failed(job.error, doing) from job.error
        return job.found

    def _failed(self, error: Exception, doing: str) -> StateError:
        # Being locked out says nothing against what the file holds; anything else does.
        self._broken = error_code(error) != sqlite3.SQLITE_BUSY
        return state_error(self.path, doing, error)


class _Write:
    """A PendingWrite of a SQLiteStorage."""

    __slots__ = ("_job", "_storage")

    def __init__(self, storage: SQLiteStorage, job: Job) -> None:
        self._storage = storage
        self._job = job

    @property
    def done(self) -> bool:
        return self._job.done

    def wait(self) -> None:
        self._storage._finish(self._job, "be written")


def _set_up(cursor: sqlite3.Cursor) -> list[Any]:
    for statement in _SETTINGS:
        cursor.execute(statement)
    return []


def _write(cursor: sqlite3.Cursor, changes: Mapping[bytes, bytes | None]) -> None:
    """Put and remove rows, with few statements; in the order of the keys, which is how SQLite keeps them."""
    keys = sorted(changes)
    values = [changes[key] for key in keys]
    if None in values:
        gone = [key for key, value in zip(keys, values, strict=True) if value is None]
        for at in range(0, len(gone), _WRITE_ROWS):
            chunk = gone[at : at + _WRITE_ROWS]
            cursor.execute(f"DELETE FROM rows WHERE key IN ({_marks('?', _padded(chunk))})", chunk)
        keys = [key for key, value in zip(keys, values, strict=True) if value is not None]
        values = [value for value in values if value is not None]
    rows: list[Any] = [None] * (2 * len(keys))
    rows[::2], rows[1::2] = keys, values
    for at in range(0, len(keys), _WRITE_ROWS):
        part = rows[2 * at : 2 * (at + _WRITE_ROWS)]
        count = 1 << (len(part) // 2 - 1).bit_length()
        part += part[-2:] * (count - len(part) // 2)
        # Not REPLACE: it deletes a row that is there and adds it at the end, and the index on the keys changes with it.
        # In a table of 1.25 million rows that took 11 µs for each, this takes 3.
        cursor.execute(
            f"INSERT INTO rows (key, value) VALUES {_marks('(?,?)', count)}"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            part,
        )


def _padded(rows: list[Any]) -> int:
    """Fill up to a power of two with the last row (doing it twice is harmless), so that few statements are parsed."""
    count = 1 << (len(rows) - 1).bit_length()
    rows.extend(rows[-1:] * (count - len(rows)))
    return count


@cache
def _marks(mark: str, count: int) -> str:
    return ",".join([mark] * count)
