"""What leaves a log at its start: by age, by size, and by a client's wish; and what is left of deleted partitions.

The start moves first, in one durable step, and readers see it at once. The rows below it are then deleted in slices, so
that no producer waits long for the writer. Threads: the broker's loop; the scans run on the reader's upkeep thread.
"""

from __future__ import annotations

import sqlite3
from functools import partial

from gokamsg.broker.configs import TopicConfig
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.state import Broker
from gokamsg.broker.store import OFFSET_BITS
from gokamsg.broker.topics import DOOMED_SPACE

SLICE_ROWS = 500
SLICE_BYTES = 8 * 1024 * 1024
_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_VACUUM_PAGES = 512
_FREE_PAGES = 2048  # kept for what comes next


async def delete_below(broker: Broker, log: PartitionLog, offset: int) -> None:
    """Move the log's start to offset; returns when that is durable and visible."""
    unit = broker.store.unit()
    log.stage_start(unit, min(offset, log.high_watermark))
    await broker.store.commit(unit)


async def enforce(broker: Broker, log: PartitionLog, config: TopicConfig, now_ms: int) -> None:
    """Move the log's start past what is too old or too much; never past an open transaction."""
    stable = log.last_stable_offset
    if log.log_start_offset >= stable:
        return
    start = log.log_start_offset
    if config.retention_ms >= 0:
        start = await broker.reader.upkeep(partial(_first_kept, log, start, stable, now_ms - config.retention_ms))
    excess = log.size_bytes - config.retention_bytes
    if config.retention_bytes >= 0 and excess > 0:
        by_size = await broker.reader.upkeep(partial(_after_excess, log, stable, excess))
        start = max(start, by_size)
    if start > log.log_start_offset and not log.deleted:
        await delete_below(broker, log, start)


def _first_kept(log: PartitionLog, start: int, end: int, since_ms: int, connection: sqlite3.Connection) -> int:
    row = connection.execute(
        "SELECT id FROM batches WHERE id >= ? AND id < ? AND max_timestamp >= ? ORDER BY id LIMIT 1",
        (log.row_id(0), log.row_id(end), since_ms),
    ).fetchone()
    return max(start, end if row is None else row[0] & _OFFSET_MASK)


def _after_excess(log: PartitionLog, end: int, excess: int, connection: sqlite3.Connection) -> int:
    """The offset after as many of the first batches as fit into the excess."""
    start = 0
    rows = connection.execute(
        "SELECT last_offset, length(data) FROM batches WHERE id >= ? AND id < ? ORDER BY id",
        (log.row_id(0), log.row_id(end)),
    )
    for last_offset, size in rows:
        excess -= size
        if excess < 0:
            break
        start = last_offset + 1
    rows.close()
    return start


async def sweep(broker: Broker, log: PartitionLog) -> None:
    """Delete the rows that lie wholly below the log's start."""
    start = log.log_start_offset
    while log.swept_offset < start and not log.deleted:
        end, freed, complete = await broker.reader.upkeep(partial(_slice, log.row_id(0), log.row_id(start), start))
        if freed:
            unit = broker.store.unit()
            unit.delete_batches(log.row_id(0), end)
            log.size_bytes = max(0, log.size_bytes - freed)
            log.stage_snapshot(unit)
            await broker.store.commit(unit)
        if complete:
            log.swept_offset = start


async def sweep_doomed(broker: Broker) -> None:
    """Delete the rows of partitions whose topics are gone."""
    for number in tuple(broker.topics.doomed):
        first, last = number << OFFSET_BITS, (number + 1) << OFFSET_BITS
        complete = False
        while not complete:
            end, _freed, complete = await broker.reader.upkeep(partial(_slice, first, last, _OFFSET_MASK))
            unit = broker.store.unit()
            unit.delete_batches(first, end)
            if complete:
                unit.delete(DOOMED_SPACE, str(number))
            await broker.store.commit(unit)
        broker.topics.doomed.discard(number)


def _slice(first: int, last: int, below: int, connection: sqlite3.Connection) -> tuple[int, int, bool]:
    """Where a slice of the rows [first, last) ends that lie below an offset; its bytes; whether it is the last one."""
    end, rows, freed = first, 0, 0
    cursor = connection.execute(
        "SELECT id, last_offset, length(data) FROM batches WHERE id >= ? AND id < ? ORDER BY id", (first, last)
    )
    complete = True
    for row_id, last_offset, size in cursor:
        if last_offset >= below:
            break
        if rows >= SLICE_ROWS or freed >= SLICE_BYTES:
            complete = False
            break
        end, rows, freed = row_id + 1, rows + 1, freed + size
    cursor.close()
    return end, freed, complete


async def vacuum(broker: Broker) -> None:
    """Give pages that are not needed any more back to the file system, some at a time."""
    free = await broker.reader.upkeep(_free_pages)
    while free > _FREE_PAGES:
        unit = broker.store.unit()
        unit.vacuum(_VACUUM_PAGES)
        await broker.store.commit(unit)
        free -= _VACUUM_PAGES


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])
