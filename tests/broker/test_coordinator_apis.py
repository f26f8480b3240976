"""Each group, offset and transaction API over each of its versions, through the codec."""

from pathlib import Path
from typing import Any

import pytest
from kafka.protocol.admin import (
    DeleteGroupsRequest,
    DescribeGroupsRequest,
    DescribeTransactionsRequest,
    ListGroupsRequest,
    ListTransactionsRequest,
)
from kafka.protocol.consumer import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    OffsetCommitRequest,
    OffsetDeleteRequest,
    OffsetFetchRequest,
    SyncGroupRequest,
)
from kafka.protocol.metadata import FindCoordinatorRequest
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from gokamsg.broker import registry
from gokamsg.broker.codes import Code
from tests.broker.fake_clock import on_loop
from tests.broker.scene import TOPIC, Scene, at, scene

SUBSCRIPTION = b"\0\0" + b"\0\0\0\1" + b"\0\1t" + b"\xff\xff\xff\xff"  # version 0: the topic "t", no user data

PROTOCOL = {"protocol_type": "consumer", "protocol_name": "range"}


def versions(*keys: int) -> list[int]:
    """All versions that any of the APIs has; `sized` brings them into the range of each."""
    rows = [registry.APIS[key] for key in keys]
    return list(range(min(lowest for _, lowest, _ in rows), max(highest for _, _, highest in rows) + 1))


def sized(request: Any, version: int) -> int:
    """The version, or the one nearest to it that the API has."""
    _, lowest, highest = registry.APIS[request.API_KEY]
    return max(lowest, min(version, highest))


async def ask(it: Scene, request: Any, version: int, **fields: Any) -> Any:
    return await it.ask(request(version=sized(request, version), **fields))


def joining(member_id: str = "", **named: Any) -> dict[str, Any]:
    protocol = JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=SUBSCRIPTION)
    return {
        "group_id": "g",
        "session_timeout_ms": 10_000,
        "rebalance_timeout_ms": 20_000,
        "member_id": member_id,
        "group_instance_id": None,
        "protocol_type": "consumer",
        "protocols": [protocol],
        "reason": None,
    } | named


async def join(it: Scene, version: int) -> Any:
    answer = await ask(it, JoinGroupRequest, version, **joining())
    if answer.error_code == Code.MEMBER_ID_REQUIRED:
        assert sized(JoinGroupRequest, version) >= 4
        answer = await ask(it, JoinGroupRequest, version, **joining(answer.member_id))
    return answer


def commit_topics(request: Any, offset: int, topic: str = TOPIC, metadata: str | None = "m") -> list[Any]:
    topic_type = getattr(request, f"{request.__name__}Topic")
    partition = getattr(topic_type, f"{request.__name__}Partition")(
        partition_index=0, committed_offset=offset, committed_leader_epoch=3, committed_metadata=metadata
    )
    return [topic_type(name=topic, partitions=[partition])]


async def fetch_offset(it: Scene, version: int, *, stable: bool = False, everything: bool = False) -> Any:
    """The one partition of the answer for group "g"."""
    version = sized(OffsetFetchRequest, version)
    if version < 8:
        topics = [OffsetFetchRequest.OffsetFetchRequestTopic(name=TOPIC, partition_indexes=[0])]
        asked: Any = {"group_id": "g", "topics": None if everything else topics}
    else:
        group = OffsetFetchRequest.OffsetFetchRequestGroup
        topics = [group.OffsetFetchRequestTopics(name=TOPIC, partition_indexes=[0])]
        asked = {"groups": [group(group_id="g", topics=None if everything else topics)]}
    answer = await ask(it, OffsetFetchRequest, version, require_stable=stable, **asked)
    (topic,) = (answer if version < 8 else answer.groups[0]).topics
    (partition,) = topic.partitions
    assert (topic.name, partition.partition_index) == (TOPIC, 0)
    return partition


