"""What the embedded broker and Apache Kafka do alike, asked request by request.

Every test runs on both. A difference is either a fault of the embedded broker, or is written down in the docstring of
its API ("Unlike Kafka") and not tested here.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kafka.protocol.admin import CreateTopicsRequest, DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest
from kafka.protocol.consumer import (
    HeartbeatRequest,
    IsolationLevel,
    JoinGroupRequest,
    LeaveGroupRequest,
    ListOffsetsRequest,
    OffsetCommitRequest,
    OffsetDeleteRequest,
    OffsetFetchRequest,
    SyncGroupRequest,
)
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from gokamsg.broker.codes import Code
from gokamsg.broker.runner import running_broker
from tests.broker.wire_client import WireClient, batch, codes, coordinator, produce
from tests.helpers import eventually

TIMEOUT_MS = 60_000
SUBSCRIPTION = b"\0\0\0\0\0\1\0\1x\0\0\0\0"  # of a consumer: version 0, topics ["x"], no user data
OTHER_BYTES = SUBSCRIPTION[:-1] + b"\3abc"  # the same with user data


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of each broker in turn."""
    if request.param == "kafka":
        yield request.getfixturevalue("apache_cluster").address
        return
    with running_broker(data_dir=Path(tmp_path_factory.mktemp("contract"))) as broker:
        yield broker.address


