"""Reads changelogs into partition tables: restores them, then keeps following those that others write.

1. A table is restored once the reader's position has passed the end that it was added with. Positions are compared,
   never record counts: transaction markers take offsets, and compacted logs have holes.
2. Restoring and following are the same code: read a batch, apply the last value per key, remember the position.
3. A position that the changelog no longer has, or does not have yet, empties the table and starts from the log's start.

Owned by the worker's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from time import monotonic

from msgspec import Struct

from gokamsg.engine.cluster import TableClient
from gokamsg.engine.counts import TableCount
from gokamsg.engine.records import RecordBatch
from gokamsg.engine.silence import obstacle_of
from gokamsg.engine.updates import Followed, UpdateCallback, changes_of
from gokamsg.errors import PositionLostError

log = logging.getLogger(__name__)

TopicPartition = tuple[str, int]
Changed = Callable[[int, Collection[bytes]], None]

FLUSH_ROWS = 8_192
"""Rows to store at once in a restore: enough for the file, and soon done when the last record was read."""

PROBE_POLL_S = 0.05


class RestoreProgress(Struct, frozen=True):
    """How far a restore is. Rows are counted in changelog offsets, holes included."""

    partitions_done: int
    partitions: int
    rows_done: int
    rows: int
    rows_per_s: float
    remaining_s: float | None


class _Reading(Struct):
    table: Followed
    start: int
    end: int
    follow: bool
    changed: Changed | None
    count: TableCount
    update: UpdateCallback | None
    restored: bool = False


class TableReader:
    """See the module."""

    def __init__(self, consumer: TableClient, update: UpdateCallback | None = None) -> None:
        self.records = 0  # applied since the start
        self._consumer = consumer
        self._update = update
        self.counts: dict[TopicPartition, TableCount] = {}
        self._readings: dict[TopicPartition, _Reading] = {}
        self._stage_began = self._moved_at = monotonic()
        self._stage: list[_Reading] = []

    def add(
        self, table: Followed, end: int, *, follow: bool, changed: Changed | None = None, raw: bool = False
    ) -> None:
        """Restore `table` up to `end` (a changelog position); `follow` it afterwards. `changed(partition, keys)` is
        called for every change applied, with no keys when all may have changed. `raw`: no update callback."""
        key = (table.topic, table.partition)
        if all(reading.restored for reading in self._stage):
            self._stage = []
            self._stage_began = self._moved_at = monotonic()
        if table.position > end:
            table.discard()  # ahead of the log: the topic was truncated or made anew
        count = self.counts[key] = TableCount(table.position, end)
        reading = _Reading(table, table.position, end, follow, changed, count, None if raw else self._update)
        self._stage.append(reading)
        reading.restored = table.position >= end
        if reading.restored:
            count.recovered()
        if reading.restored and not follow:
            self._readings.pop(key, None)
        else:
            self._readings[key] = reading
        self._assign()

    def remove(self, topic: str, partition: int) -> None:
        """Stop reading this table partition."""
        self.counts.pop((topic, partition), None)
        reading = self._readings.pop((topic, partition), None)
        if reading is not None:
            self._stage = [r for r in self._stage if r is not reading]
            self._assign()

    def restored(self, topic: str, partition: int) -> bool:
        """True once the partition has everything below the end that it was added with."""
        reading = self._readings.get((topic, partition))
        return reading is None or reading.restored

    @property
    def restoring(self) -> bool:
        """True while a table is not restored yet."""
        return any(not reading.restored for reading in self._readings.values())

    def standstill(self, after_s: float) -> tuple[str, int, int] | None:
        """A table partition that is not restored, and the position it stands at, once nothing has come for so long."""
        if monotonic() - self._moved_at < after_s:
            return None
        waiting = (reading.table for reading in self._readings.values() if not reading.restored)
        return next(((table.topic, table.partition, table.position) for table in waiting), None)

    @property
    def obstacle(self) -> str | None:
        """What stands between the reader and its brokers right now."""
        return obstacle_of(self._consumer) if self._readings else None

    @property
    def idle(self) -> bool:
        """True when there is nothing to read."""
        return not self._readings

    @property
    def starting(self) -> bool:
        """True while something to read is not followed yet: more polls bring that about, and nothing else does."""
        return bool(self._readings) and self._consumer.starting()

    def poll(self, timeout_s: float) -> int:
        """Apply what has arrived; waits up to `timeout_s` if nothing has. Returns the number of records applied."""
        if not self._readings:
            return 0
        applied = 0
        try:
            polled = self._consumer.poll(timeout_s)
        except PositionLostError as error:
            self._start_over(error.positions)
            return 0
        for key, batches in polled.items():
            reading = self._readings.get(key)
            if reading is not None:
                applied += self._apply(reading, batches)
        if applied:
            self._moved_at = monotonic()
        finished = False
        for key, reading in list(self._readings.items()):
            applied += self._advance(key, reading)
            if reading.restored and not reading.follow:
                del self._readings[key]
                finished = True
        if finished:
            self._assign()
        return applied

    def written(self, ends: Mapping[TopicPartition, int], timeout_s: float) -> Collection[TopicPartition] | None:
        """Those of these changelogs that hold a committed record below the given end; None if that takes longer.

        An end above 0 does not say so: it counts aborted records and markers, and Apache Kafka writes the marker of a
        transaction whose topic was deleted meanwhile into the topic that was made anew under its name.
        """
        found: set[TopicPartition] = set()
        unknown = set(ends)
        deadline = monotonic() + timeout_s
        self._consumer.set_partitions({})  # what is read would keep its position otherwise, before and afterwards
        try:
            self._consumer.set_partitions({key: self._consumer.log_start(*key) for key in ends})
            while unknown and monotonic() < deadline:
                found.update(self._consumer.poll(PROBE_POLL_S))
                unknown = {key for key in unknown - found if self._consumer.position(*key) < ends[key]}
        except PositionLostError:
            return None
        finally:
            self._consumer.set_partitions({})
            self._assign()
        return None if unknown else found

    def lag(self) -> int:
        """Changelog records that are not applied yet, holes included, over everything that is read."""
        return sum(lag or 0 for lag in self._consumer.lags().values())

    def progress(self) -> RestoreProgress:
        """How far the present (or last) restore is."""
        stage = self._stage
        done = sum(min(r.table.position, r.end) - r.start for r in stage)
        total = sum(max(r.end - r.start, 0) for r in stage)
        elapsed = max(monotonic() - self._stage_began, 1e-3)
        rate = done / elapsed
        return RestoreProgress(
            partitions_done=sum(r.restored for r in stage),
            partitions=len(stage),
            rows_done=done,
            rows=total,
            rows_per_s=rate,
            remaining_s=(total - done) / rate if rate > 0 else None,
        )

    def _apply(self, reading: _Reading, batches: list[RecordBatch]) -> int:
        table, applied = reading.table, 0
        for batch in batches:
            changes = changes_of(batch, table, reading.update)
            table.apply(changes, batch.next_offset)
            if reading.changed is not None:
                reading.changed(table.partition, changes)
            applied += batch.count
            self.records += batch.count
            reading.count.input.add(changes.values(), batch.count, batch.next_offset - 1)
            if table.dirty_rows >= FLUSH_ROWS:
                table.flush()
        return applied

    def _advance(self, key: TopicPartition, reading: _Reading) -> int:
        """Pass over markers and holes: what the consumer has passed, the table has."""
        position = self._consumer.position(*key)
        if position is not None and position > reading.table.position:
            reading.table.apply({}, position)
        reading.count.move(reading.table.position)
        if not reading.restored and reading.table.position >= reading.end:
            reading.restored = True
            reading.count.recovered()
            reading.table.flush()
            return 1
        return 0

    def _start_over(self, lost: Iterable[TopicPartition]) -> None:
        for key in lost:
            reading = self._readings.get(key)
            if reading is not None:
                log.warning("table %s/%d is rebuilt: its position is not in the changelog any more", *key)
                reading.table.discard()
                reading.start = self._consumer.log_start(*key)
                reading.end = min(reading.end, self._consumer.end_offsets([key], read_committed=True)[key])
                reading.table.apply({}, reading.start)
                if reading.changed is not None:
                    reading.changed(reading.table.partition, ())
                self._consumer.seek(*key, reading.start)

    def _assign(self) -> None:
        self._consumer.set_partitions({key: r.table.position for key, r in self._readings.items()})
