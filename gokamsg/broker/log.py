"""One partition's log: offsets, appends in two steps, what readers may see.

1. stage() gives a batch its offset at once and puts it into a write unit; later appends queue behind it in that order.
2. apply() runs when the unit is durable: only then do the high watermark and the last stable offset move and readers
   wake. The store calls it, in the order of offsets; calling it again does nothing.
3. Nothing at or above the high watermark is ever served, nothing at or above the last stable offset to a reader of
   committed data.
4. The last stable offset passes a transaction only once its marker is durable.

Threads: the broker's loop only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from gokamsg.broker import batch as batches
from gokamsg.broker.batch import BatchError, BatchHeader
from gokamsg.broker.cache import CacheBudget, Tail
from gokamsg.broker.clock import Clock
from gokamsg.broker.codes import Code
from gokamsg.broker.producers import Producers, ProducerSnapshot
from gokamsg.broker.store import OFFSET_BITS, WriteUnit

LOG_SPACE = "log"  # key: partition number
MAX_OFFSET = (1 << OFFSET_BITS) - (1 << 20)  # the rest is for markers of transactions that are open then
ABORTED_SPACE = "aborted"  # key: partition number and the marker's offset
SNAPSHOT_BATCHES = 2_000  # a start has no more batches of a log to read than this


class Aborted(NamedTuple):
    """A transaction that was aborted: its producer's records from first_offset up to the marker are void."""

    producer_id: int
    first_offset: int
    marker_offset: int


class LogSnapshot(msgspec.Struct, array_like=True):
    """What cannot be read off the stored batches, as of an offset."""

    start_offset: int
    end_offset: int
    cleaned_offset: int  # compaction: everything below has been through a pass
    size_bytes: int
    open_transactions: list[tuple[int, int]]  # producer id, first offset
    producers: list[ProducerSnapshot]


class StagedAppend:
    """A batch with an offset that is not durable yet."""

    __slots__ = ("aborted", "base_offset", "batch", "header", "last_offset", "log", "transaction_ends")

    def __init__(self, log: PartitionLog, header: BatchHeader, base_offset: int, batch: bytes) -> None:
        self.log: PartitionLog | None = log
        self.header = header
        self.base_offset = base_offset
        self.last_offset = base_offset + header.last_offset_delta
        self.batch = batch
        self.transaction_ends = False
        self.aborted: Aborted | None = None

    def apply(self) -> None:
        if self.log is not None:
            log, self.log = self.log, None
            log.move_past(self)


class _StagedStart:
    """A start of the log that is not durable yet."""

    def __init__(self, log: PartitionLog, offset: int) -> None:
        self._log = log
        self._offset = offset

    def apply(self) -> None:
        self._log.start_moved(self._offset)


