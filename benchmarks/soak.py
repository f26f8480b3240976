"""Mixed load on the embedded broker for a while: memory, descriptors, threads and file size must stay where they are.

    python -m benchmarks.soak [--minutes 10] [--quick]

Load, all at once: an idempotent producer fills "events" (kept by size) and rewrites the rows of "table" (compacted,
tombstones included); a copier moves events to "out" in transactions with offsets, every tenth aborted and done again;
a group's member reads "out" and is replaced by another one every few seconds; connections, groups, transactional and
idempotent producers come and go. After a quarter of the time everything has its size. From then on:

1. the highest resident memory of the last third is at most a tenth above that of the first third;
2. descriptors and threads likewise, within five; the data directory likewise, within a fifth;
3. "out" holds every event once and in order, and at the end "table" has each key's last acknowledged value.

Exits 1 if one of these does not hold; with --quick, half a minute, growth is shown but not judged. Needs Linux.
"""

import argparse
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.measure import cpu_s, print_table, rss_mb
from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually
from tests.system import fold

PARTITIONS = 4
KEYS = 2_000
EVENTS_PER_S = 1_500
KEPT_BYTES = 4 * 1024 * 1024
WAIT_S = 30.0
SAMPLE_EVERY_S = 1.0
TOPICS = {
    "events": {"retention.bytes": str(KEPT_BYTES)},
    "out": {"retention.bytes": str(KEPT_BYTES)},
    "table": {
        "cleanup.policy": "compact",
        "delete.retention.ms": "5000",
        "min.cleanable.dirty.ratio": "0.3",
    },
}