@pytest.mark.parametrize("version", versions(11, 12, 13, 14))
@on_loop
async def test_join_sync_heartbeat_leave(tmp_path: Path, version: int) -> None:
    async with scene(tmp_path) as it:
        joined = await join(it, version)
        assert (joined.error_code, joined.generation_id, joined.leader) == (0, 1, joined.member_id)
        assert joined.protocol_name == "range"
        assert [(m.member_id, m.metadata) for m in joined.members] == [(joined.member_id, SUBSCRIPTION)]
        me = {"group_id": "g", "generation_id": 1, "member_id": joined.member_id}
        assignment = SyncGroupRequest.SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"mine")
        synced = await ask(it, SyncGroupRequest, version, **me, **PROTOCOL, assignments=[assignment])
        assert (synced.error_code, synced.assignment) == (0, b"mine")
        if version >= 5:
            synced = await ask(it, SyncGroupRequest, version, **me, assignments=[])
            assert synced.error_code == Code.INCONSISTENT_GROUP_PROTOCOL
        assert (await ask(it, HeartbeatRequest, version, **me)).error_code == 0
        wrong = me | {"generation_id": 7}
        assert (await ask(it, HeartbeatRequest, version, **wrong)).error_code == Code.ILLEGAL_GENERATION
        assert (await ask(it, SyncGroupRequest, version, **wrong)).error_code == Code.ILLEGAL_GENERATION
        left = await leave(it, version, joined.member_id)
        assert left == 0
        assert await leave(it, version, joined.member_id) == Code.UNKNOWN_MEMBER_ID
        assert (await ask(it, HeartbeatRequest, version, **me)).error_code == Code.UNKNOWN_MEMBER_ID


async def leave(it: Scene, version: int, member_id: str) -> int:
    member = LeaveGroupRequest.MemberIdentity(member_id=member_id, group_instance_id=None)
    answer = await ask(it, LeaveGroupRequest, version, group_id="g", member_id=member_id, members=[member])
    if sized(LeaveGroupRequest, version) < 3:
        return int(answer.error_code)
    assert answer.error_code == 0
    return int(answer.members[0].error_code)


@pytest.mark.parametrize("version", versions(11))
@on_loop
async def test_joins_that_are_refused(tmp_path: Path, version: int) -> None:
    async with scene(tmp_path) as it:
        for named, code in [
            ({"group_id": ""}, Code.INVALID_GROUP_ID),
            ({"session_timeout_ms": 5_999}, Code.INVALID_SESSION_TIMEOUT),
            ({"session_timeout_ms": 1_800_001}, Code.INVALID_SESSION_TIMEOUT),
            ({"member_id": "stranger"}, Code.UNKNOWN_MEMBER_ID),
            ({"protocols": []}, Code.INCONSISTENT_GROUP_PROTOCOL),
        ]:
            answer = await ask(it, JoinGroupRequest, version, **joining(**named))
            assert answer.error_code == code
        assert it.broker.groups.get("") is None


@pytest.mark.parametrize("version", versions(8, 9))
@on_loop
async def test_commit_and_fetch_offsets(tmp_path: Path, version: int) -> None:
    async with scene(tmp_path) as it:
        assert (await fetch_offset(it, version)).committed_offset == -1
        simple = {"group_id": "g", "generation_id_or_member_epoch": -1, "member_id": ""}
        answer = await ask(it, OffsetCommitRequest, version, **simple, topics=commit_topics(OffsetCommitRequest, 5))
        assert answer.topics[0].partitions[0].error_code == 0
        found = await fetch_offset(it, version)
        epoch = 3 if sized(OffsetCommitRequest, version) >= 6 and sized(OffsetFetchRequest, version) >= 5 else -1
        assert (found.committed_offset, found.metadata, found.committed_leader_epoch) == (5, "m", epoch)
        if sized(OffsetFetchRequest, version) >= 2:
            assert (await fetch_offset(it, version, everything=True)).committed_offset == 5
        for topics, code in [
            (commit_topics(OffsetCommitRequest, 5, topic="missing"), Code.UNKNOWN_TOPIC_OR_PARTITION),
            (commit_topics(OffsetCommitRequest, 6, metadata="x" * 4097), Code.OFFSET_METADATA_TOO_LARGE),
        ]:
            answer = await ask(it, OffsetCommitRequest, version, **simple, topics=topics)
            assert answer.topics[0].partitions[0].error_code == code
        stranger = simple | {"generation_id_or_member_epoch": 1, "member_id": "stranger"}
        answer = await ask(it, OffsetCommitRequest, version, **stranger, topics=commit_topics(OffsetCommitRequest, 6))
        assert answer.topics[0].partitions[0].error_code == Code.UNKNOWN_MEMBER_ID
        assert (await fetch_offset(it, version)).committed_offset == 5
        await ask(
            it, OffsetCommitRequest, version, **simple, topics=commit_topics(OffsetCommitRequest, 7, metadata=None)
        )
        assert (await fetch_offset(it, version)).metadata == ""


@pytest.mark.parametrize("key_type", [0, 1, 2, 9])
@pytest.mark.parametrize("version", versions(10))
@on_loop
async def test_find_coordinator(tmp_path: Path, version: int, key_type: int) -> None:
    async with scene(tmp_path) as it:
        found = await ask(it, FindCoordinatorRequest, version, key="k", key_type=key_type, coordinator_keys=["k", "l"])
        answers = [found] if version < 4 else found.coordinators
        assert [one.key for one in answers] == ["k", "l"] if version >= 4 else len(answers) == 1
        for one in answers:
            if version == 0 or key_type in (0, 1):
                here = (0, it.broker.node_id, it.server.host, it.server.port)
                assert (one.error_code, one.node_id, one.host, one.port) == here
            else:
                assert one.error_code == Code.INVALID_REQUEST


