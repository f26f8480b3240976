"""What a processor counts, and the snapshot of it that consoles, metrics and tests read.

Counters are written by the worker's thread only; a snapshot may be taken from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from msgspec import Struct, field

from gokamsg.engine.counts import InputStats, OutputStats, TableStats
from gokamsg.engine.state import ProcessorState
from gokamsg.engine.table_reader import RestoreProgress

RATE_WINDOW_S = 5.0


class ProcessorStatus(Struct, frozen=True):
    """One moment of a processor."""

    group: str
    state: ProcessorState
    guarantee: str
    partitions: tuple[int, ...]  # running; sorted
    restoring: RestoreProgress | None  # None when nothing is being restored
    records: int  # handled since the start
    records_per_s: float  # over the last seconds
    emitted: int
    table_writes: int
    bad_records: int
    parked_records: int  # in quarantine now, in these partitions
    parked_keys: int
    commits: int
    aborts: int
    commit_ms: float  # the last commit's duration
    lag: Mapping[tuple[str, int], int] = field(default_factory=dict)  # input topic and partition -> records behind
    standby: tuple[int, ...] = ()  # partitions of others whose tables are followed; sorted
    table_reads: int = 0  # changelog records applied since the start, restores included
    table_lag: int = 0  # changelog records behind, over all tables that are followed
    notice: str | None = None  # why it waits, while it waits for something unusual

    @property
    def total_lag(self) -> int:
        """Records behind, over all inputs."""
        return sum(self.lag.values())


class PartitionStats(Struct, frozen=True):
    """One partition of the group, as this processor has it."""

    table: TableStats | None  # None without Persist
    joined: Mapping[str, TableStats]  # by table
    input: Mapping[str, InputStats]  # by input stream and loop


class ProcessorStats(Struct, frozen=True):
    """What went through a processor, in Goka's terms. Outputs are counted per processor, not per partition."""

    group: Mapping[int, PartitionStats]
    lookup: Mapping[str, Mapping[int, TableStats]]  # by table, then partition
    output: Mapping[str, OutputStats]  # by topic: outputs, loop and table


class Counters:
    """Totals since the start."""

    def __init__(self) -> None:
        self.records = 0
        self.table_writes = 0
        self.bad_records = 0
        self.commits = 0
        self.aborts = 0
        self.commit_ms = 0.0
        self._marks: list[tuple[float, int]] = [(monotonic(), 0)]

    def rate(self) -> float:
        """Records per second over the last few seconds."""
        now = monotonic()
        self._marks.append((now, self.records))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_WINDOW_S:
            del self._marks[0]
        began, records = self._marks[0]
        return (self.records - records) / max(now - began, 1e-3)
