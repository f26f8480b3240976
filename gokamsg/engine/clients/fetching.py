"""Whole record batches out of kafka-python's consumer.

Its fetcher turns each partition of a fetch response into a `PartitionRecords` object and takes records from that.
Ours stands in its place and hands out RecordBatch objects: CRC checked, without control batches, and (read-committed)
without the data of aborted transactions. Taking batches moves the consumer's position over markers and aborted data.

These are internals of kafka-python 3.0; install() checks that they are there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka.protocol.consumer import IsolationLevel

from gokamsg.engine.records import RecordBatch, parse_batches
from gokamsg.errors import CorruptBatchError

_Passed = tuple[int, int]
"""Of a batch that is only passed over: the next offset, and the leader epoch it was written in. The broker checks both
together: a position behind an epoch's last batch must not bear the epoch before it, or it takes the log for cut."""

MAX_BATCHES = 1 << 30  # what is returned is bounded by bytes: fetch_max_bytes for each broker


class PartitionBatches:
    """What one fetch response holds for one partition; the interface that kafka-python's fetcher uses."""

    def __init__(
        self,
        fetch_offset: int,
        tp: Any,
        records: Any,
        *,
        isolation_level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
        aborted_transactions: Sequence[Any] | None = None,
        metric_aggregator: Any = None,
        on_drain: Callable[[Any], None] = lambda _: None,
        **_unused: Any,
    ) -> None:
        self.topic_partition = tp
        self.fetch_offset = fetch_offset
        self.next_fetch_offset = fetch_offset
        self.leader_epoch = -1
        self.bytes_read = 0
        self.on_drain = on_drain
        self.metric_aggregator = metric_aggregator
        self._open = True
        # kafka-python's wrapper has parsed nothing but the first length; the bytes are read from its buffer.
        committed_only = isolation_level == IsolationLevel.READ_COMMITTED
        try:
            batches = _committed(records, aborted_transactions) if committed_only else _all(records)
        except CorruptBatchError as error:
            raise CorruptBatchError(f"topic {tp.topic!r} partition {tp.partition}: {error}") from error
        self._batches: deque[RecordBatch | _Passed] = deque(batches)

    def __bool__(self) -> bool:
        return self._open

    def take(self, n: int | None = None) -> list[RecordBatch]:
        """Up to n batches; the position moves behind them and behind what is left out after them."""
        taken: list[RecordBatch] = []
        limit = MAX_BATCHES if n is None else n
        while self._batches:
            item = self._batches[0]
            if isinstance(item, tuple):
                offset, self.leader_epoch = item
                self.next_fetch_offset = max(self.next_fetch_offset, offset)
            elif len(taken) == limit:
                return taken
            else:
                self.leader_epoch = item.leader_epoch
                self.bytes_read += len(item.raw)
                if item.next_offset > self.next_fetch_offset:
                    item.start_offset = max(item.base_offset, self.fetch_offset)
                    self.next_fetch_offset = item.next_offset
                    taken.append(item)
            self._batches.popleft()
        self.drain()
        return taken

    def drain(self) -> None:
        if self._open:
            self._open = False
            self._batches.clear()
            if self.metric_aggregator:
                self.metric_aggregator.record(self.topic_partition, self.bytes_read, 0)
            self.on_drain(self)


def _all(records: Any) -> list[RecordBatch | _Passed]:
    """Batches to hand out, and what is known of those that are only passed over."""
    return [
        _passed(batch) if batch.is_control or not batch.count else batch for batch in parse_batches(records._buffer)
    ]


def _passed(batch: RecordBatch) -> _Passed:
    return batch.next_offset, batch.leader_epoch


def _committed(records: Any, aborted_transactions: Sequence[Any] | None) -> list[RecordBatch | _Passed]:
    starts = deque(sorted((t.first_offset, t.producer_id) for t in aborted_transactions or ()))
    aborting: set[int] = set()
    items: list[RecordBatch | _Passed] = []
    for batch in parse_batches(records._buffer):
        while starts and starts[0][0] < batch.next_offset:
            aborting.add(starts.popleft()[1])
        if batch.is_control:
            if batch.producer_id in aborting and batch.aborts():
                aborting.discard(batch.producer_id)
            items.append(_passed(batch))
        elif not batch.count or (batch.is_transactional and batch.producer_id in aborting):
            items.append(_passed(batch))
        else:
            items.append(batch)
    return items


def install(consumer: KafkaConsumer) -> None:
    """Makes the consumer's poll() return batches."""
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher is None or not all(
        hasattr(fetcher, name) for name in ("PartitionRecords", "_append", "_completed_fetches")
    ):
        raise RuntimeError("this version of kafka-python is not supported: its fetcher has changed; install 3.0.x")
    fetcher.PartitionRecords = PartitionBatches
