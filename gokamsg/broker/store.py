"""The broker's data file: record batches and small records in one SQLite database, written in atomic units.

1. Everything in one WriteUnit becomes durable together or not at all.
2. Units become durable in the order of their commit() calls. Their appends are applied to their logs (high watermark,
   readers woken) in that order, on the loop, before the future of the unit resolves.
3. Units that queue while a COMMIT runs share the next one (group commit): one fsync for all of them.
4. After a failed write nothing more is accepted: every later commit fails with StoreError.

Threads: one writer thread owns the writing connection. unit(), commit() and close() are for the loop's thread; scan()
and the other readers at start-up open their own connection and may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from gokamsg.broker import schema
from gokamsg.errors import GokamsgError

OFFSET_BITS = 40  # a batch's row id is partition number << 40 | base offset: a partition is one contiguous range

_READER_WAIT_MS = 20

_INSERT = "INSERT OR REPLACE INTO batches VALUES (?,?,?,?,?,?,?,?,?)"
_PUT = "INSERT OR REPLACE INTO records VALUES (?,?,?)"
_DELETE = "DELETE FROM records WHERE space = ? AND key = ?"
_DELETE_ROW = "DELETE FROM batches WHERE id = ?"
_MARK_CLEANED = "UPDATE batches SET cleaned_ms = ? WHERE id = ?"
_DELETE_RANGE = "DELETE FROM batches WHERE id >= ? AND id < ?"


class StoreError(GokamsgError):
    """The data file could not be written or read; the broker stops."""


class Staged(Protocol):
    """An append that waits for its unit; becomes visible through apply()."""

    def apply(self) -> None: ...


# id, last offset, max timestamp, attributes, producer id, its epoch, base sequence, cleaned at (ms, or 0), batch
BatchRow = tuple[int, int, int, int, int, int, int, int, bytes]


class WriteUnit:
    """Changes that belong together. Filled on the loop, then handed to Store.commit() once."""

    __slots__ = ("callback", "ops", "rows", "staged", "vacuum_pages")

    def __init__(self) -> None:
        self.rows: list[BatchRow] = []
        self.ops: list[tuple[str, tuple[object, ...]]] = []
        self.staged: list[Staged] = []
        self.vacuum_pages = 0
        self.callback: Callable[[StoreError | None], None] | None = None

    def append(self, staged: Staged, row: BatchRow) -> None:
        """A batch whose append is staged; PartitionLog.stage() and stage_marker() call this."""
        self.rows.append(row)
        self.staged.append(staged)

    def then(self, staged: Staged) -> None:
        """Have apply() called in order with the appends, once the unit is durable."""
        self.staged.append(staged)

    def put(self, space: str, key: str, value: bytes) -> None:
        self.ops.append((_PUT, (space, key, value)))

    def delete(self, space: str, key: str) -> None:
        self.ops.append((_DELETE, (space, key)))

    def replace_batch(self, row: BatchRow) -> None:
        """Rewrite a stored batch in place (compaction)."""
        self.ops.append((_INSERT, row))

    def delete_batch(self, row_id: int) -> None:
        self.ops.append((_DELETE_ROW, (row_id,)))

    def delete_batches(self, first_id: int, end_id: int) -> None:
        """Delete the rows from first_id up to, not including, end_id."""
        self.ops.append((_DELETE_RANGE, (first_id, end_id)))

    def mark_cleaned(self, row_id: int, cleaned_ms: int) -> None:
        """Note when compaction first met the tombstones or the marker of a batch."""
        self.ops.append((_MARK_CLEANED, (cleaned_ms, row_id)))

    def vacuum(self, pages: int) -> None:
        """Give so many free pages back to the file system, after the unit's changes."""
        self.vacuum_pages = pages

    @property
    def empty(self) -> bool:
        return not (self.rows or self.ops or self.vacuum_pages)


