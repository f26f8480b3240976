"""Compaction: a log keeps the last record of each key, tombstones for a while, and nothing that was aborted.

1. Records are sliced out of the decompressed batch as they are; a batch keeps its base offset, its last offset and its
   records' deltas. Only count, length and checksum change.
2. Nothing at or above the last stable offset is touched, nor the last batch below it, so that a reader always gets to
   the end.
3. A tombstone stays for delete.retention.ms after the pass that first met it. So does a transaction's marker; an ABORT
   marker leaves together with its entry in the aborted index, in one write unit: with the entry alone, readers would
   discard what its producer committed later. Its data left in the pass that first met the marker, or earlier.
4. Sequence windows are in the log's snapshot, which is stored before a pass begins: compaction cannot lose them.

Threads: compact() on the broker's loop; its scans run in slices on the reader's upkeep thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from msgspec import Struct, field

from gokamsg.broker import records
from gokamsg.broker.batch import BatchError, BatchHeader, marker_commits, read_header, seal
from gokamsg.broker.compression import CompressionError, compress
from gokamsg.broker.configs import TopicConfig
from gokamsg.broker.log import ABORTED_SPACE, PartitionLog
from gokamsg.broker.state import Broker
from gokamsg.broker.store import OFFSET_BITS, BatchRow

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_SLICE_S = 0.02  # of work on the upkeep thread, then as long a pause: the loop has to get its turns
_LONG_KEY = 24
_ROWS = (
    "SELECT id, last_offset, max_timestamp, attributes, producer_id, producer_epoch, base_sequence, cleaned_ms, data"
    " FROM batches WHERE id >= ? AND id < ? ORDER BY id"
)


class _Pass(Struct):
    """One pass over one log."""

    log: PartitionLog
    now_ms: int
    delete_retention_ms: int
    limit: int  # the offset where it ends
    max_keys: int
    latest: dict[bytes, int] = field(default_factory=dict)
    aborted: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # producer -> (first offset, marker)
    due_ms: int = 0  # when the first of the tombstones and markers that stay may go

    def is_aborted(self, header: BatchHeader) -> bool:
        spans = self.aborted.get(header.producer_id) if header.transactional else None
        if not spans:
            return False
        index = bisect_right(spans, (header.base_offset, _OFFSET_MASK)) - 1
        return index >= 0 and spans[index][0] <= header.base_offset < spans[index][1]

    def may_go(self, cleaned_ms: int) -> bool:
        """Whether a tombstone or marker that a pass met at cleaned_ms (0: never) has been kept for long enough."""
        return cleaned_ms > 0 and self.now_ms >= cleaned_ms + self.delete_retention_ms

    def keep_until(self, cleaned_ms: int) -> None:
        due_ms = (cleaned_ms or self.now_ms) + self.delete_retention_ms
        self.due_ms = min(self.due_ms or due_ms, due_ms)


class _Changes(Struct):
    """What a slice of the second scan wants changed."""

    next_offset: int
    replaced: list[BatchRow] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    marked: list[int] = field(default_factory=list)
    markers: set[int] = field(default_factory=set)  # offsets of ABORT markers that go
    freed: int = 0


class _Survey(NamedTuple):
    """What there is to do in a log."""

    limit: int
    dirty_bytes: int
    oldest_dirty_ms: int
    due_ms: int  # when a tombstone or marker may go; -1: there is none


async def compact(broker: Broker, log: PartitionLog, config: TopicConfig, now_ms: int, *, force: bool = False) -> bool:
    """Run a pass over the log if it is worth one; whether it ran."""
    survey = await broker.reader.upkeep(partial(_survey, log, config, now_ms))
    log.tombstones_due_ms = survey.due_ms
    if not (force or _worth_it(log, config, survey, now_ms)):
        return False
    work = _Pass(log, now_ms, config.delete_retention_ms, survey.limit, broker.settings.compaction_max_keys)
    for entry in log.aborted:
        work.aborted.setdefault(entry.producer_id, []).append((entry.first_offset, entry.marker_offset))
    await _store_snapshot(broker, log)
    position = log.cleaned_offset
    while position < work.limit and not log.deleted:
        position = await _in_turns(broker, partial(_learn, work, position))
    position = 0
    while position < work.limit and not log.deleted:
        changes = await _in_turns(broker, partial(_clean, work, position))
        await _store(broker, log, changes, now_ms)
        position = changes.next_offset
    if not log.deleted:
        log.cleaned_offset = max(log.cleaned_offset, work.limit)
        log.tombstones_due_ms = work.due_ms or -1
        await _store_snapshot(broker, log)
    return True


def _worth_it(log: PartitionLog, config: TopicConfig, survey: _Survey, now_ms: int) -> bool:
    if 0 < survey.due_ms <= now_ms:
        return True
    if survey.limit <= log.cleaned_offset:
        return False
    overdue = now_ms - survey.oldest_dirty_ms > config.max_compaction_lag_ms
    return overdue or survey.dirty_bytes >= config.min_dirty_ratio * max(log.size_bytes, 1)


async def _store_snapshot(broker: Broker, log: PartitionLog) -> None:
    unit = broker.store.unit()
    log.stage_snapshot(unit)
    await broker.store.commit(unit)


async def _in_turns(broker: Broker, work: Callable[[sqlite3.Connection], T]) -> T:
    started = time.monotonic()
    result = await broker.reader.upkeep(work)
    await asyncio.sleep(time.monotonic() - started)
    return result


def _survey(log: PartitionLog, config: TopicConfig, now_ms: int, connection: sqlite3.Connection) -> _Survey:
    first, stable = log.row_id(0), log.row_id(log.last_stable_offset)
    row = connection.execute(
        "SELECT id FROM batches WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1", (first, stable)
    ).fetchone()
    limit = 0 if row is None else row[0] & _OFFSET_MASK
    dirty = log.row_id(log.cleaned_offset)
    if config.min_compaction_lag_ms > 0:
        row = connection.execute(
            "SELECT id FROM batches WHERE id >= ? AND id < ? AND max_timestamp > ? ORDER BY id LIMIT 1",
            (dirty, log.row_id(limit), now_ms - config.min_compaction_lag_ms),
        ).fetchone()
        limit = limit if row is None else row[0] & _OFFSET_MASK
    size, oldest = connection.execute(
        "SELECT total(length(data)), min(max_timestamp) FROM batches WHERE id >= ? AND id < ?",
        (dirty, log.row_id(limit)),
    ).fetchone()
    due_ms = log.tombstones_due_ms
    if due_ms == 0:  # not known since the start
        met = connection.execute(
            "SELECT min(cleaned_ms) FROM batches WHERE id >= ? AND id < ? AND cleaned_ms > 0", (first, stable)
        ).fetchone()[0]
        due_ms = -1 if met is None else met + config.delete_retention_ms
    return _Survey(limit, int(size), now_ms if oldest is None else oldest, due_ms)


def _digest(key: bytes) -> bytes:
    return key if len(key) <= _LONG_KEY else hashlib.blake2b(key, digest_size=16).digest()


def _learn(work: _Pass, offset: int, connection: sqlite3.Connection) -> int:
    """Note the newest offset of each key from offset on, for a slice; where to go on."""
    log, latest = work.log, work.latest
    deadline = time.monotonic() + _SLICE_S
    cursor = connection.execute(_ROWS, (log.row_id(offset), log.row_id(work.limit)))
    try:
        for row in cursor:
            batch: bytes = row[8]
            header = read_header(batch)
            if len(latest) >= work.max_keys:  # the rest of the log is for the next pass
                work.limit = header.base_offset
                return work.limit
            if not header.control and not work.is_aborted(header):
                try:
                    for record in records.walk(records.body_of(batch, header), header.record_count):
                        if record.key is not None:
                            latest[_digest(record.key)] = header.base_offset + record.offset_delta
                except (BatchError, CompressionError) as error:
                    logger.warning("compaction leaves a batch of %r as it is: %s", log, error)
            if time.monotonic() > deadline:
                return header.last_offset + 1
    finally:
        cursor.close()
    return work.limit


def _clean(work: _Pass, offset: int, connection: sqlite3.Connection) -> _Changes:
    """Decide on the batches from offset on, for a slice."""
    log = work.log
    deadline = time.monotonic() + _SLICE_S
    changes = _Changes(work.limit)
    cursor = connection.execute(_ROWS, (log.row_id(offset), log.row_id(work.limit)))
    for row in cursor:
        header = read_header(row[8])
        if header.control:
            _clean_marker(work, row, header, changes)
        elif work.is_aborted(header):
            changes.deleted.append(row[0])
            changes.freed += len(row[8])
        else:
            _clean_batch(work, row, header, changes)
        if time.monotonic() > deadline:
            changes.next_offset = header.last_offset + 1
            break
    cursor.close()
    return changes


def _clean_marker(work: _Pass, row: BatchRow, header: BatchHeader, changes: _Changes) -> None:
    row_id, cleaned_ms, batch = row[0], row[7], row[8]
    if work.may_go(cleaned_ms):
        changes.deleted.append(row_id)
        changes.freed += len(batch)
        if not marker_commits(batch):
            changes.markers.add(header.base_offset)
        return
    if cleaned_ms == 0:
        changes.marked.append(row_id)
    work.keep_until(cleaned_ms)


def _clean_batch(work: _Pass, row: BatchRow, header: BatchHeader, changes: _Changes) -> None:
    row_id, cleaned_ms, batch = row[0], row[7], row[8]
    kept: list[tuple[int, int]] = []  # runs of records that stay
    kept_records = 0
    tombstones = False
    try:
        body = records.body_of(batch, header)
        for record in records.walk(body, header.record_count):
            if (
                record.key is None
                or work.latest.get(_digest(record.key), -1) > header.base_offset + record.offset_delta
            ):
                continue
            if record.tombstone:
                if work.may_go(cleaned_ms):
                    continue
                tombstones = True
            kept_records += 1
            if kept and kept[-1][1] == record.start:
                kept[-1] = (kept[-1][0], record.end)
            else:
                kept.append((record.start, record.end))
    except (BatchError, CompressionError) as error:
        logger.warning("compaction leaves a batch of %r as it is: %s", work.log, error)
        return
    if not kept:
        changes.deleted.append(row_id)
        changes.freed += len(batch)
        return
    if tombstones:
        work.keep_until(cleaned_ms)
    first_met = work.now_ms if tombstones and cleaned_ms == 0 else cleaned_ms
    if kept_records == header.record_count:
        if first_met != cleaned_ms:
            changes.marked.append(row_id)
        return
    survivors = b"".join(body[start:end] for start, end in kept)
    rewritten = seal(header._replace(record_count=kept_records), compress(header.compression, survivors))
    changes.replaced.append((*row[:7], first_met, rewritten))
    changes.freed += len(batch) - len(rewritten)


async def _store(broker: Broker, log: PartitionLog, changes: _Changes, now_ms: int) -> None:
    """Make a slice's changes durable, all or none."""
    unit = broker.store.unit()
    for row in changes.replaced:
        unit.replace_batch(row)
    for row_id in changes.deleted:
        unit.delete_batch(row_id)
    for row_id in changes.marked:
        unit.mark_cleaned(row_id, now_ms)
    for offset in changes.markers:
        unit.delete(ABORTED_SPACE, log.aborted_key(offset))
    if unit.empty:
        return
    # The cache goes in the same step: with a marker's entry gone, aborted data that was cached would look committed.
    unit.then(_Cleaned(log, changes))
    await broker.store.commit(unit)


class _Cleaned:
    """A slice of a pass that is not durable yet."""

    def __init__(self, log: PartitionLog, changes: _Changes) -> None:
        self._log = log
        self._changes = changes

    def apply(self) -> None:
        self._log.drop_cache()
        self._log.forget_aborted(self._changes.markers)
        self._log.size_bytes = max(0, self._log.size_bytes - self._changes.freed)