@pytest.mark.parametrize("version", versions(15, 16, 42))
@on_loop
async def test_describe_list_and_delete_groups(tmp_path: Path, version: int) -> None:
    async with scene(tmp_path) as it:
        await it.broker.offsets.commit("idle", {(TOPIC, 0): at(1)})
        it.broker.groups.check_commit("idle", -1, "", None, transactional=False)
        joined = await join(it, version)
        described = await ask(
            it, DescribeGroupsRequest, version, groups=["g", "idle", "no"], include_authorized_operations=True
        )
        states = [(group.group_id, group.group_state, group.error_code) for group in described.groups]
        assert states == [("g", "CompletingRebalance", 0), ("idle", "Empty", 0), ("no", "Dead", 0)]
        assert [member.member_metadata for member in described.groups[0].members] == [b""]
        await ask(it, SyncGroupRequest, version, group_id="g", generation_id=1, member_id=joined.member_id, **PROTOCOL)
        described = await ask(it, DescribeGroupsRequest, version, groups=["g"])
        (group,) = described.groups
        assert (group.group_state, group.protocol_type, group.protocol_data) == ("Stable", "consumer", "range")
        (member,) = group.members
        assert (member.client_id, member.client_host, member.member_metadata) == ("client", "127.0.0.1", SUBSCRIPTION)
        for named, names in [
            ({}, {"g", "idle"}),
            ({"states_filter": ["stable"]}, {"g"} if sized(ListGroupsRequest, version) >= 4 else {"g", "idle"}),
            ({"types_filter": ["Classic"]}, {"g", "idle"}),
            ({"types_filter": ["consumer"]}, set() if version >= 5 else {"g", "idle"}),
        ]:
            listed = await ask(it, ListGroupsRequest, version, **({"states_filter": [], "types_filter": []} | named))
            assert {group.group_id for group in listed.groups} == names
        deleted = await ask(it, DeleteGroupsRequest, version, groups_names=["g", "idle", "no"])
        codes = [Code.NON_EMPTY_GROUP, Code.NONE, Code.GROUP_ID_NOT_FOUND]
        assert [result.error_code for result in deleted.results] == codes


