"""What one poll brought of one partition, and how much of it is still to be handled.

A worker with slow callbacks takes many turns for it, and polls again when it is through. Nothing of it may survive a
rewind or a rebalance: the consumer hands it out again. Owned by the worker's thread.
"""

from collections import deque
from collections.abc import Iterable

from gokamsg.engine.clients import TopicPart
from gokamsg.engine.records import RecordBatch


class Polled:
    """See the module. `batches` are those not handled to their end; the first one may be handled in part."""

    __slots__ = ("_position", "at_s", "batches", "is_held", "part")

    def __init__(self, part: TopicPart, batches: Iterable[RecordBatch], position: int, at_s: float) -> None:
        """`position` is the consumer's, after these batches; `at_s`, when they came, on a monotonic clock."""
        self.part = part
        self.batches = deque(batches)
        self.at_s = at_s
        self.is_held = False  # the partition is paused until they are handled
        self._position = position

    @property
    def size(self) -> int:
        """Bytes of the batches that are left."""
        return sum(len(batch.raw) for batch in self.batches)

    def advance(self, next_offset: int | None) -> int:
        """The first batch is handled up to `next_offset`, or whole (None); returns the next offset to read."""
        batch = self.batches[0]
        if next_offset is not None:
            batch.start_offset = next_offset
            return next_offset
        self.batches.popleft()
        # Behind the last batch there may be markers; the consumer has passed them.
        return batch.next_offset if self.batches else self._position
