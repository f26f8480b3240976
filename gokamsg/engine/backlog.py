"""What was polled and is still to be handled: more than one turn's worth where callbacks are slow.

Partitions take turns. Nothing of it may survive a rewind or a rebalance: the consumer hands it out again. Owned by the
worker's thread.
"""

from collections import deque
from collections.abc import Callable, Iterable

from gokamsg.engine.clients import Batches, TopicPart
from gokamsg.engine.cluster import GroupClient
from gokamsg.engine.records import RecordBatch

SLOW_S = 2.0  # so long may what was polled last before other partitions are looked after
MOST_BYTES = 8 << 20  # about what one poll brings at most


class Polled:
    """What one poll brought of one partition. `batches` are those not handled to their end; the first one may be
    handled in part."""

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


class Backlog:
    """See the module. False when empty."""

    def __init__(self, inputs: GroupClient, now: Callable[[], float]) -> None:
        self._inputs = inputs
        self._now = now
        self._waiting: deque[Polled] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def head(self) -> Polled:
        """Whose turn it is."""
        return self._waiting[0]

    def poll_beside(self) -> Batches:
        """While there is something to handle, nothing more is polled; if that lasts, of the other partitions."""
        is_new = self._now() - min(polled.at_s for polled in self._waiting) < SLOW_S
        if is_new or sum(polled.size for polled in self._waiting) >= MOST_BYTES:
            self._inputs.attend()
            return {}
        fresh = [polled for polled in self._waiting if not polled.is_held]
        if fresh:
            self._inputs.pause([polled.part for polled in fresh])
        for polled in fresh:
            polled.is_held = True
        return self._inputs.poll(0.0)

    def add(self, part: TopicPart, batches: Iterable[RecordBatch]) -> None:
        """What the last poll brought of one partition."""
        self._waiting.append(Polled(part, batches, self._inputs.position(*part), self._now()))

    def rotate(self) -> None:
        """The next partition's turn: none waits until another one is through."""
        self._waiting.rotate(-1)

    def remove_head(self) -> None:
        """All of the first one is handled."""
        polled = self._waiting.popleft()
        if polled.is_held:
            self._inputs.resume([polled.part])

    def give_back(self) -> None:
        """Forget what is left: the inputs have gone back, and go on from there."""
        held = {polled.part for polled in self._waiting if polled.is_held}
        self._inputs.resume(held & self._inputs.assignment())
        self.clear()

    def clear(self) -> None:
        """Forget what is left, of partitions that are taken away, or paused until they are brought up again."""
        self._waiting.clear()
