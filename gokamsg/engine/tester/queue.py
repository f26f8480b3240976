"""What came into a topic, one record after the other, in the order in which readers could see it: Goka's QueueTracker.

Positions count the visible records of the topic over all its partitions, from 0 on.
"""

from typing import Any

from gokamsg.engine.codec import Codec
from gokamsg.engine.output import decode_key
from gokamsg.engine.tester.log import JournalRecord, MemoryTopic


class QueueTracker:
    """Begins behind what the topic holds when the tracker is made; seek(0) goes to the first record."""

    def __init__(self, topic: MemoryTopic, codec: Codec[Any]) -> None:
        self._topic = topic
        self._codec = codec
        self._next = len(topic.journal)

    def next(self) -> tuple[str, Any] | None:
        """Key and decoded value (None for a null value) of the next record; None when there is no more."""
        found = self.next_with_headers()
        return None if found is None else found[1:]

    def next_with_headers(self) -> tuple[dict[str, bytes | None], str, Any] | None:
        """As next(), with the headers first."""
        record = self.next_record()
        if record is None:
            return None
        value = None if record.value is None else self._codec.decode(record.value)
        return record.headers, decode_key(record.key), value

    def next_raw(self) -> tuple[str, bytes | None] | None:
        """As next(), the value as it is in the log."""
        record = self.next_record()
        return None if record is None else (decode_key(record.key), record.value)

    def next_raw_with_headers(self) -> tuple[dict[str, bytes | None], str, bytes | None] | None:
        """As next_raw(), with the headers first."""
        record = self.next_record()
        return None if record is None else (record.headers, decode_key(record.key), record.value)

    def next_record(self) -> JournalRecord | None:
        """The next record with its partition, offset and timestamp."""
        journal = self._topic.journal
        if self._next >= len(journal):
            return None
        self._next += 1
        return journal[self._next - 1]

    def rest(self) -> list[tuple[str, Any]]:
        """All that next() would give until there is no more."""
        found = []
        while (record := self.next()) is not None:
            found.append(record)
        return found

    def seek(self, position: int) -> None:
        """Go to a position. Raises IndexError outside 0..hwm()."""
        if not 0 <= position <= self.hwm():
            raise IndexError(f"position {position} of topic {self._topic.name!r} is not within 0..{self.hwm()}")
        self._next = position

    def hwm(self) -> int:
        """How many records the topic has: the position behind its last one."""
        return len(self._topic.journal)

    def next_offset(self) -> int:
        """The position that next() reads."""
        return self._next