@pytest.fixture
def topic(address: str) -> str:
    """A new topic of two partitions that can be written to."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    creatable = CreateTopicsRequest.CreatableTopic(
        name=name, num_partitions=2, replication_factor=1, assignments=[], configs=[]
    )
    with WireClient(address) as client:
        made = client.ask(CreateTopicsRequest(version=5, topics=[creatable], timeout_ms=10_000, validate_only=False))
        assert made.topics[0].error_code == 0

        kind = ListOffsetsRequest.ListOffsetsTopic
        parts = [
            kind.ListOffsetsPartition(partition_index=index, current_leader_epoch=-1, timestamp=-1) for index in (0, 1)
        ]
        asked = ListOffsetsRequest(
            version=5, replica_id=-1, isolation_level=0, topics=[kind(name=name, partitions=parts)]
        )
        eventually("the topic's partitions are there", lambda: list(codes(client.ask(asked))) == [0, 0])
    return name


# ---- groups


@dataclass
class Member:
    """One member of a group, on a connection of its own."""

    client: WireClient
    group: str
    instance_id: str | None = None
    member_id: str = ""
    generation: int = -1
    metadata: bytes = SUBSCRIPTION
    joined: Any = field(default=None, repr=False)

    def joining(self, **named: Any) -> JoinGroupRequest:
        fields = {
            "group_id": self.group,
            "session_timeout_ms": 10_000,
            "rebalance_timeout_ms": 20_000,
            "member_id": self.member_id,
            "group_instance_id": self.instance_id,
            "protocol_type": "consumer",
            "protocols": [JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=self.metadata)],
        }
        return JoinGroupRequest(version=7, **(fields | named))

    def begin_join(self) -> None:
        self.client.send(self.joining())

    def end_join(self) -> Any:
        self.joined = self.client.receive()
        if self.joined.error_code == Code.MEMBER_ID_REQUIRED:
            self.member_id = self.joined.member_id
            self.begin_join()
            return self.end_join()
        self.member_id, self.generation = self.joined.member_id, self.joined.generation_id
        return self.joined

    def join(self) -> Any:
        """Joins alone; the first one of a group waits until Apache Kafka has found its coordinator."""
        if not self.member_id:
            first = self.client.settled(self.joining())
            if first.error_code != Code.MEMBER_ID_REQUIRED:
                self.joined, self.member_id, self.generation = first, first.member_id, first.generation_id
                return first
            self.member_id = first.member_id
        self.begin_join()
        return self.end_join()

    def sync(self, assignments: dict[str, bytes] | None = None) -> Any:
        return self.client.ask(self.syncing(assignments))

    def syncing(self, assignments: dict[str, bytes] | None = None, **named: Any) -> SyncGroupRequest:
        one = SyncGroupRequest.SyncGroupRequestAssignment
        given = [one(member_id=name, assignment=value) for name, value in (assignments or {}).items()]
        protocol = {"protocol_type": "consumer", "protocol_name": "range"}
        return SyncGroupRequest(version=5, **(self.me() | protocol | {"assignments": given} | named))

    def me(self, **named: Any) -> dict[str, Any]:
        return {
            "group_id": self.group,
            "generation_id": self.generation,
            "member_id": self.member_id,
            "group_instance_id": self.instance_id,
        } | named

    def beat(self, **named: Any) -> int:
        return int(self.client.ask(HeartbeatRequest(version=4, **self.me(**named))).error_code)

    def leave(self, *members: tuple[str, str | None]) -> list[int]:
        leaving = [
            LeaveGroupRequest.MemberIdentity(member_id=name, group_instance_id=instance)
            for name, instance in members or [(self.member_id, self.instance_id)]
        ]
        answer = self.client.ask(LeaveGroupRequest(version=4, group_id=self.group, members=leaving))
        return [member.error_code for member in answer.members] or [answer.error_code]

    def commit(self, topic: str, offset: int, *, metadata: str = "m", **named: Any) -> int:
        kind = OffsetCommitRequest.OffsetCommitRequestTopic
        part = kind.OffsetCommitRequestPartition(
            partition_index=0, committed_offset=offset, committed_leader_epoch=0, committed_metadata=metadata
        )
        me = self.me(**named)
        me["generation_id_or_member_epoch"] = me.pop("generation_id")
        answer = self.client.settled(OffsetCommitRequest(version=8, **me, topics=[kind(name=topic, partitions=[part])]))
        return int(answer.topics[0].partitions[0].error_code)

    def fetch(self, topic: str, *, stable: bool = False) -> tuple[int, int]:
        """(error code, offset) of partition 0."""
        kind = OffsetFetchRequest.OffsetFetchRequestTopic
        answer = self.client.settled(
            OffsetFetchRequest(
                version=7, group_id=self.group, topics=[kind(name=topic, partition_indexes=[0])], require_stable=stable
            )
        )
        (partition,) = answer.topics[0].partitions
        return partition.error_code, partition.committed_offset


class Group:
    """A group with a fresh name, and connections to its coordinator."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = f"contract-{uuid.uuid4().hex[:8]}"
        self.clients: list[WireClient] = []

    def member(self, instance_id: str | None = None) -> Member:
        self.clients.append(coordinator(self.address, self.name))
        return Member(self.clients[-1], self.name, instance_id)

    def stable(self, *instances: str | None) -> list[Member]:
        """Members of one Stable generation; the first leads, each is assigned its number."""
        members = [self.member(instance) for instance in instances]
        members[0].join()
        if len(members) > 1:
            self.rejoin(members[0], *members[1:])
        self.settle(members)
        return members

    def rejoin(self, old: Member, *new: Member) -> None:
        for member in new:
            member.begin_join()
            if member.instance_id is None and not member.member_id:
                member.member_id = member.client.receive().member_id
                member.begin_join()
        eventually("a rebalance has begun", lambda: old.beat() == Code.REBALANCE_IN_PROGRESS)
        old.metadata = OTHER_BYTES
        old.join()
        for member in new:
            member.end_join()

    def settle(self, members: list[Member]) -> None:
        numbers = {member.member_id: str(number).encode() for number, member in enumerate(members)}
        for member in members:
            leads = member.joined.leader == member.member_id
            member.client.send(member.syncing(numbers if leads else None))
        for number, member in enumerate(members):
            synced = member.client.receive()
            assert (synced.error_code, synced.assignment) == (0, str(number).encode())


@pytest.fixture
def group(address: str) -> Iterator[Group]:
    it = Group(address)
    yield it
    for client in it.clients:
        client.close()


def test_a_new_member_is_given_its_id_first_and_then_leads_alone(group: Group) -> None:
    member = group.member()
    first = member.client.settled(member.joining())
    assert (first.error_code, first.generation_id) == (Code.MEMBER_ID_REQUIRED, -1)
    member.member_id = first.member_id
    member.begin_join()
    joined = member.end_join()
    assert (joined.error_code, joined.generation_id, joined.leader) == (0, 1, first.member_id)
    assert (joined.protocol_type, joined.protocol_name) == ("consumer", "range")
    assert [(one.member_id, one.metadata) for one in joined.members] == [(first.member_id, SUBSCRIPTION)]
    synced = member.sync({member.member_id: b"all"})
    assert (synced.error_code, synced.protocol_name, synced.assignment) == (0, "range", b"all")
    assert member.beat() == 0


