"""What one poll brought of one partition, and how much of it is still to be handled.

A worker with slow callbacks takes many turns for it, and polls again when it is through. Nothing of it may survive a
rewind or a rebalance: the consumer hands it out again. Owned by the worker's thread.
"""

from collections import deque
from collections.abc import Iterable

from gokamsg.engine.records import RecordBatch


class Polled:
    """See the module. `batches` are those not handled to their end; the first one may be handled in part."""

    __slots__ = ("_position", "batches", "partition", "topic")

    def __init__(self, topic: str, partition: int, batches: Iterable[RecordBatch], position: int) -> None:
        """`position` is the consumer's, after these batches."""
        self.topic = topic
        self.partition = partition
        self.batches = deque(batches)
        self._position = position

    def advance(self, next_offset: int | None) -> int:
        """The first batch is handled up to `next_offset`, or whole (None); returns the next offset to read."""
        batch = self.batches[0]
        if next_offset is not None:
            batch.start_offset = next_offset
            return next_offset
        self.batches.popleft()
        # Behind the last batch there may be markers; the consumer has passed them.
        return batch.next_offset if self.batches else self._position
