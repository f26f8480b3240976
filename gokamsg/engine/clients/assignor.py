"""The copartition assignment as a kafka-python assignor: brings the plans of engine/assignor.py to the group protocol.

Our members send the generation and the partitions that they had as user data; when a member sends none (a Goka
program), Goka's plan is made, else the sticky one.
"""

from collections.abc import Iterable
from typing import Any

from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from gokamsg.engine.assignor import PROTOCOL, encode_user_data, plan


class CopartitionAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # kafka-python has no types
    """One per consumer: it remembers what its member owns. Called on kafka-python's I/O thread."""

    name = PROTOCOL
    version = 0

    def __init__(self) -> None:
        self._generation = -1
        self._owned: tuple[int, ...] = ()

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        return ConsumerProtocolSubscription(
            self.version, sorted(topics), encode_user_data(self._generation, self._owned)
        )

    def on_assignment(self, assignment: ConsumerProtocolAssignment, generation: int) -> None:
        self._generation = generation
        self._owned = tuple(sorted({tp.partition for tp in assignment.partitions()}))

    def assign(self, cluster: Any, members: Iterable[Any]) -> dict[str, ConsumerProtocolAssignment]:
        members = list(members)
        topics_of = {member.member_id: list(member.metadata.topics) for member in members}
        user_data = {member.member_id: member.metadata.user_data for member in members}
        topics = {topic for topics in topics_of.values() for topic in topics}
        partitions_of = {topic: cluster.partitions_for_topic(topic) or () for topic in topics}
        shares = plan(topics_of, user_data, partitions_of)
        return {
            member: ConsumerProtocolAssignment(self.version, sorted(shares[member].items()), b"") for member in shares
        }