class Load:
    """Threads that work until they are told to stop; the first failure of any stops all."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.random = random.Random(seed)
        self.stopping = threading.Event()
        self.failures: list[str] = []
        self.rows: dict[str, bytes | None] = {}  # of "table", as acknowledged
        self.counts = dict.fromkeys(("events", "copied", "aborted", "read", "members", "producers"), 0)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for work in (self.produce, self.copy, self.read, self.come_and_go):
            thread = threading.Thread(target=self._guard, args=(work,), name=work.__name__)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.fail(f"{work.__name__}: {error!r}")

    def fail(self, what: str) -> None:
        self.failures.append(what)
        self.stopping.set()

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"bootstrap.servers": self.address} | {name.replace("_", "."): value for name, value in more.items()}

    def produce(self) -> None:
        """Events numbered for each partition, and rows."""
        producer = Producer(self.settings(enable_idempotence=True, linger_ms=20))
        numbers = [0] * PARTITIONS
        started = time.monotonic()
        while not self.stopping.is_set():
            for _ in range(EVENTS_PER_S // 50):
                partition = self.random.randrange(PARTITIONS)
                value = f"{numbers[partition]:012}".encode() + self.random.randbytes(200)
                producer.produce("events", value, partition=partition, on_delivery=self._sent)
                numbers[partition] += 1
            for _ in range(EVENTS_PER_S // 100):
                key = f"key-{self.random.randrange(KEYS)}"
                row = None if self.random.random() < 0.2 else self.random.randbytes(150)
                producer.produce("table", row, key, partition=0, on_delivery=self._stored)
            producer.poll(0)
            ahead = started + self.counts["events"] / EVENTS_PER_S - time.monotonic()
            self.stopping.wait(max(0.0, min(ahead, 1.0)) + 0.005)
        if producer.flush(WAIT_S):
            self.fail("produce: records were neither acknowledged nor refused")

    def _sent(self, error: Any, message: Message) -> None:
        if error is not None:
            self.fail(f"an event was refused: {error}")
        self.counts["events"] += 1

    def _stored(self, error: Any, message: Message) -> None:
        if error is not None:
            self.fail(f"a row was refused: {error}")
        self.rows[(message.key() or b"").decode()] = message.value()

    def copy(self) -> None:
        """Events to "out", in transactions."""
        consumer = Consumer(self.settings(group_id="copier", auto_offset_reset="earliest", enable_auto_commit=False))
        producer = Producer(self.settings(transactional_id="copier"))
        producer.init_transactions(WAIT_S)
        consumer.subscribe(["events"])
        while not self.stopping.is_set():
            messages = consumer.consume(500, 0.2)
            if not messages:
                continue
            producer.begin_transaction()
            ends: dict[int, int] = {}
            for message in messages:
                if message.error() is not None:
                    raise AssertionError(message.error())
                producer.produce("out", message.value(), partition=message.partition())
                ends[message.partition()] = message.offset() + 1
            positions = [TopicPartition("events", partition, end) for partition, end in ends.items()]
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), WAIT_S)
            if self.random.random() < 0.1:
                producer.abort_transaction(WAIT_S)
                self.counts["aborted"] += 1
                for stored in consumer.committed(positions, WAIT_S):
                    consumer.seek(TopicPartition("events", stored.partition, max(stored.offset, 0)))
            else:
                producer.commit_transaction(WAIT_S)
                self.counts["copied"] += len(messages)
        consumer.close()

    def read(self) -> None:
        """Members of a group, one after the other, that read "out"; every event comes once and in order."""
        expected = [0] * PARTITIONS
        while not self.stopping.is_set():
            settings = self.settings(group_id="reader", auto_offset_reset="earliest", enable_auto_commit=False)
            consumer = Consumer(settings | {"isolation.level": "read_committed"})
            consumer.subscribe(["out"])
            until = time.monotonic() + self.random.uniform(3, 10)
            while time.monotonic() < until and not self.stopping.is_set():
                messages = consumer.consume(1000, 0.2)
                for message in messages:
                    number = int((message.value() or b"")[:12])
                    if number != expected[message.partition()]:
                        self.fail(f"out/{message.partition()}: {number} came after {expected[message.partition()] - 1}")
                    expected[message.partition()] = number + 1
                if messages:
                    consumer.commit(asynchronous=False)
                self.counts["read"] += len(messages)
            consumer.close()
            self.counts["members"] += 1

    def come_and_go(self) -> None:
        """Producers with transactional ids of their own, some of which leave their transaction open."""
        while not self.stopping.wait(2.0):
            self.counts["producers"] += 1
            name = f"visitor-{self.counts['producers']}"
            producer = Producer(self.settings(transactional_id=name, transaction_timeout_ms=5_000))
            producer.init_transactions(WAIT_S)
            producer.begin_transaction()
            producer.produce("table", self.random.randbytes(100), name, partition=1)
            if self.random.random() < 0.5:
                producer.commit_transaction(WAIT_S)
            else:
                producer.flush(WAIT_S)  # left open: the broker ends it


@dataclass(frozen=True)
class Sample:
    """What the broker takes at one moment."""

    rss_mb: float
    descriptors: float
    threads: float
    file_mb: float


def sample(pid: int, directory: Path) -> Sample:
    size = sum(path.stat().st_size for path in directory.rglob("broker.db*"))
    return Sample(
        sum(rss_mb([pid], peak=False)),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        size / 1e6,
    )


def verdicts(samples: list[Sample]) -> list[tuple[str, float, float, float, bool]]:
    """For each quantity: highest in the first and in the last third after the warm-up, its limit, whether it holds."""
    settled = samples[len(samples) // 4 :]
    third = len(settled) // 3
    found = []
    for name, share, extra in (("rss_mb", 0.1, 0.0), ("descriptors", 0, 5), ("threads", 0, 5), ("file_mb", 0.2, 0.0)):
        first, last = (
            max(getattr(each, name) for each in part) for part in (settled[:third], settled[len(settled) - third :])
        )
        limit = first * (1 + share) + extra
        found.append((name, first, last, limit, last <= limit))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="half a minute: the outputs are checked, growth is not")
    options = parser.parse_args()
    if options.quick:
        options.minutes = 0.5
    samples: list[Sample] = []
    with TemporaryDirectory() as directory:
        server = EmbeddedServer(Path(directory))
        try:
            server.start()
            server.create_topics({name: {"num_partitions": PARTITIONS, "configs": it} for name, it in TOPICS.items()})
            load = Load(server.address, options.seed)
            started = time.monotonic()
            load.start()
            try:
                while time.monotonic() - started < options.minutes * 60 and not load.stopping.is_set():
                    time.sleep(SAMPLE_EVERY_S)
                    samples.append(sample(server.pid, Path(directory)))
                    if len(samples) % 60 == 0:
                        print(f"{len(samples) // 60} min: {samples[-1]}", flush=True)
            finally:
                load.stop()
            share = cpu_s([server.pid]) / (time.monotonic() - started)
            check_table(server.address, load)
        finally:
            server.close()
    print(f"\n{options.minutes:g} minutes, seed {options.seed}: {load.counts}, {share * 100:.0f} % of a core\n")
    rows = verdicts(samples)
    print_table(
        ("highest after the warm-up", "first third", "last third", "allowed", ""),
        [(name, *(f"{it:,.1f}" for it in (a, b, limit)), "ok" if ok else "GROWS") for name, a, b, limit, ok in rows],
    )
    for failure in load.failures:
        print(failure)
    if load.failures or not (options.quick or all(row[-1] for row in rows)):
        sys.exit(1)


def check_table(address: str, load: Load) -> None:
    """The compacted topic's last value of each key is the one that was acknowledged last."""

    def rows() -> dict[str, bytes | None]:
        found = {}
        for record in fold.read(address, "table"):
            if record.partition == 0:
                found[record.key] = record.value
        return found

    expected = {key: value for key, value in load.rows.items() if value is not None}
    try:
        eventually("the table is read", lambda: {k: v for k, v in rows().items() if v is not None} == expected)
    except AssertionError:
        load.fail("table: what was acknowledged last is not what is read")


if __name__ == "__main__":
    main()
