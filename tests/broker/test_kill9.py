"""kill -9 under load.

A broker process is killed at seeded random moments, while idempotent producers write, transactional copiers copy with
their offsets (some abort, some begin anew without an end), and a group's member comes and goes; each time it is started
again on the same data. Invariants:

1. Every acknowledged record is there, once, and every producer's records are in its order.
2. The copies of committed transactions hold every record of the input once, in its order.
3. A transaction is in all of its partitions or in none: an acknowledged commit in all, an abort in none.
4. An acknowledged offset commit is never taken back.
5. When everybody has stopped, no transaction is left open: the last stable offset is the end of the log.
6. No client meets an error that it cannot recover from by itself.
"""

import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.broker.kill_load import (
    CHURN,
    GROUP,
    PARTITIONS,
    Churner,
    Copier,
    LibraryWriter,
    SequenceWriter,
    Worker,
    Writer,
)
from tests.helpers import Process, eventually, free_port, gokamsg_env, say

_BROKER = """
import sys
from pathlib import Path
from gokamsg.broker.server import run_broker
from gokamsg.broker.settings import BrokerSettings

settings = BrokerSettings(data_dir=Path(sys.argv[1]), port=int(sys.argv[2]), fsync=False)
run_broker(settings, on_ready=lambda address: print("ready", address, flush=True))
"""


class Victim:
    """A broker process that is killed and started again on the same data and port."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-c", _BROKER, str(self._tmp_path / "data"), str(self._port)]
        self.process = Process(argv, self._tmp_path / "logs", name="broker", env=gokamsg_env())
        self.process.wait_line("^ready ")

    def kill(self) -> None:
        self.process.kill9()

    def close(self) -> None:
        self.process.close()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    it = Victim(tmp_path)
    yield it
    it.close()


def read(address: str, topic: str, *, committed: bool) -> dict[int, list[bytes]]:
    """Everything in a topic, by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    ended: set[int] = set()

    def all_read() -> bool:
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found[message.partition()].append(message.value())
            else:
                ended.add(message.partition())
        return len(ended) == PARTITIONS

    eventually(f"the end of {topic}", all_read, timeout_s=60)
    consumer.close()
    return found


def committed_offsets(address: str, group: str) -> dict[int, int]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": group})
    positions = consumer.committed([TopicPartition("in", partition) for partition in range(PARTITIONS)], 20)
    consumer.close()
    return {position.partition: max(position.offset, 0) for position in positions}


def ends(address: str, topic: str, *, stable: bool) -> dict[int, int]:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "reader",
            "isolation.level": "read_committed" if stable else "read_uncommitted",
        }
    )
    found = {
        partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), 20)[1]
        for partition in range(PARTITIONS)
    }
    consumer.close()
    return found


def wait_for_work(workers: list[Worker], copiers: list[Copier], count: int) -> None:
    """So many transactions more, so that every kill meets the load and not only its reconnection."""

    def done() -> int:
        return sum(len(copier.committed) for copier in copiers)

    def enough() -> bool:
        assert [error for worker in workers for error in worker.errors] == []
        return done() >= before + count

    before = done()
    eventually(f"{count} more transactions", enough, timeout_s=60)


def kill_under_load(victim: Victim, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    admin = AdminClient({"bootstrap.servers": victim.address})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in ("in", "out", "pairs")]).values():
        future.result(20)
    kinds = (LibraryWriter, SequenceWriter, SequenceWriter)
    writers = [kind(victim.address, f"{seed}-in-{number}", number) for number, kind in enumerate(kinds)]
    shares = {"a": [0], "b": [1, 2]}
    copiers = [Copier(victim.address, f"{seed}-copy-{name}", name, share) for name, share in shares.items()]
    churner = Churner(victim.address, f"{seed}-churn")
    workers: list[Worker] = [*writers, *copiers, churner]
    for worker in workers:
        worker.start()
    pause = threading.Event()
    for _ in range(kills):
        wait_for_work(workers, copiers, chance.randint(0, 3))
        pause.wait(chance.uniform(0, 0.4))
        victim.kill()
        victim.start()
    wait_for_work(workers, copiers, 3)
    before = [len(writer.acknowledged) for writer in writers]
    eventually(
        "every writer goes on",
        lambda: all(len(writer.acknowledged) > count for writer, count in zip(writers, before, strict=True)),
        timeout_s=60,
    )
    for worker in (*writers, churner):
        worker.stop()
        worker.join()
    written = ends(victim.address, "in", stable=False)

    def all_copied() -> bool:
        found = committed_offsets(victim.address, GROUP)
        assert found == written, [error for worker in workers for error in worker.errors]
        return True

    eventually("the copiers have copied all", all_copied, timeout_s=60)
    for copier in copiers:
        copier.stop()
        copier.join()
    assert [error for worker in workers for error in worker.errors] == []
    committed, aborted = (sum(len(getattr(copier, kind)) for copier in copiers) for kind in ("committed", "aborted"))
    say(
        f"{kills} kills, {sum(written.values())} records, {committed} transactions committed, {aborted} aborted,"
        f" {churner.rounds} joins"
    )
    check_records(victim.address, writers)
    check_transactions(victim.address, copiers)
    check_offsets(victim.address, churner)


def check_records(address: str, writers: list[Writer]) -> None:
    plain = read(address, "in", committed=False)
    for writer in writers:
        found = plain[writer.partition]
        assert found == [f"{writer.partition}-{number}".encode() for number in range(len(found))]
        assert set(writer.acknowledged) <= set(found)
    assert read(address, "out", committed=True) == plain


def check_transactions(address: str, copiers: list[Copier]) -> None:
    pairs = read(address, "pairs", committed=True)
    seen = Counter(name for names in pairs.values() for name in names)
    partial = {name: count for name, count in seen.items() if count != PARTITIONS}
    assert partial == {}
    for copier in copiers:
        assert copier.committed <= seen.keys()
        assert not copier.aborted & seen.keys()
    assert sum(len(copier.committed) for copier in copiers) > 0
    for topic in ("out", "pairs"):
        assert ends(address, topic, stable=True) == ends(address, topic, stable=False)


def check_offsets(address: str, churner: Churner) -> None:
    found = committed_offsets(address, CHURN)
    assert all(found[partition] >= offset for partition, offset in churner.acknowledged.items())
    assert churner.rounds > 0


def test_ten_kills_lose_and_double_nothing(victim: Victim, seed: int) -> None:
    kill_under_load(victim, 10, seed)


@pytest.mark.slow
def test_a_hundred_kills_lose_and_double_nothing(victim: Victim, seed: int) -> None:
    kill_under_load(victim, 100, seed)