def test_a_second_member_brings_the_next_generation(group: Group) -> None:
    first, second = group.stable(None, None)
    assert (first.generation, second.generation) == (2, 2)
    assert (len(first.joined.members), second.joined.members) == (2, [])
    assert (first.beat(), second.beat()) == (0, 0)
    assert first.sync().assignment == b"0"
    assert second.leave() == [0]
    assert first.beat() == Code.REBALANCE_IN_PROGRESS
    assert first.sync().error_code == Code.REBALANCE_IN_PROGRESS
    assert first.join().generation_id == 3


def test_wrong_generations_and_strangers(group: Group, topic: str) -> None:
    (member,) = group.stable(None)
    assert member.beat(generation_id=9) == Code.ILLEGAL_GENERATION
    assert member.beat(member_id="stranger") == Code.UNKNOWN_MEMBER_ID
    assert member.client.ask(member.syncing(generation_id=9)).error_code == Code.ILLEGAL_GENERATION
    for named in ({"protocol_name": "sticky"}, {"protocol_type": "connect"}, {"protocol_name": None}):
        assert member.client.ask(member.syncing(**named)).error_code == Code.INCONSISTENT_GROUP_PROTOCOL
    assert member.client.ask(member.joining(member_id="stranger")).error_code == Code.UNKNOWN_MEMBER_ID
    assert member.leave(("stranger", None), ("", "nobody")) == [Code.UNKNOWN_MEMBER_ID] * 2
    assert member.commit(topic, 1, generation_id=9) == Code.ILLEGAL_GENERATION
    assert member.commit(topic, 1, member_id="stranger") == Code.UNKNOWN_MEMBER_ID
    assert member.commit(topic, 1, generation_id=-1, member_id="") == Code.UNKNOWN_MEMBER_ID
    assert member.commit(topic, 1) == 0


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ({"group_id": ""}, Code.INVALID_GROUP_ID),
        ({"session_timeout_ms": 1}, Code.INVALID_SESSION_TIMEOUT),
        ({"session_timeout_ms": 2**31 - 1}, Code.INVALID_SESSION_TIMEOUT),
        ({"member_id": "stranger"}, Code.UNKNOWN_MEMBER_ID),
        ({"protocols": []}, Code.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_type": ""}, Code.INCONSISTENT_GROUP_PROTOCOL),
    ],
)
def test_joins_that_are_refused(group: Group, named: dict[str, Any], code: Code) -> None:
    member = group.member()
    assert member.client.settled(member.joining(**named)).error_code == code


def test_members_without_a_common_protocol_are_refused(group: Group) -> None:
    group.stable(None)
    other = group.member()
    protocol = JoinGroupRequest.JoinGroupRequestProtocol(name="sticky", metadata=b"")
    for named in ({"protocols": [protocol]}, {"protocol_type": "connect"}):
        assert other.client.ask(other.joining(**named)).error_code == Code.INCONSISTENT_GROUP_PROTOCOL


def test_a_group_that_does_not_exist(group: Group, topic: str) -> None:
    member = group.member()
    member.member_id, member.generation = "stranger", 1
    assert member.fetch(topic) == (0, -1)
    assert member.commit(topic, 1) == Code.ILLEGAL_GENERATION
    assert member.beat() == Code.UNKNOWN_MEMBER_ID
    assert member.sync().error_code == Code.UNKNOWN_MEMBER_ID
    assert member.leave() == [Code.UNKNOWN_MEMBER_ID]
    assert describe(member) == ("Dead", "", 0)
    assert delete(member) == Code.GROUP_ID_NOT_FOUND


def describe(member: Member) -> tuple[str, str, int]:
    """(state, protocol, number of members)"""
    (found,) = member.client.settled(DescribeGroupsRequest(version=4, groups=[member.group])).groups
    return found.group_state, found.protocol_data, len(found.members)


def delete(member: Member) -> int:
    answer = member.client.settled(DeleteGroupsRequest(version=2, groups_names=[member.group]))
    return int(answer.results[0].error_code)