class Store:
    """One open data file. Opened with Store.open() on a running loop; close() waits for what is queued."""

    def __init__(self, path: Path, writer: sqlite3.Connection, *, wal_checkpoint_bytes: int) -> None:
        self.path = path
        self.failed: StoreError | None = None
        self.on_failure: Callable[[StoreError], None] = lambda error: None
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._wal = path.with_name(path.name + "-wal")
        self._checkpoint_bytes = wal_checkpoint_bytes
        self._written_bytes = 0
        self._queue: queue.SimpleQueue[WriteUnit | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="broker-store", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, *, fsync: bool = True, wal_checkpoint_bytes: int = 16 * 1024 * 1024) -> Store:
        """Open or create the data file; raises StateError when it is damaged, foreign or from a newer version."""
        return cls(path, schema.open_writer(path, fsync=fsync), wal_checkpoint_bytes=wal_checkpoint_bytes)

    def unit(self) -> WriteUnit:
        return WriteUnit()

    def commit(self, unit: WriteUnit) -> asyncio.Future[None]:
        """Queue the unit; the future resolves when it is durable, or fails with StoreError."""
        future = self._loop.create_future()

        def settle(failure: StoreError | None) -> None:
            if future.done():  # whoever waited has gone
                return
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

        self.submit(unit, settle)
        return future

    def submit(self, unit: WriteUnit, callback: Callable[[StoreError | None], None]) -> None:
        """Like commit(), with a callback instead of a future: it runs in the same turn of the loop as the appends."""
        if self.failed is not None or self._closed:
            callback(self.failed or StoreError("the broker is shutting down; nothing more is written"))
            return
        unit.callback = callback
        self._queue.put(unit)

    def barrier(self) -> asyncio.Future[None]:
        """A future that resolves when everything committed so far is durable."""
        return self.commit(WriteUnit())

    def scan(self, space: str) -> Iterable[tuple[str, bytes]]:
        """Every record of a space, in the order of keys; meant for start-up, before the first commit."""
        with contextlib.closing(self.reader()) as reader:
            yield from self._rows(reader, space)

    @staticmethod
    def _rows(reader: sqlite3.Connection, space: str) -> Iterator[tuple[str, bytes]]:
        for key, value in reader.execute("SELECT key, value FROM records WHERE space = ? ORDER BY key", (space,)):
            yield str(key), bytes(value)

    def reader(self) -> sqlite3.Connection:
        """A new read-only connection, for one thread at a time; the caller closes it."""
        return schema.open_reader(self.path)

    async def close(self) -> None:
        """Write what is queued, stop the writer thread and close the file."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # ---- the writer thread

    def _run(self) -> None:
        stopping = False
        while not stopping:
            units, stopping = self._take()
            if units and not self._write(units):
                stopping = True
        with contextlib.suppress(sqlite3.Error):
            if self.failed is None:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._writer.close()

    def _take(self) -> tuple[list[WriteUnit], bool]:
        """Wait for a unit, then take all that are there; True when nothing comes after them."""
        units: list[WriteUnit] = []
        item = self._queue.get()
        while item is not None:
            units.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return units, False
        return units, True

    def _write(self, units: list[WriteUnit]) -> bool:
        try:
            if any(not unit.empty for unit in units):
                self._write_transaction(units)
                self._vacuum(sum(unit.vacuum_pages for unit in units))
        except (sqlite3.Error, OSError) as error:
            failure = StoreError(
                f"cannot write {str(self.path)!r}: {error}; the broker stops, free the disk and restart"
            )
            self._post(self._fail, units, failure)
            self.failed = failure
            return False
        self._post(self._done, units)
        self._checkpoint()
        return True

    def _write_transaction(self, units: list[WriteUnit]) -> None:
        execute = self._writer.execute
        execute("BEGIN IMMEDIATE")
        try:
            rows = units[0].rows if len(units) == 1 else [row for unit in units for row in unit.rows]
            if rows:
                self._writer.executemany(_INSERT, rows)
                self._written_bytes += sum(len(row[8]) for row in rows) + 4096
            for unit in units:
                for sql, arguments in unit.ops:
                    execute(sql, arguments)
                    self._written_bytes += 4096
            execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                execute("ROLLBACK")
            raise

    def _vacuum(self, pages: int) -> None:
        if pages:  # a script, because execute() would stop after the first page
            self._writer.executescript(f"PRAGMA incremental_vacuum({pages:d})")
            self._written_bytes += pages * 4096

    def _checkpoint(self) -> None:
        """Move the log's pages into the file, and begin the log anew, before it grows large.

        It cannot be begun anew under a reader. Without waiting for one, and with some reader nearly always at work, it
        would grow on and on; whoever is still there after a short wait is met again soon.
        """
        if self._written_bytes < self._checkpoint_bytes:
            return
        busy = True
        with contextlib.suppress(sqlite3.Error):
            schema.wait_at_most(self._writer, _READER_WAIT_MS)
            try:
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                schema.wait_at_most(self._writer, schema.BUSY_TIMEOUT_MS)
        self._written_bytes = self._checkpoint_bytes * 7 // 8 if busy else 0

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    # ---- back on the loop

    def _done(self, units: list[WriteUnit]) -> None:
        for unit in units:
            for staged in unit.staged:
                staged.apply()
            if unit.callback is not None:
                unit.callback(None)

    def _fail(self, units: list[WriteUnit], failure: StoreError) -> None:
        self.failed = failure
        while True:
            for unit in units:
                if unit.callback is not None:
                    unit.callback(failure)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            units = [item] if item is not None else []
        self.on_failure(failure)
