"""Follows topics while a test runs: everything that was read stays, so that nothing is read twice.

1. `catch_up` returns when every committed record below the ends of the partitions, as of now, has been read. Ends are
   those of all records: a decided transaction whose marker is still on its way is waited for.
2. `drained` waits until a group has committed all of its input as of then; what it caused can be read afterwards.
"""

from collections import defaultdict
from collections.abc import Collection
from types import TracebackType

from kafka import TopicPartition
from kafka.admin import OffsetSpec

from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_consumer
from tests.system.fold import Record
from tests.system.messaging import INPUTS


class Tail:
    """One reader of one cluster; the topics must exist."""

    def __init__(self, cluster: KafkaCluster, topics: Collection[str], *, partitions: int = 8) -> None:
        self.records: dict[str, list[Record]] = {topic: [] for topic in topics}
        self._partitions = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]
        self._admin = cluster.admin()
        self._consumer = plain_consumer(
            cluster.address,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=10_000,
        )
        self._consumer.assign(self._partitions)
        self._consumer.seek_to_beginning(*self._partitions)

    def __enter__(self) -> "Tail":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()
        self._admin.close()

    def catch_up(self) -> None:
        ends = self._admin.list_partition_offsets(dict.fromkeys(self._partitions, OffsetSpec.LATEST))

        def reached() -> bool:
            for records in self._consumer.poll(timeout_ms=100).values():
                for record in records:
                    key = (record.key or b"").decode("utf-8", "surrogateescape")
                    self.records[record.topic].append(Record(record.partition, record.offset, key, record.value))
            return all(self._consumer.position(partition) >= end.offset for partition, end in ends.items())

        eventually("everything committed is read", reached, timeout_s=60, interval_s=0.0)

    def by_partition(self, topic: str) -> dict[int, list[Record]]:
        found: dict[int, list[Record]] = defaultdict(list)
        for record in self.records[topic]:
            found[record.partition].append(record)
        return dict(found)

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        offsets = self._admin.list_group_offsets({group: None})[group]
        return {(partition.topic, partition.partition): at.offset for partition, at in offsets.items()}

    def drained(self, *groups: str, timeout_s: float = 60.0) -> None:
        """Returns when each group has committed all of its input; upstream groups are to be named first."""
        for group in groups:

            def through(group: str = group) -> bool:
                self.catch_up()
                committed = self.committed(group)
                left = {
                    (topic, number): records[-1].offset + 1 - committed.get((topic, number), 0)
                    for topic in INPUTS[group]
                    for number, records in self.by_partition(topic).items()
                    if committed.get((topic, number), 0) <= records[-1].offset
                }
                assert not left, f"left by partition: {left}"
                return True

            eventually(f"group {group} has committed all of its input", through, timeout_s=timeout_s, interval_s=0.1)
