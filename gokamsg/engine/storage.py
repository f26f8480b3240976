"""Where one partition of a table is kept: in memory, or in a SQLite file through sqlitedict.

1. Rows and the changelog position are written together: after a killed process the position never covers a row that is
   missing. Writing the same rows again is harmless.
2. The file is a cache. If it is damaged, of another topic or another format, or may have lost pages in a power failure
   (nothing is synchronised to the disk while it is open), it starts empty and is filled again from the changelog.
3. A failing read or write raises StateError, and the storage is unusable from then on; closing it removes the file.
4. A file is open in one process at a time; a second one gets StateError.

Keys are ordered by their bytes. Threads: one owner writes; get, get_many, has and iterate may be called from any
thread, and see rows as of now (each at most once, in order, while the owner goes on writing).

sqlitedict has a thread for each file, runs one statement after the other there, reports errors late, and never
synchronises to the disk. So here a piece of work for the thread is a whole write of thousands of rows, or a read; it
carries its own outcome, and an error is told to whoever asked for it. A write may go on while its owner does other
things (begin_write): SQLite works without the interpreter's lock.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from logging import Logger, NullHandler, getLogger
from pathlib import Path
from typing import Any, Final, Protocol

from sqlitedict import SqliteDict, SqliteMultithread

from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.private import private_directory
from gokamsg.errors import StateError

__all__ = ["MemoryStorage", "SQLiteStorage", "Storage", "boot_id", "distrust", "prefix_limit", "remove_file"]

log = getLogger(__name__)

FORMAT: Final = 1
PAGE_BYTES: Final = 8192
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_WRITE_ROWS = 4096
_READ_ROWS = 2048
_LOCK_WAIT_S = 1.0
_SETTINGS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    f"PRAGMA busy_timeout={int(_LOCK_WAIT_S * 1000)}",
    "PRAGMA cache_size=-4096",
    "PRAGMA wal_autocheckpoint=4000",
    # Takes the lock now, not at the first write.
    "BEGIN IMMEDIATE",
    "COMMIT",
)
_REFUSALS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
    }
)


class PendingWrite(Protocol):
    """A write that goes on by itself."""

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or the other."""

    def wait(self) -> None:
        """Return once it has ended; StateError if it failed."""


class Storage(Protocol):
    """The rows of one table partition, and the changelog position up to which they are complete."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if it has none."""

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that have one."""

    def has(self, key: bytes) -> bool:
        """Whether the key has a value."""

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < limit in byte order; None leaves that side open."""

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        """Set rows (None deletes) and the position, all or nothing."""

    def position(self) -> int | None:
        """The next changelog offset to read, None if nothing was ever written."""

    def size_bytes(self) -> int:
        """About how much is stored (an upper bound for the rows)."""

    def __len__(self) -> int: ...

    def clear(self) -> None:
        """Remove every row and the position."""

    def close(self, *, clean: bool = True) -> None:
        """Close; not clean means that the process may be in a bad state, and that nothing more is vouched for."""

    def discard(self) -> None:
        """Close, and remove what is stored."""


def prefix_limit(prefix: bytes) -> bytes | None:
    """The key after the last one that begins with the prefix; None if there is no such key."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def boot_id() -> str | None:
    """What names this machine's current start; None where nothing does."""
    try:
        return _BOOT_ID_FILE.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def distrust(path: Path, *, topic_id: str, boot_id: str | None) -> str | None:
    """Why opening the file would empty it; None if it can be trusted. StateError if that cannot be told."""
    try:
        meta = _read_meta(path)
    except (OSError, sqlite3.Error) as error:
        raise _state_error(path, "be read", error) from error
    return "it is damaged" if meta is None else _why_not_trusted(path, meta, topic_id, boot_id)


def remove_file(path: Path) -> None:
    """Remove a storage's file and what lies beside it. StateError when that is not allowed."""
    try:
        _remove(path)
    except OSError as error:
        raise _state_error(path, "be removed", error) from error


