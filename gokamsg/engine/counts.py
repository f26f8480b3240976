"""What went through each topic and table of a processor or view, since it has them: the numbers of Goka's stats.

Counted by the owner's thread, per batch; a snapshot may be taken from any thread. Leaf.
"""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Literal

from msgspec import Struct, field

STALLED_AFTER_S = 120.0
"""A restore that has read nothing for so long is called stalled."""

TableStatus = Literal["recovering", "running"]


class InputStats(Struct, frozen=True):
    """What was read of one partition. `bytes` are those of the values."""

    count: int = 0
    bytes: int = 0
    last_offset: int = -1
    offset_lag: int | None = None  # records behind; None when it is not known (yet)
    delay_s: float = 0.0  # how old the newest record of the last batch was when it was handled


class OutputStats(Struct, frozen=True):
    """What was written to one topic. `bytes` are those of the records as sent, before compression; for a table of
    the values."""

    count: int = 0
    bytes: int = 0


class TableStats(Struct, frozen=True):
    """One partition of a table. `hwm` is the changelog's end that the restore goes to, `offset` where it is."""

    status: TableStatus
    stalled: bool
    offset: int
    hwm: int
    recovery_s: float  # how long the restore took, or has taken so far
    input: InputStats  # of the changelog
    writes: OutputStats  # to the changelog


class InputCount:
    """A mutable InputStats."""

    __slots__ = ("bytes", "count", "delay_s", "last_offset")

    def __init__(self) -> None:
        self.count = self.bytes = 0
        self.last_offset = -1
        self.delay_s = 0.0

    def add(self, values: Collection[bytes | None], count: int, last_offset: int, delay_s: float = 0.0) -> None:
        """One batch more."""
        self.count += count
        try:
            self.bytes += sum(map(len, values))  # type: ignore[arg-type]
        except TypeError:  # null values are rare
            self.bytes += sum(map(len, filter(None, values)))
        self.last_offset = last_offset
        self.delay_s = delay_s

    def stats(self, lag: int | None = None) -> InputStats:
        """A snapshot."""
        return InputStats(self.count, self.bytes, self.last_offset, lag, self.delay_s)


class TableCount(Struct):
    """A mutable TableStats."""

    offset: int
    hwm: int
    began: float = field(default_factory=monotonic)
    moved: float = field(default_factory=monotonic)
    took_s: float | None = None
    input: InputCount = field(default_factory=InputCount)
    writes: int = 0
    written_bytes: int = 0

    def move(self, offset: int) -> None:
        """So far is it read."""
        if offset != self.offset:
            self.offset = offset
            self.moved = monotonic()

    def recovered(self) -> None:
        """The restore is over."""
        if self.took_s is None:
            self.took_s = monotonic() - self.began

    def stats(self) -> TableStats:
        """A snapshot."""
        now = monotonic()
        running = self.took_s is not None
        return TableStats(
            status="running" if running else "recovering",
            stalled=not running and now - self.moved >= STALLED_AFTER_S,
            offset=self.offset,
            hwm=self.hwm,
            recovery_s=now - self.began if self.took_s is None else self.took_s,
            input=self.input.stats(max(self.hwm - self.offset, 0)),
            writes=OutputStats(self.writes, self.written_bytes),
        )
