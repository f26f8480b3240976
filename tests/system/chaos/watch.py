"""Watches a run from the side, on connections that no fault concerns: what arrives when, and what stands still.

A stall is a time in which something that was there to be done was not done:

- delivery: from a message's acknowledgement until a read-committed reader finds it in message_received;
- a group's partition: committed records are there, and its offset does not move.

Only brokers that are down keep it from looking; its stalls go on meanwhile.
"""

import json
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_consumer
from tests.system.messaging import INPUTS, Message

SAMPLE_S = 0.25
GATHER_MS = 100
"""So much later than it came a record may be seen. An answer for each record would take a quarter of a core from what
is watched."""
_WORTH_S = 0.7
TOPICS = sorted({topic for topics in INPUTS.values() for topic in topics})


@dataclass(frozen=True)
class Stall:
    began: float
    ended: float
    where: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Watch:
    """Two threads of its own from start() to close(). Times are of time.monotonic()."""

    def __init__(self, cluster: KafkaCluster, *, partitions: int = 8) -> None:
        self.stalls: list[Stall] = []
        self.received_at: dict[Message, float] = {}
        self._cluster = cluster
        self._partitions = [TopicPartition(topic, number) for topic in TOPICS for number in range(partitions)]
        self._lock = threading.Lock()
        self._ends: dict[tuple[str, int], int] = {}
        self._seen_at: dict[tuple[str, int], float] = {}
        self._since: dict[tuple[str, str, int], float] = {}
        self._committed: dict[tuple[str, str, int], int] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"watch {number}", daemon=True)
            for number, work in enumerate((self._read, self._sample))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def behind(self) -> dict[str, int]:
        """What each group has not committed, as of the last looks."""
        with self._lock:
            left: dict[str, int] = {}
            for group, topics in INPUTS.items():
                for (topic, number), end in self._ends.items():
                    if topic in topics and (lag := end - self._committed.get((group, topic, number), 0)) > 0:
                        left[group] = left.get(group, 0) + lag
            return left

    def delivery_stalls(self, acknowledged_at: Mapping[Message, float], blocked: Collection[str]) -> list[Stall]:
        """Of the messages that took long to arrive."""
        return [
            Stall(at, arrived, f"{message[0]} to {message[1]}")
            for message, at in acknowledged_at.items()
            if message[0] not in blocked and (arrived := self.received_at.get(message)) is not None
            if arrived - at > _WORTH_S
        ]

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (KafkaError, OSError):
                self._stop.wait(0.2)

    def _follow(self) -> None:
        consumer = plain_consumer(
            self._cluster.address,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            reconnect_backoff_max_ms=200,
            max_poll_records=10_000,
            fetch_min_bytes=1 << 20,  # never there: an answer every GATHER_MS
            fetch_max_wait_ms=GATHER_MS,
        )
        try:
            consumer.assign(self._partitions)
            for partition in self._partitions:
                consumer.seek(partition, self._ends.get((partition.topic, partition.partition), 0))
            while not self._stop.is_set():
                found = consumer.poll(timeout_ms=GATHER_MS)
                now = time.monotonic()
                with self._lock:
                    for partition, records in found.items():
                        self._seen(partition, records, now)
        finally:
            consumer.close()

    def _seen(self, partition: TopicPartition, records: list, now: float) -> None:  # type: ignore[type-arg]
        key = (partition.topic, partition.partition)
        self._ends[key] = records[-1].offset + 1
        self._seen_at[key] = now
        if partition.topic == "message_received":
            for record in records:
                value = json.loads(record.value)
                self.received_at.setdefault((value["From"], value["To"], _id(value["Content"])), now)

    def _sample(self) -> None:
        while not self._stop.is_set():
            try:
                with self._admin() as admin:
                    while not self._stop.wait(SAMPLE_S):
                        self._look(admin)
            except (KafkaError, OSError, KeyError):
                self._stop.wait(0.2)

    def _admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self._cluster.address,
            bootstrap_timeout_ms=5_000,
            request_timeout_ms=5_000,
            reconnect_backoff_max_ms=200,
        )

    def _look(self, admin: KafkaAdminClient) -> None:
        for group, topics in INPUTS.items():
            offsets = admin.list_group_offsets({group: None})[group]
            now = time.monotonic()
            with self._lock:
                for partition, at in offsets.items():
                    if partition.topic in topics:
                        self._committed_to((group, partition.topic, partition.partition), at.offset, now)
                for (topic, number), end in self._ends.items():
                    if topic in topics:
                        self._waits((group, topic, number), end, now)

    def _committed_to(self, key: tuple[str, str, int], offset: int, now: float) -> None:
        if offset == self._committed.get(key):
            return
        self._committed[key] = offset
        since = self._since.pop(key, None)
        if since is not None and now - since > _WORTH_S:
            self.stalls.append(Stall(since, now, f"{key[0]} {key[1]}/{key[2]}"))

    def _waits(self, key: tuple[str, str, int], end: int, now: float) -> None:
        if end > self._committed.get(key, 0):
            self._since.setdefault(key, min(now, self._seen_at[key[1:]]))
        else:
            self._since.pop(key, None)


def _id(content: str) -> str:
    """What is unique in a message's text, whatever words were translated."""
    return content.rpartition("#")[2]


def by_id(acknowledged_at: Mapping[Message, float]) -> dict[Message, float]:
    """The same messages as they are told apart here."""
    return {(sender, recipient, _id(content)): at for (sender, recipient, content), at in acknowledged_at.items()}