class PartitionLog:
    """One partition; see the module's contract."""

    def __init__(self, topic: str, partition: int, *, number: int, budget: CacheBudget, clock: Clock) -> None:
        self.topic = topic
        self.partition = partition
        self.number = number  # the partition's own number in the data file, never used again
        self.log_start_offset = 0
        self.high_watermark = 0
        self.end_offset = 0  # the next offset to give out; above the high watermark while appends wait for the disk
        self.cleaned_offset = 0
        self.size_bytes = 0  # of all batches up to end_offset
        self.producers = Producers()
        self.aborted: list[Aborted] = []  # in the order of marker offsets
        self.deleted = False
        self.snapshot_offset = 0  # end offset of the newest stored snapshot
        self.tail = Tail(budget, 0)
        self.swept_offset = 0  # no rows are left below it
        self.tombstones_due_ms = 0  # when the next tombstone or marker may go; 0: not known
        self._staged_start = 0
        self._batches_since_snapshot = 0
        self._clock = clock
        self._open: dict[int, int] = {}  # producer id -> first offset, durable; in the order of offsets
        self._waiters: set[Callable[[], None]] = set()

    def __repr__(self) -> str:
        return f"<PartitionLog {self.topic}/{self.partition} {self.log_start_offset}..{self.high_watermark}>"

    @property
    def last_stable_offset(self) -> int:
        """No transaction below it is open."""
        for first_offset in self._open.values():
            return first_offset
        return self.high_watermark

    def row_id(self, offset: int) -> int:
        return self.number << OFFSET_BITS | offset

    # ---- appending

    def stage(
        self, unit: WriteUnit, records: bytes | memoryview, header: BatchHeader, *, append_time_ms: int | None = None
    ) -> StagedAppend:
        """Put a checked batch at the log's end into the unit; raises BatchError when the log is full."""
        base_offset = self.end_offset
        if base_offset + header.last_offset_delta >= MAX_OFFSET:
            raise BatchError(Code.KAFKA_STORAGE_ERROR, f"partition {self.topic}/{self.partition} has no offsets left")
        if append_time_ms is None:
            placed = batches.place(records, header, base_offset)
        else:
            placed, header = batches.place_at_append_time(records, header, base_offset, append_time_ms)
        if header.producer_id >= 0:
            self.producers.appended(
                header.producer_id,
                header.producer_epoch,
                base_sequence=header.base_sequence,
                count=header.record_count,
                base_offset=base_offset,
                timestamp=header.max_timestamp,
                transactional=header.transactional,
            )
        return self._stage(unit, StagedAppend(self, header, base_offset, placed))

    def stage_marker(
        self,
        unit: WriteUnit,
        producer_id: int,
        epoch: int,
        *,
        commit: bool,
        coordinator_epoch: int = 0,
    ) -> StagedAppend:
        """Put the control batch that ends producer_id's transaction here, and what goes with it, into the unit."""
        base_offset, now_ms = self.end_offset, self._clock.wall_ms()
        placed = batches.marker(
            base_offset=base_offset,
            now_ms=now_ms,
            producer_id=producer_id,
            producer_epoch=epoch,
            commit=commit,
            coordinator_epoch=coordinator_epoch,
        )
        staged = StagedAppend(self, batches.read_header(placed), base_offset, placed)
        staged.transaction_ends = True
        first = self.producers.ended(producer_id, epoch, timestamp=now_ms, coordinator_epoch=coordinator_epoch)
        if not commit and first >= 0:
            staged.aborted = Aborted(producer_id, first, base_offset)
            unit.put(ABORTED_SPACE, self.aborted_key(base_offset), msgspec.msgpack.encode(staged.aborted))
        return self._stage(unit, staged)

    def _stage(self, unit: WriteUnit, staged: StagedAppend) -> StagedAppend:
        header = staged.header
        self.end_offset = staged.last_offset + 1
        self.size_bytes += len(staged.batch)
        unit.append(
            staged,
            (
                self.row_id(staged.base_offset),
                staged.last_offset,
                header.max_timestamp,
                header.attributes,
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                0,
                staged.batch,
            ),
        )
        self._batches_since_snapshot += 1
        if self._batches_since_snapshot >= SNAPSHOT_BATCHES:
            self.stage_snapshot(unit)
        return staged

    def stage_start(self, unit: WriteUnit, offset: int) -> None:
        """Move the log's start to offset, at most the high watermark; visible once the unit is durable."""
        if offset > max(self._staged_start, self.log_start_offset):
            self._staged_start = offset
            for entry in self.aborted:
                if entry.marker_offset < offset:
                    unit.delete(ABORTED_SPACE, self.aborted_key(entry.marker_offset))
            self.stage_snapshot(unit)
        unit.then(_StagedStart(self, offset))

    def start_moved(self, offset: int) -> None:
        """_StagedStart.apply() calls this."""
        self.log_start_offset = max(self.log_start_offset, offset)
        self.aborted = [entry for entry in self.aborted if entry.marker_offset >= self.log_start_offset]

    def apply(self, staged: StagedAppend) -> None:
        """Make a durable append visible; the store has usually done it already."""
        staged.apply()

    def move_past(self, staged: StagedAppend) -> None:
        """StagedAppend.apply() calls this, once per append and in the order of offsets."""
        header = staged.header
        if staged.transaction_ends:
            self._open.pop(header.producer_id, None)
            if staged.aborted is not None:
                self.aborted.append(staged.aborted)
        elif header.transactional:
            self._open.setdefault(header.producer_id, staged.base_offset)
        self.high_watermark = staged.last_offset + 1
        self.tail.add(staged.base_offset, staged.last_offset, staged.batch)
        self.wake()

    def has_open_transaction(self, producer_id: int) -> bool:
        """Whether producer_id has written here since its last marker, durable or not."""
        producer = self.producers.by_id.get(producer_id)
        return producer is not None and producer.transaction_start >= 0

    # ---- reading

    def aborted_between(self, offset: int, end_offset: int) -> list[Aborted]:
        """The aborted transactions that a reader of [offset, end_offset) has to know."""
        first = bisect_left(self.aborted, offset, key=_marker_offset)
        return [entry for entry in self.aborted[first:] if entry.first_offset < end_offset]

    def add_waiter(self, wake: Callable[[], None]) -> None:
        """Have wake called at every change of what readers may see, until remove_waiter()."""
        self._waiters.add(wake)

    def remove_waiter(self, wake: Callable[[], None]) -> None:
        self._waiters.discard(wake)

    def wake(self) -> None:
        if self._waiters:
            for wake in tuple(self._waiters):
                wake()

    # ---- state at rest

    def aborted_key(self, marker_offset: int) -> str:
        return f"{self.number}/{marker_offset:016d}"

    def stage_snapshot(self, unit: WriteUnit) -> None:
        """Put the state as of the log's end into the unit; committed after every append so far, so it is true."""
        open_transactions = [
            (producer_id, producer.transaction_start)
            for producer_id, producer in self.producers.by_id.items()
            if producer.transaction_start >= 0
        ]
        snapshot = LogSnapshot(
            start_offset=max(self.log_start_offset, self._staged_start),
            end_offset=self.end_offset,
            cleaned_offset=self.cleaned_offset,
            size_bytes=self.size_bytes,
            open_transactions=sorted(open_transactions, key=lambda entry: entry[1]),
            producers=self.producers.snapshot(),
        )
        unit.put(LOG_SPACE, str(self.number), msgspec.msgpack.encode(snapshot))
        self.snapshot_offset = self.end_offset
        self._batches_since_snapshot = 0

    def restore(self, snapshot: LogSnapshot) -> None:
        """Take over a stored snapshot, before anything is read or written."""
        self.log_start_offset = snapshot.start_offset
        self.high_watermark = self.end_offset = self.snapshot_offset = snapshot.end_offset
        self.cleaned_offset = snapshot.cleaned_offset
        self.size_bytes = snapshot.size_bytes
        self.producers.restore(snapshot.producers)
        self._open = dict(snapshot.open_transactions)

    def replay(self, header: BatchHeader, size: int) -> None:
        """Repeat a stored batch at or above the snapshot's offset."""
        if header.control:
            self.producers.ended(
                header.producer_id, header.producer_epoch, timestamp=header.max_timestamp, coordinator_epoch=0
            )
            self._open.pop(header.producer_id, None)
        elif header.producer_id >= 0:
            self.producers.appended(
                header.producer_id,
                header.producer_epoch,
                base_sequence=header.base_sequence,
                count=header.last_offset_delta + 1,
                base_offset=header.base_offset,
                timestamp=header.max_timestamp,
                transactional=header.transactional,
            )
            if header.transactional:
                self._open.setdefault(header.producer_id, header.base_offset)
        self.high_watermark = self.end_offset = header.last_offset + 1
        self.size_bytes += size
        self._batches_since_snapshot += 1

    def forget_aborted(self, marker_offsets: set[int]) -> None:
        """The markers at these offsets are gone from the data file, and their entries with them."""
        self.aborted = [entry for entry in self.aborted if entry.marker_offset not in marker_offsets]

    def drop_cache(self) -> None:
        """Compaction has rewritten batches: the cached ones are out of date."""
        self.tail.clear(self.high_watermark)

    def remove(self) -> None:
        """The topic is deleted: forget the cache, wake readers so that they see it."""
        self.deleted = True
        self.tail.clear(self.end_offset)
        self.wake()
        self._waiters.clear()


def _marker_offset(entry: Aborted) -> int:
    return entry.marker_offset