def test_a_group_from_its_first_member_to_its_deletion(group: Group, topic: str) -> None:
    (member,) = group.stable(None)
    assert describe(member) == ("Stable", "range", 1)
    listed = member.client.ask(ListGroupsRequest(version=4, states_filter=["Stable"])).groups
    assert (group.name, "consumer", "Stable") in {(one.group_id, one.protocol_type, one.group_state) for one in listed}
    assert member.commit(topic, 3) == 0
    assert delete(member) == Code.NON_EMPTY_GROUP
    assert member.leave() == [0]
    assert describe(member) == ("Empty", "", 0)
    assert member.fetch(topic) == (0, 3)
    assert member.commit(topic, 4, generation_id=-1, member_id="") == 0
    assert delete(member) == 0
    assert describe(member) == ("Dead", "", 0)
    assert member.fetch(topic) == (0, -1)


def test_commits_without_members(group: Group, topic: str) -> None:
    member = group.member()
    assert member.commit(topic, 5) == 0
    assert member.fetch(topic) == (0, 5)
    assert member.commit("no-such-topic", 5) == Code.UNKNOWN_TOPIC_OR_PARTITION
    assert member.commit(topic, 6, metadata="x" * 4097) == Code.OFFSET_METADATA_TOO_LARGE
    assert member.fetch(topic) == (0, 5)
    assert describe(member) == ("Empty", "", 0)


def test_offsets_of_topics_that_nobody_consumes_are_deleted(group: Group, topic: str) -> None:
    member = group.member()
    assert member.commit(topic, 5) == 0
    member.join()
    member.sync({member.member_id: b""})
    kind = OffsetDeleteRequest.OffsetDeleteRequestTopic
    parts = [kind.OffsetDeleteRequestPartition(partition_index=0)]
    answer = member.client.ask(
        OffsetDeleteRequest(version=0, group_id=group.name, topics=[kind(name=topic, partitions=parts)])
    )
    assert list(codes(answer)) == [0, 0]
    assert member.fetch(topic) == (0, -1)


def test_a_static_member_returns_to_its_assignment_and_its_former_id_is_fenced(group: Group, topic: str) -> None:
    leader, old = group.stable("a", "b")
    back = group.member("b")
    back.metadata = OTHER_BYTES
    joined = back.join()
    assert (joined.error_code, joined.generation_id, joined.members) == (0, leader.generation, [])
    assert back.member_id != old.member_id
    assert (back.sync().assignment, leader.beat()) == (b"1", 0)
    assert old.beat() == Code.FENCED_INSTANCE_ID
    assert old.sync().error_code == Code.FENCED_INSTANCE_ID
    assert old.commit(topic, 1) == Code.FENCED_INSTANCE_ID
    assert old.leave() == [Code.FENCED_INSTANCE_ID]
    assert old.client.ask(old.joining()).error_code == Code.FENCED_INSTANCE_ID
    assert back.leave(("", "b")) == [0]
    assert leader.beat() == Code.REBALANCE_IN_PROGRESS


def test_a_returning_static_leader_is_not_made_to_assign(group: Group) -> None:
    _, follower = group.stable("a", "b")
    back = group.member("a")
    joined = back.join()
    assert (joined.error_code, joined.members) == (0, [])
    assert joined.leader != joined.member_id
    assert (back.sync().assignment, follower.beat()) == (b"0", 0)


# ---- transactions


