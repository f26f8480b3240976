"""Reads from the data file that the caches cannot answer, away from the loop.

Fetches, look-ups by time and the cleaner have a thread and a connection each, so that none holds up another.
Results are as of some moment at or after the call; callers pass an end offset that was readable when they called.
Threads: the coroutines run on the broker's loop; close() too.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from gokamsg.broker.store import OFFSET_BITS, Store

T = TypeVar("T")


class Range(NamedTuple):
    """A part of one partition to read: whole batches, at least one if there is any and at_least_one is set."""

    number: int
    offset: int
    end_offset: int
    max_bytes: int
    at_least_one: bool


class ColdReader:
    """Reads batches by offset, and finds them by time."""

    def __init__(self, store: Store) -> None:
        self._fetches = _ReadingThread(store, "broker-fetch")
        self._lookups = _ReadingThread(store, "broker-lookup")
        self._upkeep = _ReadingThread(store, "broker-upkeep")

    async def read(self, ranges: Sequence[Range], *, max_bytes: int) -> list[list[bytes]]:
        """The batches of each range, in its order; max_bytes bounds all of them together."""
        return await self._fetches.run(lambda connection: _read(connection, ranges, max_bytes))

    async def first_at(self, number: int, start_offset: int, end_offset: int, timestamp: int) -> bytes | None:
        """The first batch that reaches start_offset and has a record at or after a time, or None."""
        sql = (
            "SELECT data FROM batches WHERE id >= ? AND id < ? AND last_offset >= ? AND max_timestamp >= ?"
            " AND attributes & 32 = 0 ORDER BY id LIMIT 1"
        )
        ids = (number << OFFSET_BITS, number << OFFSET_BITS | end_offset, start_offset, timestamp)
        row = await self._lookups.run(lambda connection: connection.execute(sql, ids).fetchone())
        return None if row is None else bytes(row[0])

    async def latest(self, number: int, start_offset: int, end_offset: int) -> bytes | None:
        """The first batch with the largest timestamp, or None when there is none."""
        sql = (
            "SELECT data FROM batches WHERE id >= ? AND id < ? AND attributes & 32 = 0"
            " ORDER BY max_timestamp DESC, id LIMIT 1"
        )
        ids = (number << OFFSET_BITS | start_offset, number << OFFSET_BITS | end_offset)
        row = await self._lookups.run(lambda connection: connection.execute(sql, ids).fetchone())
        return None if row is None else bytes(row[0])

    async def compute(self, work: Callable[[], T]) -> T:
        """Run what would hold up the loop (unpacking a large batch) on the look-up thread."""
        return await self._lookups.run(lambda _: work())

    async def upkeep(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a slice of the cleaner's work, with a reading connection, on the thread that is kept for it."""
        return await self._upkeep.run(work)

    def close(self) -> None:
        self._fetches.close()
        self._lookups.close()
        self._upkeep.close()


class _ReadingThread:
    """A thread with a connection that is opened when it is first needed."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._store.reader()
        return work(self._connection)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._connection is not None:
            self._connection.close()


def _read(connection: sqlite3.Connection, ranges: Sequence[Range], left: int) -> list[list[bytes]]:
    empty = True
    found: list[list[bytes]] = []
    for wanted in ranges:
        batches = _read_range(connection, wanted, min(left, wanted.max_bytes), wanted.at_least_one and empty)
        left -= sum(map(len, batches))
        empty = empty and not batches
        found.append(batches)
    return found


def _read_range(connection: sqlite3.Connection, wanted: Range, max_bytes: int, at_least_one: bool) -> list[bytes]:
    first = wanted.number << OFFSET_BITS
    start = first | wanted.offset
    holder = connection.execute(
        "SELECT id, last_offset FROM batches WHERE id >= ? AND id <= ? ORDER BY id DESC LIMIT 1", (first, start)
    ).fetchone()
    if holder is not None and holder[1] >= wanted.offset:
        start = holder[0]
    batches: list[bytes] = []
    size = 0
    cursor = connection.execute(
        "SELECT data FROM batches WHERE id >= ? AND id < ? ORDER BY id", (start, first | wanted.end_offset)
    )
    for (data,) in cursor:
        if size + len(data) > max_bytes and (batches or not at_least_one):
            break
        batches.append(data)
        size += len(data)
    cursor.close()  # an open cursor would pin the write-ahead log
    return batches
