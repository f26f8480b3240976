"""The newest batches of all logs in memory, under one budget: what readers at the end of a log are served from.

Each log's cache is a contiguous run of batches up to its high watermark. When the budget is exceeded the batches that
came first leave first, whichever log they are of. Threads: the broker's loop only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

_TRIM = 512  # consumed slots at a list's start that are worth moving the rest for


class CacheBudget:
    """The bytes that all tails may hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._order: deque[tuple[Tail, int]] = deque()  # (tail, its generation), oldest batch first

    def added(self, tail: Tail, size: int) -> None:
        self.used_bytes += size
        self._order.append((tail, tail.generation))
        while self.used_bytes > self.max_bytes and self._order:
            oldest, generation = self._order.popleft()
            if generation == oldest.generation:
                self.used_bytes -= oldest.drop_first()

    def removed(self, size: int) -> None:
        self.used_bytes -= size


class Tail:
    """One log's cached batches, in the order of offsets."""

    __slots__ = ("_batches", "_budget", "_head", "_last_offsets", "generation", "start_offset")

    def __init__(self, budget: CacheBudget, start_offset: int) -> None:
        self._budget = budget
        self._last_offsets: list[int] = []
        self._batches: list[tuple[int, bytes]] = []
        self._head = 0
        self.generation = 0
        self.start_offset = start_offset  # every batch at or above it is here

    def add(self, base_offset: int, last_offset: int, batch: bytes) -> None:
        self._last_offsets.append(last_offset)
        self._batches.append((base_offset, batch))
        self._budget.added(self, len(batch))

    def drop_first(self) -> int:
        """Forget the oldest batch; its size."""
        head = self._head
        size = len(self._batches[head][1])
        self.start_offset = self._last_offsets[head] + 1
        self._batches[head] = (0, b"")
        self._head = head + 1
        if self._head >= _TRIM and self._head * 2 >= len(self._batches):
            del self._batches[: self._head]
            del self._last_offsets[: self._head]
            self._head = 0
        return size

    def clear(self, start_offset: int) -> None:
        """Forget everything; batches from start_offset on will be added again."""
        self._budget.removed(sum(len(batch) for _, batch in self._batches))
        self._batches.clear()
        self._last_offsets.clear()
        self._head = 0
        self.generation += 1  # what the budget's queue still holds of this tail is void
        self.start_offset = start_offset

    def read(self, offset: int, end_offset: int, max_bytes: int, *, at_least_one: bool) -> tuple[list[bytes], int]:
        """Whole batches from the one that holds offset up to end_offset, within max_bytes; and their size."""
        batches = self._batches
        found: list[bytes] = []
        size = 0
        for index in range(bisect_left(self._last_offsets, offset, self._head), len(batches)):
            base_offset, batch = batches[index]
            if base_offset >= end_offset:
                break
            if size + len(batch) > max_bytes and (found or not at_least_one):
                break
            found.append(batch)
            size += len(batch)
        return found, size