class Producer:
    """A transactional producer that does what it is told."""

    def __init__(self, address: str, topic: str, transactional_id: str | None = None) -> None:
        self.address, self.topic = address, topic
        self.id = transactional_id or f"contract-{uuid.uuid4().hex[:8]}"
        self.client = coordinator(address, self.id, transaction=True)
        self.data = WireClient(address)
        self.producer = (-1, -1)
        self.sequence = 0

    def close(self) -> None:
        self.client.close()
        self.data.close()

    def init(self, expected: tuple[int, int] = (-1, -1), *, timeout_ms: int = TIMEOUT_MS) -> tuple[int, int, int]:
        made = self.client.settled(
            InitProducerIdRequest(
                version=4,
                transactional_id=self.id,
                transaction_timeout_ms=timeout_ms,
                producer_id=expected[0],
                producer_epoch=expected[1],
            )
        )
        if made.error_code == 0:
            self.producer, self.sequence = (made.producer_id, made.producer_epoch), 0
        return made.error_code, made.producer_id, made.producer_epoch

    def me(self, producer: tuple[int, int] | None) -> dict[str, Any]:
        producer_id, epoch = producer or self.producer
        return {"transactional_id": self.id, "producer_id": producer_id, "producer_epoch": epoch}

    def add(self, *partitions: int, topic: str | None = None, producer: tuple[int, int] | None = None) -> list[int]:
        named = {f"v3_and_below_{name}": value for name, value in self.me(producer).items()}
        asked = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=topic or self.topic, partitions=list(partitions))
        answer = self.client.settled(AddPartitionsToTxnRequest(version=3, **named, v3_and_below_topics=[asked]))
        return list(codes(answer))

    def write(self, *values: bytes, partition: int = 0, producer: tuple[int, int] | None = None) -> int:
        records = batch(values, producer=producer or self.producer, sequence=self.sequence, transactional=True)
        code = int(produce(self.data, self.topic, partition, records, transactional_id=self.id).error_code)
        self.sequence += 0 if code else len(values)
        return code

    def end(self, *, commit: bool = True, producer: tuple[int, int] | None = None) -> int:
        return int(self.client.settled(EndTxnRequest(version=3, **self.me(producer), committed=commit)).error_code)

    def add_offsets(self, group: str, producer: tuple[int, int] | None = None) -> int:
        request = AddOffsetsToTxnRequest(version=3, **self.me(producer), group_id=group)
        return int(self.client.settled(request).error_code)

    def send_offsets(
        self, member: Member, offset: int, *, producer: tuple[int, int] | None = None, **named: Any
    ) -> int:
        kind = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic
        part = kind.TxnOffsetCommitRequestPartition(
            partition_index=0, committed_offset=offset, committed_leader_epoch=0, committed_metadata="m"
        )
        request = TxnOffsetCommitRequest(
            version=3,
            **self.me(producer),
            **member.me(**named),
            topics=[kind(name=self.topic, partitions=[part])],
        )
        return int(member.client.settled(request).topics[0].partitions[0].error_code)

    def end_offset(self, *, committed: bool, partition: int = 0) -> int:
        kind = ListOffsetsRequest.ListOffsetsTopic
        part = kind.ListOffsetsPartition(partition_index=partition, current_leader_epoch=-1, timestamp=-1)
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        answer = self.data.ask(
            ListOffsetsRequest(
                version=5, replica_id=-1, isolation_level=level, topics=[kind(name=self.topic, partitions=[part])]
            )
        )
        return int(answer.topics[0].partitions[0].offset)


@pytest.fixture
def producer(address: str, topic: str) -> Iterator[Producer]:
    it = Producer(address, topic)
    yield it
    it.close()


@pytest.mark.parametrize("commit", [True, False])
def test_a_transaction_from_its_begin_to_its_end(producer: Producer, commit: bool) -> None:
    assert producer.init()[0] == 0
    assert producer.add(0, 1) == [0, 0]
    assert producer.write(b"a", b"b") == 0
    assert (producer.end_offset(committed=True), producer.end_offset(committed=False)) == (0, 2)
    assert producer.end(commit=commit) == 0
    eventually("the marker counts", lambda: producer.end_offset(committed=True) == 3)
    assert producer.end(commit=commit) == 0
    assert producer.end(commit=not commit) == Code.INVALID_TXN_STATE
    assert producer.add(0) == [0]
    assert producer.write(b"c") == 0
    assert producer.end() == 0
    eventually("the next one counts", lambda: producer.end_offset(committed=True) == 5)


def test_what_never_began_cannot_end_and_strangers_are_refused(producer: Producer) -> None:
    _, producer_id, epoch = producer.init()
    assert producer.end() == Code.INVALID_TXN_STATE
    stranger = (producer_id + 1_000_000, epoch)
    assert producer.end(producer=stranger) == Code.INVALID_PRODUCER_ID_MAPPING
    assert producer.add(0, producer=stranger) == [Code.INVALID_PRODUCER_ID_MAPPING]
    assert producer.add_offsets("g", producer=stranger) == Code.INVALID_PRODUCER_ID_MAPPING


def test_partitions_that_do_not_exist_are_not_added(producer: Producer) -> None:
    producer.init()
    assert sorted(producer.add(0, 77)) == [Code.UNKNOWN_TOPIC_OR_PARTITION, Code.OPERATION_NOT_ATTEMPTED]
    assert producer.end() == Code.INVALID_TXN_STATE


