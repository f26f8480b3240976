"""Idempotent producers as one partition sees them: epochs, sequence windows, open transactions.

1. A batch sent twice is answered with the offset it got the first time, for the last five batches of a producer.
2. A gap in the sequence, or a duplicate older than the window, is refused; so is an older epoch.
3. At most MAX_PRODUCERS are remembered, and not longer than they are idle for producer_id_expiration_ms.
4. The first batch of a producer that is not known here may start at any sequence: its history may have been deleted.

The state is that of the log's end, batches that wait for the disk included; it is rebuilt from the log at start-up.
Threads: the broker's loop only.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec

from gokamsg.broker.batch import BatchError
from gokamsg.broker.codes import Code

WINDOW = 5
MAX_PRODUCERS = 5_000  # per partition: a client that makes up producer ids must not fill the memory
_SEQUENCES = 1 << 31  # sequences wrap from 2^31 - 1 to 0


class Written(NamedTuple):
    """One batch of the window."""

    base_sequence: int
    last_sequence: int
    base_offset: int


class ProducerSnapshot(msgspec.Struct, array_like=True):
    """A producer's state as it is stored."""

    producer_id: int
    epoch: int
    next_sequence: int
    window: list[tuple[int, int, int]]
    transaction_start: int
    last_timestamp: int
    coordinator_epoch: int


class Producer:
    """What is known of one producer id."""

    __slots__ = ("coordinator_epoch", "epoch", "last_timestamp", "next_sequence", "transaction_start", "window")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.next_sequence = -1  # -1: any
        self.window: deque[Written] = deque(maxlen=WINDOW)
        self.transaction_start = -1
        self.last_timestamp = -1
        self.coordinator_epoch = -1

    @property
    def last_sequence(self) -> int:
        return self.window[-1].last_sequence if self.window else -1


class Producers:
    """The producers of one partition, by producer id."""

    def __init__(self) -> None:
        self.by_id: dict[int, Producer] = {}

    def check(
        self, producer_id: int, epoch: int, base_sequence: int, count: int, *, transactional: bool
    ) -> Written | None:
        """The earlier write this batch duplicates, or None when it is new; raises BatchError when it is refused."""
        producer = self.by_id.get(producer_id)
        if producer is None:
            return None
        if epoch < producer.epoch:
            raise BatchError(
                Code.INVALID_PRODUCER_EPOCH, f"producer {producer_id} has epoch {producer.epoch}, the batch {epoch}"
            )
        if epoch > producer.epoch:
            if base_sequence != 0:
                raise BatchError(
                    Code.OUT_OF_ORDER_SEQUENCE_NUMBER,
                    f"producer {producer_id} begins epoch {epoch} with sequence {base_sequence}, not 0",
                )
            return None
        last_sequence = (base_sequence + count - 1) % _SEQUENCES
        for written in producer.window:
            if written.base_sequence == base_sequence and written.last_sequence == last_sequence:
                return written
        if producer.next_sequence not in (-1, base_sequence):
            raise BatchError(
                Code.OUT_OF_ORDER_SEQUENCE_NUMBER,
                f"producer {producer_id} sent sequence {base_sequence}, expected {producer.next_sequence}",
            )
        if producer.transaction_start >= 0 and not transactional:
            raise BatchError(
                Code.INVALID_TXN_STATE, f"producer {producer_id} wrote outside of the transaction it has open"
            )
        return None

    def appended(
        self,
        producer_id: int,
        epoch: int,
        *,
        base_sequence: int,
        count: int,
        base_offset: int,
        timestamp: int,
        transactional: bool,
    ) -> None:
        """Note a batch at the log's end."""
        producer = self._at_epoch(producer_id, epoch)
        last_sequence = (base_sequence + count - 1) % _SEQUENCES
        producer.window.append(Written(base_sequence, last_sequence, base_offset))
        producer.next_sequence = (last_sequence + 1) % _SEQUENCES
        producer.last_timestamp = timestamp
        if transactional and producer.transaction_start < 0:
            producer.transaction_start = base_offset

    def ended(self, producer_id: int, epoch: int, *, timestamp: int, coordinator_epoch: int) -> int:
        """Note a marker; the first offset of the transaction that it ends, or -1 when none was open."""
        producer = self._at_epoch(producer_id, epoch)
        first = producer.transaction_start
        producer.transaction_start = -1
        producer.last_timestamp = timestamp
        producer.coordinator_epoch = coordinator_epoch
        return first

    def in_transaction(self, producer_id: int) -> bool:
        """True while the producer has an open transaction with batches here."""
        producer = self.by_id.get(producer_id)
        return producer is not None and producer.transaction_start >= 0

    def _at_epoch(self, producer_id: int, epoch: int) -> Producer:
        producer = self.by_id.get(producer_id)
        if producer is None:
            if len(self.by_id) >= MAX_PRODUCERS:
                self._forget_oldest()
            producer = self.by_id[producer_id] = Producer(epoch)
        elif producer.epoch != epoch:
            # keep an open transaction: the marker that fences it carries the bumped epoch
            producer.epoch = epoch
            producer.window.clear()
            producer.next_sequence = 0
        return producer

    def _forget_oldest(self) -> None:
        for producer_id, producer in self.by_id.items():
            if producer.transaction_start < 0:
                del self.by_id[producer_id]
                return

    def expire(self, before_ms: int) -> int:
        """Forget producers idle since before_ms, but for those with an open transaction; how many were forgotten."""
        gone = [
            producer_id
            for producer_id, producer in self.by_id.items()
            if producer.transaction_start < 0 and producer.last_timestamp < before_ms
        ]
        for producer_id in gone:
            del self.by_id[producer_id]
        return len(gone)

    def snapshot(self) -> list[ProducerSnapshot]:
        return [
            ProducerSnapshot(
                producer_id=producer_id,
                epoch=producer.epoch,
                next_sequence=producer.next_sequence,
                window=[(entry.base_sequence, entry.last_sequence, entry.base_offset) for entry in producer.window],
                transaction_start=producer.transaction_start,
                last_timestamp=producer.last_timestamp,
                coordinator_epoch=producer.coordinator_epoch,
            )
            for producer_id, producer in self.by_id.items()
        ]

    def restore(self, snapshots: list[ProducerSnapshot]) -> None:
        for stored in snapshots:
            producer = self.by_id[stored.producer_id] = Producer(stored.epoch)
            producer.next_sequence = stored.next_sequence
            producer.window.extend(Written(*written) for written in stored.window)
            producer.transaction_start = stored.transaction_start
            producer.last_timestamp = stored.last_timestamp
            producer.coordinator_epoch = stored.coordinator_epoch
