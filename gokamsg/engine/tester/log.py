"""Topics in memory: partitions of record batches, with transactions and their markers as a Kafka log has them.

A batch lies in its log from the moment it is sent; readers see it once its transaction is committed, in the log's
order, and pass over what was aborted. Beside the logs a topic keeps its journal: every record that became visible, in
the order in which it did, over all partitions.
"""

import struct
from bisect import bisect_right
from itertools import islice
from operator import attrgetter

from msgspec import Struct, field

from gokamsg.engine.records import BatchBuilder, RecordBatch


class JournalRecord(Struct, frozen=True):
    """A record that readers see. Key and value are bytes as they are in the log."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    timestamp_ms: int


class MemoryTransaction:
    """What becomes visible together, or never. `written` holds each batch with its log, in the order of sending."""

    def __init__(self) -> None:
        self.open = True
        self.committed = False
        self.written: list[tuple[MemoryTopic, MemoryLog, _Entry]] = []

    def end(self, *, commit: bool) -> None:
        """Commit or abort: a marker goes into each partition that was written to."""
        self.open, self.committed = False, commit
        logs = {id(log): log for _, log, _ in self.written}
        for log in logs.values():
            log.add_marker(self)
        if commit:
            for topic, log, entry in self.written:
                topic.publish(log, entry)


class _Entry(Struct):
    base: int
    next: int
    raw: bytes | None  # None is a transaction's marker
    transaction: MemoryTransaction | None

    @property
    def is_open(self) -> bool:
        return self.transaction is not None and self.transaction.open

    @property
    def is_visible(self) -> bool:
        return self.raw is not None and (self.transaction is None or self.transaction.committed)


class MemoryLog(Struct):
    """One partition."""

    partition: int
    end: int = 0
    _entries: list[_Entry] = field(default_factory=list)
    _open: list[_Entry] = field(default_factory=list)

    def append(self, builder: BatchBuilder, transaction: MemoryTransaction | None) -> _Entry:
        """Add the builder's records as one batch."""
        raw = builder.build(transactional=transaction is not None)
        struct.pack_into(">q", raw, 0, self.end)
        entry = _Entry(self.end, self.end + builder.count, bytes(raw), transaction)
        self._entries.append(entry)
        if transaction is not None:
            self._open.append(entry)
        self.end = entry.next
        return entry

    def add_marker(self, transaction: MemoryTransaction) -> None:
        """The end of a transaction; it takes an offset, as on Kafka."""
        self._entries.append(_Entry(self.end, self.end + 1, None, transaction))
        self._open = [entry for entry in self._open if entry.is_open]
        self.end += 1

    def stable_end(self) -> int:
        """Where the first open transaction begins, else the end."""
        return self._open[0].base if self._open else self.end

    def read(self, position: int, batches: int) -> tuple[list[RecordBatch], int]:
        """Up to so many visible batches from `position` on, and the position behind them."""
        found: list[RecordBatch] = []
        first = bisect_right(self._entries, position, key=attrgetter("next"))
        for entry in islice(self._entries, first, None):
            if entry.is_open or len(found) == batches:
                break
            if entry.is_visible:
                found.append(parse(entry, position))
            position = entry.next
        return found, position

    def offset_at(self, timestamp_ms: int) -> int:
        """The first offset at or after a time, -1 if there is none."""
        for entry in self._entries:
            if entry.raw is not None:
                records = parse(entry, 0).split()
                for index, offset in enumerate(records.offsets):
                    if records.timestamp(index) >= timestamp_ms:
                        return offset
        return -1


class MemoryTopic(Struct):
    """A topic, its partitions and its journal; `rows` is the last visible value of each key."""

    name: str
    topic_id: str
    config: dict[str, str]
    logs: list[MemoryLog]
    journal: list[JournalRecord] = field(default_factory=list)
    rows: dict[bytes, bytes] = field(default_factory=dict)

    def append(self, partition: int, builder: BatchBuilder, transaction: MemoryTransaction | None = None) -> int:
        """Write a batch; the offset of its first record."""
        log = self.logs[partition]
        entry = log.append(builder, transaction)
        if transaction is None:
            self.publish(log, entry)
        else:
            transaction.written.append((self, log, entry))
        return entry.base

    def publish(self, log: MemoryLog, entry: _Entry) -> None:
        """Readers see this batch from now on."""
        records = parse(entry, 0).split()
        for index, (offset, key, value) in enumerate(zip(records.offsets, records.keys, records.values, strict=True)):
            headers = dict(records.headers(index))
            at = records.timestamp(index)
            self.journal.append(JournalRecord(log.partition, offset, key, value, headers, at))
            if value is None:
                self.rows.pop(key or b"", None)
            else:
                self.rows[key or b""] = value


def parse(entry: _Entry, position: int) -> RecordBatch:
    """The batch of an entry that has one, for a reader who stands at `position`."""
    batch = RecordBatch.parse(entry.raw or b"")
    assert batch is not None
    batch.start_offset = max(batch.base_offset, position)
    return batch