@on_loop
async def test_offset_delete_spares_what_members_are_subscribed_to(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.broker.topics.create("other", 1, {})
        await it.broker.offsets.commit("g", {(TOPIC, 0): at(1), ("other", 0): at(2)})
        await join(it, 5)
        topic = OffsetDeleteRequest.OffsetDeleteRequestTopic
        partitions = [topic.OffsetDeleteRequestPartition(partition_index=0)]
        topics = [topic(name=name, partitions=partitions) for name in (TOPIC, "other", "missing")]
        answer = await it.ask(OffsetDeleteRequest(version=0, group_id="g", topics=topics))
        codes = [Code.GROUP_SUBSCRIBED_TO_TOPIC, Code.NONE, Code.UNKNOWN_TOPIC_OR_PARTITION]
        assert [one.partitions[0].error_code for one in answer.topics] == codes
        assert it.broker.offsets.partitions("g") == [(TOPIC, 0)]
        answer = await it.ask(OffsetDeleteRequest(version=0, group_id="no", topics=topics))
        assert answer.error_code == Code.GROUP_ID_NOT_FOUND


def fenced(request: Any, version: int, since: int = 2) -> Code:
    return Code.PRODUCER_FENCED if sized(request, version) >= since else Code.INVALID_PRODUCER_EPOCH


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("version", versions(22, 24, 25, 26, 28))
@on_loop
async def test_a_transaction_with_offsets(tmp_path: Path, version: int, commit: bool) -> None:
    async with scene(tmp_path) as it:
        init = {"transactional_id": "x", "transaction_timeout_ms": 1000}
        made = await ask(it, InitProducerIdRequest, version, **init)
        assert made.error_code == 0
        me = {"transactional_id": "x", "producer_id": made.producer_id, "producer_epoch": made.producer_epoch}
        assert await add_partitions(it, version, me, 0, 1) == [0, 0]
        assert await add_partitions(it, version, me, 0, 99) == [
            Code.OPERATION_NOT_ATTEMPTED,
            Code.UNKNOWN_TOPIC_OR_PARTITION,
        ]
        assert await it.append((made.producer_id, made.producer_epoch)) == 0
        assert (await ask(it, AddOffsetsToTxnRequest, version, **me, group_id="g")).error_code == 0
        topics = commit_topics(TxnOffsetCommitRequest, 9) + commit_topics(TxnOffsetCommitRequest, 9, topic="missing")
        sent = await ask(it, TxnOffsetCommitRequest, version, **me, group_id="g", topics=topics)
        codes = [topic.partitions[0].error_code for topic in sent.topics]
        assert codes == [0, Code.UNKNOWN_TOPIC_OR_PARTITION]
        if version >= 3:
            member = {"generation_id": 1, "member_id": "stranger", "group_instance_id": None}
            sent = await ask(it, TxnOffsetCommitRequest, version, **me, **member, group_id="g", topics=topics)
            assert sent.topics[0].partitions[0].error_code == Code.UNKNOWN_MEMBER_ID
        unstable = await fetch_offset(it, 9, stable=True)
        assert (unstable.error_code, unstable.committed_offset) == (Code.UNSTABLE_OFFSET_COMMIT, -1)
        assert (await fetch_offset(it, 9)).committed_offset == -1
        await describe(it, "Ongoing")
        assert (await ask(it, EndTxnRequest, version, **me, committed=commit)).error_code == 0
        assert (await fetch_offset(it, 9, stable=True)).committed_offset == (9 if commit else -1)
        await describe(it, "CompleteCommit" if commit else "CompleteAbort")
        await ask(it, InitProducerIdRequest, version, **init)
        assert (await ask(it, EndTxnRequest, version, **me, committed=True)).error_code == fenced(
            EndTxnRequest, version
        )
        assert (await ask(it, AddOffsetsToTxnRequest, version, **me, group_id="g")).error_code == fenced(
            AddOffsetsToTxnRequest, version
        )
        assert await add_partitions(it, version, me, 0) == [fenced(AddPartitionsToTxnRequest, version)]
        sent = await ask(it, TxnOffsetCommitRequest, version, **me, group_id="g", topics=topics[:1])
        assert sent.topics[0].partitions[0].error_code == Code.INVALID_PRODUCER_EPOCH
        if version >= 3:
            stale = {"producer_id": me["producer_id"], "producer_epoch": me["producer_epoch"]}
            answer = await ask(it, InitProducerIdRequest, version, **init, **stale)
            assert answer.error_code == fenced(InitProducerIdRequest, version, since=4)


async def add_partitions(it: Scene, version: int, me: dict[str, Any], *partitions: int) -> list[int]:
    topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=TOPIC, partitions=list(partitions))
    named = {f"v3_and_below_{name}": value for name, value in me.items()}
    answer = await ask(it, AddPartitionsToTxnRequest, version, **named, v3_and_below_topics=[topic])
    (result,) = answer.results_by_topic_v3_and_below
    return [partition.partition_error_code for partition in result.results_by_partition]


async def describe(it: Scene, state: str) -> None:
    answer = await it.ask(DescribeTransactionsRequest(version=0, transactional_ids=["x", "no"]))
    found, missing = answer.transaction_states
    assert (found.error_code, found.transaction_state, found.transaction_timeout_ms) == (0, state, 1000)
    topics = [(topic.topic, topic.partitions) for topic in found.topics]
    assert topics == ([(TOPIC, [0, 1])] if state == "Ongoing" else [])
    assert missing.error_code == Code.TRANSACTIONAL_ID_NOT_FOUND
    for version in versions(66):
        filters = {"state_filters": [state, "Odd"], "producer_id_filters": [found.producer_id]}
        listed = await ask(it, ListTransactionsRequest, version, **filters)
        assert listed.unknown_state_filters == ["Odd"]
        assert [(one.transactional_id, one.transaction_state) for one in listed.transaction_states] == [("x", state)]
    long = await it.ask(ListTransactionsRequest(version=1, state_filters=[], producer_id_filters=[], duration_filter=1))
    assert long.transaction_states == []


@pytest.mark.parametrize("version", versions(22))
@on_loop
async def test_init_producer_id_without_a_transactional_id_and_with_wrong_timeouts(
    tmp_path: Path, version: int
) -> None:
    async with scene(tmp_path) as it:
        ids = set()
        for _ in range(3):
            made = await ask(it, InitProducerIdRequest, version, transactional_id=None, transaction_timeout_ms=-1)
            assert (made.error_code, made.producer_epoch) == (0, 0)
            ids.add(made.producer_id)
        assert len(ids) == 3
        made = await ask(it, InitProducerIdRequest, version, transactional_id="x", transaction_timeout_ms=900_001)
        assert made.error_code == Code.INVALID_TRANSACTION_TIMEOUT