class SQLiteStorage:
    """Rows in one SQLite file (mode 0600, write-ahead log).

    Beside the file, "<file>.clean" says that everything in it has reached the disk. It is made when the storage is
    closed and removed before the next write; a file without it is trusted only under the boot id that it carries.
    """

    def __init__(self, path: str | Path, *, topic_id: str, boot_id: str | None) -> None:
        """Open the file, emptied if it cannot be trusted; StateError if it is in use or not allowed."""
        self.path = path = Path(path)
        self._boot = boot_id
        self._broken = False
        self._lost: Exception | None = None  # why a write failed: what is read after it is not what was written
        self._file: _File | None = None
        try:
            private_directory(path.parent)
            if path.exists():
                # SQLite opens a read-only file without a word, and fails with the first write.
                os.close(os.open(path, os.O_RDWR))
            meta = _read_meta(path) if path.exists() else None
            why = "it is damaged" if meta is None else _why_not_trusted(path, meta, topic_id, boot_id)
            if meta is None or why is not None:
                if path.exists():
                    log.warning("local table %r is filled again from Kafka: %s", str(path), why)
                _remove(path)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                meta = _create(path, topic_id, boot_id)
            self._file = _File(str(path), tablename="rows", encode=_as_is, decode=_as_is, outer_stack=False)
        except (OSError, sqlite3.Error) as error:
            raise _state_error(path, "be opened", error) from error
        self._position: int | None = meta.get("position")
        self._marked = meta.get("boot") == boot_id and not _clean_file(path).exists()
        try:
            for statement in _SETTINGS:
                self._run(statement, doing="be opened")
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
            # Must be on the disk before any row is: an old row under this mark would be trusted after a power failure.
            _clean_file(self.path).unlink(missing_ok=True)
            _synchronise(self.path.parent)
        except OSError as error:
            raise _state_error(self.path, "be written", error) from error
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
        if self._file is None:
            return
        try:
            if clean and not self._broken and self._marked:
                busy = self._run("PRAGMA wal_checkpoint(TRUNCATE)", doing="be closed")[0][0]
                if not busy:
                    _make_clean(self.path)
        except OSError as error:
            raise _state_error(self.path, "be closed", error) from error
        finally:
            self._end(remove=self._broken)

    def discard(self) -> None:
        self._end(remove=True)

    def _end(self, *, remove: bool) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.end()
        if remove:
            remove_file(self.path)

    def _run(self, sql: str, parameters: Iterable[Any] = (), *, doing: str = "be read") -> list[Any]:
        """Run one statement in the file's thread, wait for it, and return its rows; any error breaks the storage."""
        values = tuple(parameters)
        return self._finish(self._submit(lambda cursor: cursor.execute(sql, values).fetchall(), doing), doing)

    def _submit(self, work: "_Work", doing: str) -> "_Job":
        file = self._file
        thread = None if file is None or self._broken else file.conn
        if thread is None:
            raise StateError(f"local table {str(self.path)!r} cannot {doing}: it is closed")
        job = _Job(work, thread)
        try:
            thread.execute(job)
        except (sqlite3.Error, RuntimeError) as error:
            raise self._failed(error, doing) from error
        return job

    def _finish(self, job: "_Job", doing: str) -> list[Any]:
        job.wait()
        if self._lost is not None:
            raise self._failed(self._lost, "be written") from self._lost
        if job.error is not None:
            raise self._failed(job.error, doing) from job.error
        return job.found

    def _failed(self, error: Exception, doing: str) -> StateError:
        # Being locked out says nothing against what the file holds; anything else does.
        self._broken = _code(error) != sqlite3.SQLITE_BUSY
        return _state_error(self.path, doing, error)


_Work = Callable[[sqlite3.Cursor], list[Any]]


class _Write:
    """A PendingWrite of a SQLiteStorage."""

    __slots__ = ("_job", "_storage")

    def __init__(self, storage: SQLiteStorage, job: "_Job") -> None:
        self._storage = storage
        self._job = job

    @property
    def done(self) -> bool:
        return self._job.done

    def wait(self) -> None:
        self._storage._finish(self._job, "be written")


class _File(SqliteDict):  # type: ignore[misc]  # sqlitedict ships no types
    """A SqliteDict whose thread does whole pieces of work."""

    conn: Any

    def _new_conn(self) -> "_Thread":
        return _Thread(self.filename, autocommit=False, journal_mode="WAL", outer_stack=False)

    def end(self) -> None:
        """Close the database and wait until its thread has ended."""
        thread, self.conn = self.conn, None
        thread.close(force=True)
        thread.join()


class _Thread(SqliteMultithread):  # type: ignore[misc]  # sqlitedict ships no types
    """sqlitedict's thread, with an error that ends it noted for the caller instead of printed."""

    def run(self) -> None:
        self.log = Logger("sqlitedict")
        self.log.addHandler(NullHandler())
        try:
            super().run()
        except Exception as error:
            # Without its traceback, which would keep the connection open.
            self.exception = (type(error), error.with_traceback(None), None)

    def _connect(self) -> tuple[Any, Any]:
        connection, cursor = super()._connect()
        return connection, _Cursor(cursor)


