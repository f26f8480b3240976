"""What the benchmarks measure with: CPU and memory of process trees (Linux /proc), a topic's progress, tables."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


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
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
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


class Progress:
    """Watches the end of a topic while a client fills it, with the CPU of client and broker beside it."""

    def __init__(self, address: str, topic: str, *, client: int, broker: int) -> None:
        self._consumer = KafkaConsumer(bootstrap_servers=address)
        self._partitions = [TopicPartition(topic, n) for n in self._consumer.partitions_for_topic(topic) or ()]
        self._client, self._broker = client, broker
        self._pids: list[int] = []
        self.samples: list[Sample] = []

    def watch(self, finished: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.01) -> None:
        """Samples until nothing has moved for a second and `finished` agrees."""
        deadline = time.monotonic() + timeout_s
        moved = listed = 0.0
        while True:
            now = time.monotonic()
            if now > deadline:
                raise SystemExit(f"not finished after {timeout_s} s, at {self.samples[-1].done if self.samples else 0}")
            if now - listed > 1:
                self._pids, listed = tree(self._client), now
            ends = self._consumer.end_offsets(self._partitions)
            sample = Sample(now, sum(ends.values()), cpu_s(self._pids), cpu_s([self._broker]))
            if not self.samples or sample.done != self.samples[-1].done:
                moved = now
            self.samples.append(sample)
            if sample.done and now - moved > 1 and finished():
                return
            time.sleep(interval_s)

    def close(self) -> None:
        self._consumer.close()

    def between(self, low: float = 0.1, high: float = 0.9) -> tuple[float, float, float]:
        """Seconds, client CPU and broker CPU between two parts of the work."""
        last = self.samples[-1].done
        first, final = self._at(low * last), self._at(high * last)
        return tuple(b - a for a, b in zip(first, final, strict=True))  # type: ignore[return-value]  # three of three

    def _at(self, done: float) -> tuple[float, float, float]:
        before = self.samples[0]
        for after in self.samples:
            if after.done >= done:
                span = after.done - before.done
                part = (done - before.done) / span if span else 0.0
                return (
                    before.at + part * (after.at - before.at),
                    before.client_cpu_s + part * (after.client_cpu_s - before.client_cpu_s),
                    before.broker_cpu_s + part * (after.broker_cpu_s - before.broker_cpu_s),
                )
            before = after
        raise AssertionError("the work never came so far")


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
