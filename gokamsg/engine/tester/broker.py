"""A cluster in memory: topics, groups, transactional ids, and a clock that stands still until it is moved.

One thread uses it. What it decides is what brokers decide: which generation of a group may commit, who owns a
transactional id, and what is in a log.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from random import Random

from msgspec import Struct, field

from gokamsg.engine.assignor import Claim, sticky_plan
from gokamsg.engine.clients import Membership, TopicPart
from gokamsg.engine.tester.log import MemoryLog as MemoryLog
from gokamsg.engine.tester.log import MemoryTopic, MemoryTransaction
from gokamsg.errors import TopicError, TransactionAbortedError


class GroupMember(Struct):
    """One member as its group knows it."""

    member_id: str
    instance_id: str
    topics: tuple[str, ...]
    partitions: frozenset[TopicPart] = frozenset()


class MemoryGroup(Struct):
    """A consumer group."""

    name: str
    generation: int = 0
    members: dict[str, GroupMember] = field(default_factory=dict)  # by member id
    offsets: dict[TopicPart, int] = field(default_factory=dict)

    def check(self, membership: Membership) -> None:
        """TransactionAbortedError unless this is a member of the present generation."""
        if membership.generation_id != self.generation or membership.member_id not in self.members:
            raise TransactionAbortedError(f"group {self.name!r} has rebalanced since the records were read")


class MemoryBroker:
    """See the module."""

    def __init__(self, *, partitions: int, random: Random, now: float) -> None:
        self.topics: dict[str, MemoryTopic] = {}
        self.groups: dict[str, MemoryGroup] = {}
        self.owners: dict[str, object] = {}  # transactional id -> the producer that initialized it last
        self.transactions: dict[str, MemoryTransaction] = {}  # the open ones, by transactional id
        self.random = random
        self.now = now
        self.partitions = partitions

    def create(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> MemoryTopic:
        """Make a topic; the one that is there, if there is one."""
        topic = self.topics.get(name)
        if topic is None:
            topic_id = uuid.UUID(int=self.random.getrandbits(128)).hex
            logs = [MemoryLog(number) for number in range(partitions)]
            topic = self.topics[name] = MemoryTopic(name, topic_id, dict(config or {}), logs)
        return topic

    def topic(self, name: str) -> MemoryTopic:
        """TopicError when it does not exist."""
        try:
            return self.topics[name]
        except KeyError:
            raise TopicError(f"topic {name!r} does not exist in this tester; make it with create_topic()") from None

    def log(self, part: TopicPart) -> MemoryLog:
        """The log of a partition."""
        return self.topic(part[0]).logs[part[1]]

    # --- groups -------------------------------------------------------------------------------------------------

    def join(self, group_name: str, instance_id: str, topics: Sequence[str]) -> GroupMember:
        """A new member; one that comes again under its instance id takes its place without a rebalance."""
        group = self.groups.setdefault(group_name, MemoryGroup(group_name))
        member_id = f"{instance_id}-{self.random.getrandbits(32):08x}"
        before = next((m for m in group.members.values() if m.instance_id == instance_id), None)
        member = GroupMember(member_id, instance_id, tuple(topics))
        if before is not None:
            del group.members[before.member_id]
            member.partitions = before.partitions
        group.members[member_id] = member
        if before is None or before.topics != member.topics:
            self._rebalance(group)
        return member

    def leave(self, group_name: str, member_id: str) -> None:
        """Its partitions go to the others."""
        group = self.groups[group_name]
        if group.members.pop(member_id, None) is not None and group.members:
            self._rebalance(group)

    def _rebalance(self, group: MemoryGroup) -> None:
        topics_of = {member.member_id: member.topics for member in group.members.values()}
        names = {name for topics in topics_of.values() for name in topics}
        partitions_of = {name: range(len(self.topic(name).logs)) for name in names}
        claims = {
            member.member_id: Claim(group.generation, tuple(sorted({number for _, number in member.partitions})))
            for member in group.members.values()
        }
        plan = sticky_plan(topics_of, claims, partitions_of)
        group.generation += 1
        for member in group.members.values():
            shares = plan[member.member_id]
            member.partitions = frozenset((name, number) for name, numbers in shares.items() for number in numbers)

    # --- transactions -------------------------------------------------------------------------------------------

    def own(self, transactional_id: str, producer: object) -> None:
        """Whoever had the id is fenced, and what it left open is aborted."""
        self.owners[transactional_id] = producer
        pending = self.transactions.pop(transactional_id, None)
        if pending is not None:
            pending.end(commit=False)

    def stable_ends(self, parts: Collection[TopicPart]) -> dict[TopicPart, int]:
        """Up to where each partition can be read."""
        return {part: self.log(part).stable_end() for part in parts}