class _Cursor:
    """Stands where sqlitedict's thread expects a cursor: runs jobs, and passes sqlitedict's own statements on."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def execute(self, statement: Any, parameters: Any) -> None:
        if isinstance(statement, _Job):
            statement.run(self._cursor)
        else:
            self._cursor.execute(statement, parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


class _Job:
    """A piece of work for a file's thread, and its outcome."""

    __slots__ = ("_complete", "_thread", "_work", "done", "error", "found")

    def __init__(self, work: _Work, thread: threading.Thread) -> None:
        self.found: list[Any] = []
        self.error: Exception | None = None
        self.done = False
        self._work: _Work | None = work
        self._thread = thread
        self._complete = threading.Lock()
        self._complete.acquire()

    def run(self, cursor: sqlite3.Cursor) -> None:
        """For the thread."""
        work, self._work = self._work, None  # with it go the rows that it holds
        assert work is not None
        try:
            self.found = work(cursor)
        except Exception as error:
            self.error = error.with_traceback(None)
        finally:
            self.done = True
            self._complete.release()

    def wait(self) -> None:
        """For one caller: until it is done, or cannot be done any more because its thread has ended."""
        while not self.done and not self._complete.acquire(timeout=0.5):
            if not self._thread.is_alive() and not self.done:
                self.error = sqlite3.DatabaseError("the database's thread has ended")
                return


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


def _as_is(value: Any) -> Any:
    return value


def _padded(rows: list[Any]) -> int:
    """Fill up to a power of two with the last row (doing it twice is harmless), so that few statements are parsed."""
    count = 1 << (len(rows) - 1).bit_length()
    rows.extend(rows[-1:] * (count - len(rows)))
    return count


@cache
def _marks(mark: str, count: int) -> str:
    return ",".join([mark] * count)


def _clean_file(path: Path) -> Path:
    return path.with_name(path.name + ".clean")


def _make_clean(path: Path) -> None:
    # The emptied log first: after a power failure an old one would be read back over newer pages.
    for part in (path.with_name(path.name + "-wal"), path):
        if part.exists():
            _synchronise(part)
    clean = _clean_file(path)
    clean.touch(mode=0o600)
    _synchronise(clean)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # The mark first, so that a removal cut short leaves nothing that is trusted.
    for suffix in (".clean", "-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _read_meta(path: Path) -> dict[str, Any] | None:
    """What an existing file says of itself; None if it is damaged or nothing of ours."""
    connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        connection.execute("SELECT key, value FROM rows LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        if _code(error) in _REFUSALS:
            raise
        return None
    finally:
        connection.close()
    return meta


def _why_not_trusted(path: Path, meta: Mapping[str, Any], topic_id: str, boot: str | None) -> str | None:
    if meta.get("format") != FORMAT:
        return "it has another format than this version writes"
    if meta.get("topic") != topic_id:
        return "it belongs to an earlier topic of that name"
    position = meta.get("position")
    if position is not None and not (isinstance(position, int) and position >= 0):
        return "it holds no position"
    if _clean_file(path).exists() or (boot is not None and meta.get("boot") == boot):
        return None
    return "it was open when this machine went down, so pages of it may be lost"


def _create(path: Path, topic_id: str, boot: str | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"format": FORMAT, "topic": topic_id, "boot": boot}
    connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")  # one cut short is damaged, and made anew
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value)")
        # sqlitedict's own shape; keys are bytes, which SQLite keeps as they are and orders bytewise.
        connection.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, value BLOB)")
        connection.executemany("INSERT INTO meta VALUES (?,?)", meta.items())
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")  # last: making tables through the log takes seven times as long
    finally:
        connection.close()
    return meta


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", -1) & 0xFF


def _state_error(path: Path, doing: str, error: Exception) -> StateError:
    code = _code(error) if isinstance(error, sqlite3.Error) else -1
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        why = "another process uses it; stop that process, or use another --state-dir"
    elif code == sqlite3.SQLITE_FULL:
        why = "the disk is full; make room, or use another --state-dir"
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        why = f"it is damaged ({error}); it is filled again from Kafka at the next start"
    else:
        why = f"{error}; check permissions and free space, or use another --state-dir"
    return StateError(f"local table {str(path)!r} cannot {doing}: {why}")
