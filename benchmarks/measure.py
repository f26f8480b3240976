"""What the benchmarks measure with: CPU and memory of process trees (Linux /proc), a topic's progress, tables."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_COMPILERS_REST_S = 10.0
_COMPILERS_REST_SHARE = 0.05


def tree(pid: int) -> list[int]:
    """The process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far, user and system."""
    ticks = 0
    for pid in pids:
        try:
            ticks += _ticks(Path(f"/proc/{pid}/stat").read_text())
        except OSError:
            continue
    return ticks * _TICK_S


def _ticks(stat: str) -> int:
    """User and system time in a process's or a thread's stat file, see proc(5)."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class WarmUp:
    """How long a JVM is to work before it is measured: until its compilers rest.

    While they work they take a good part of a core, and what they are not through with takes twice the CPU. Over once
    they used less than 5 % of a core for ten seconds, or after `longest_s`.
    """

    def __init__(self, pid: int, longest_s: float) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._ends = time.monotonic() + longest_s
        self._looked_at, self._used_s = time.monotonic(), self._compilers_s()

    def over(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at < _COMPILERS_REST_S:
            return now >= self._ends
        used_s = self._compilers_s()
        share = (used_s - self._used_s) / (now - self._looked_at)
        self._looked_at, self._used_s = now, used_s
        return share < _COMPILERS_REST_SHARE or now >= self._ends

    def _compilers_s(self) -> float:
        ticks = 0
        for task in self._tasks.iterdir():
            try:
                stat = (task / "stat").read_text()
            except OSError:
                continue  # a thread that has ended
            if "CompilerThre" in stat:  # the kernel cuts the name
                ticks += _ticks(stat)
        return ticks * _TICK_S


def rss_mb(pids: Iterable[int], *, peak: bool = True) -> list[float]:
    """Resident memory of each process, the highest so far unless told otherwise."""
    name = "VmHWM:" if peak else "VmRSS:"
    sizes = []
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith(name)]
    return sizes


@dataclass(frozen=True)
class Sample:
    at: float
    done: int
    client_cpu_s: float
    broker_cpu_s: float


@dataclass(frozen=True)
class Stretch:
    """A part of the work."""

    share: float
    seconds: float
    client_cpu_s: float
    broker_cpu_s: float


class Written:
    """How much of a topic is there: the sum of its partitions' ends."""

    def __init__(self, address: str, topic: str) -> None:
        self._consumer = KafkaConsumer(bootstrap_servers=address)
        self._partitions = [TopicPartition(topic, n) for n in self._consumer.partitions_for_topic(topic) or ()]

    def __call__(self) -> int:
        return sum(self._consumer.end_offsets(self._partitions).values())

    def close(self) -> None:
        self._consumer.close()


class Committed:
    """What a group has committed of its inputs."""

    def __init__(self, admin: KafkaAdminClient, group: str, topics: Sequence[str]) -> None:
        self._admin, self._group, self._topics = admin, group, topics

    def of(self, topic: str) -> dict[int, int]:
        offsets = self._admin.list_group_offsets({self._group: None})[self._group]
        return {part.partition: max(0, at.offset) for part, at in offsets.items() if part.topic == topic}

    def __call__(self) -> int:
        offsets = self._admin.list_group_offsets({self._group: None})[self._group]
        return sum(max(0, at.offset) for part, at in offsets.items() if part.topic in self._topics)


def drop_group(admin: KafkaAdminClient, group: str) -> bool:
    """Whether the group is gone; if not, it is deleted."""
    if any(each["group_id"] == group for each in admin.list_groups()):
        admin.delete_groups([group])
        return False
    return True


class Progress:
    """Watches a figure grow to the end of the work, with the CPU of clients and broker beside it."""

    def __init__(self, done: Callable[[], int], *, clients: Sequence[int], broker: int) -> None:
        self._done = done
        self._clients, self._broker = clients, broker
        self._pids: list[int] = []
        self.samples: list[Sample] = []

    @property
    def _begun(self) -> bool:
        return bool(self.samples and self.samples[-1].done)

    def watch(self, finished: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.01) -> None:
        """Samples until nothing has moved for a second and `finished` agrees."""
        deadline = time.monotonic() + timeout_s
        moved = listed = 0.0
        while True:
            now = time.monotonic()
            if now > deadline:
                raise SystemExit(f"not finished after {timeout_s} s, at {self.samples[-1].done if self.samples else 0}")
            if now - listed > (1.0 if self._begun else 0.05):  # what a process used for its start is not of the work
                self._pids, listed = [pid for client in self._clients for pid in tree(client)], now
            sample = Sample(now, self._done(), cpu_s(self._pids), cpu_s([self._broker]))
            if not self.samples or sample.done != self.samples[-1].done:
                moved = now
            self.samples.append(sample)
            if sample.done and now - moved > 1 and finished():
                return
            time.sleep(interval_s)

    def between(self, low: float = 0.1, high: float = 0.9) -> Stretch:
        """What was done, and used, from when the first part of the work was there until the second one was.

        Nothing is interpolated: work that is done, and shows, in one piece counts from the end of the piece before. If
        less than half of the work lies between (a few large commits), everything counts, from the process's start.
        """
        last = self.samples[-1].done
        first, final = (next(each for each in self.samples if each.done >= part * last) for part in (low, high))
        if final.done - first.done < last / 2:
            first, final = self.samples[0], next(each for each in self.samples if each.done == last)
        return Stretch(
            (final.done - first.done) / last,
            final.at - first.at,
            final.client_cpu_s - first.client_cpu_s,
            final.broker_cpu_s - first.broker_cpu_s,
        )


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """median (lowest-highest)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
