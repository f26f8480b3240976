"""The copartition assignment as a kafka-python assignor: brings the plans of engine/assignor.py to the group protocol.

Protocol name `copartition`, as Goka's. Our members send their generation and partitions as user data; when any member
sends none (a Goka program), Goka's plan is made; when all do, the sticky one.
"""

from collections.abc import Iterable
from typing import Any

from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription


class CopartitionAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # kafka-python has no types
    """One per consumer: it remembers what its member owns. Called on kafka-python's I/O thread."""

    name = "copartition"
    version = 0

    def __init__(self) -> None:
        self._generation = -1
        self._owned: tuple[int, ...] = ()

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        return ConsumerProtocolSubscription(self.version, sorted(topics), b"")

    def on_assignment(self, assignment: ConsumerProtocolAssignment, generation: int) -> None:
        self._generation = generation
        self._owned = tuple(sorted({tp.partition for tp in assignment.partitions()}))

    def assign(self, cluster: Any, members: Iterable[Any]) -> dict[str, ConsumerProtocolAssignment]:
        ordered = sorted(members, key=lambda member: str(member.group_instance_id or member.member_id))
        plan: dict[str, ConsumerProtocolAssignment] = {}
        for index, member in enumerate(ordered):
            parts = [
                (topic, [p for p in sorted(cluster.partitions_for_topic(topic) or ()) if p % len(ordered) == index])
                for topic in sorted(member.metadata.topics)
            ]
            plan[member.member_id] = ConsumerProtocolAssignment(self.version, parts, b"")
        return plan