@pytest.mark.parametrize("timeout_ms", [0, -1, 900_001])
def test_timeouts_that_are_refused(producer: Producer, timeout_ms: int) -> None:
    assert producer.init(timeout_ms=timeout_ms)[0] == Code.INVALID_TRANSACTION_TIMEOUT


def test_a_successor_fences_its_predecessor(producer: Producer, group: Group) -> None:
    producer.init()
    old = producer.producer
    assert producer.add(0) == [0]
    assert producer.write(b"a") == 0
    assert producer.end() == 0
    code, producer_id, epoch = producer.init()
    assert (code, producer_id, epoch) == (0, old[0], old[1] + 1)
    assert producer.add(0, producer=old) == [Code.PRODUCER_FENCED]
    assert producer.add_offsets("g", producer=old) == Code.PRODUCER_FENCED
    assert producer.end(producer=old) == Code.PRODUCER_FENCED
    assert producer.init(old)[0] == Code.PRODUCER_FENCED
    assert producer.write(b"zombie", producer=old) == Code.INVALID_PRODUCER_EPOCH


def test_a_successor_aborts_what_was_open(producer: Producer) -> None:
    producer.init()
    old = producer.producer
    producer.add(0)
    assert producer.write(b"a") == 0
    code, producer_id, epoch = producer.init()
    assert (code, producer_id, epoch) == (0, old[0], old[1] + 2)
    eventually("the abort counts", lambda: producer.end_offset(committed=True) == 2)
    assert producer.end(producer=old) == Code.PRODUCER_FENCED


def test_a_producer_bumps_its_epoch_and_may_repeat_that(producer: Producer) -> None:
    _, producer_id, epoch = producer.init()
    assert producer.init((producer_id, epoch)) == (0, producer_id, epoch + 1)
    assert producer.init((producer_id, epoch)) == (0, producer_id, epoch + 1)
    assert producer.init((producer_id, epoch + 1)) == (0, producer_id, epoch + 2)
    assert producer.init((producer_id, epoch))[0] == Code.PRODUCER_FENCED


def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(producer: Producer) -> None:
    producer.init(timeout_ms=1000)
    producer.add(0)
    assert producer.write(b"a") == 0
    eventually("the timeout", lambda: producer.end_offset(committed=True) == 2, timeout_s=20)
    assert producer.end() == Code.PRODUCER_FENCED
    assert producer.write(b"b") == Code.INVALID_PRODUCER_EPOCH


@pytest.mark.parametrize("commit", [True, False])
def test_offsets_of_a_transaction(producer: Producer, group: Group, commit: bool) -> None:
    (member,) = group.stable(None)
    producer.init()
    assert member.commit(producer.topic, 3) == 0
    assert producer.add_offsets(group.name) == 0
    assert producer.send_offsets(member, 7) == 0
    assert member.fetch(producer.topic, stable=True) == (Code.UNSTABLE_OFFSET_COMMIT, -1)
    assert member.fetch(producer.topic) == (0, 3)
    assert producer.end(commit=commit) == 0
    expected = (0, 7 if commit else 3)
    eventually("the end counts", lambda: member.fetch(producer.topic, stable=True) == expected)


def test_offsets_of_a_transaction_are_taken_from_current_members_only(producer: Producer, group: Group) -> None:
    (member,) = group.stable("a")
    producer.init()
    assert producer.add_offsets(group.name) == 0
    assert producer.send_offsets(member, 7, generation_id=9) == Code.ILLEGAL_GENERATION
    assert producer.send_offsets(member, 7, member_id="stranger", group_instance_id=None) == Code.UNKNOWN_MEMBER_ID
    assert producer.send_offsets(member, 7, member_id="stranger") == Code.FENCED_INSTANCE_ID
    assert producer.send_offsets(member, 7) == 0
    assert producer.end(commit=False) == 0


def test_produce_needs_its_partition_in_the_transaction(producer: Producer) -> None:
    producer.init()
    assert producer.add(0) == [0]
    assert producer.write(b"a", partition=1) == Code.INVALID_TXN_STATE
    assert producer.write(b"a", partition=0) == 0
    assert producer.end() == 0
