"""The APIs that look up and move offsets, at every version that is served."""

from typing import Any

import pytest
from kafka.protocol import admin
from kafka.protocol.consumer import (
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
)

from gokamsg.broker.runner import RunningBroker
from tests.broker.raw_client import RawClient, make_batch
from tests.broker.test_api_produce_fetch import create, fetch
from tests.broker.test_api_topics import versions


def offset_at(client: RawClient, timestamp: int, version: int = 9, *, topic: str = "t", partition: int = 0) -> Any:
    asked = ListOffsetsRequest.ListOffsetsTopic
    request = ListOffsetsRequest(
        replica_id=-1,
        isolation_level=0,
        topics=[
            asked(
                name=topic,
                partitions=[
                    asked.ListOffsetsPartition(partition_index=partition, current_leader_epoch=-1, timestamp=timestamp)
                ],
            )
        ],
    )
    return client.ask(request, ListOffsetsResponse, version).topics[0].partitions[0]


@versions(2)
def test_list_offsets(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        empty = offset_at(client, 0, version)
        assert (empty.error_code, empty.offset, empty.timestamp) == (0, -1, -1)
        client.produce("t", 0, make_batch([(b"k", b"v")] * 3, timestamps=[1000, 3000, 2000]))
        client.produce("t", 0, make_batch([(b"k", b"v")] * 2, timestamps=[2500, 4000]))
        assert offset_at(client, -2, version).offset == 0
        latest = offset_at(client, -1, version)
        assert (latest.error_code, latest.offset) == (0, 5)
        for timestamp, offset, found in [(0, 0, 1000), (1001, 1, 3000), (3001, 4, 4000), (4000, 4, 4000)]:
            answer = offset_at(client, timestamp, version)
            assert (answer.error_code, answer.offset, answer.timestamp) == (0, offset, found)
        assert offset_at(client, 4001, version).offset == -1
        assert offset_at(client, -1, version, topic="nope").error_code == 3
        assert offset_at(client, -1, version, partition=9).error_code == 3
        largest = offset_at(client, -3, version)
        assert (largest.error_code, largest.offset, largest.timestamp) == (
            (0, 4, 4000) if version >= 7 else (35, -1, -1)
        )
        assert offset_at(client, -4, version).error_code == (0 if version >= 8 else 35)
        assert offset_at(client, -5, version).error_code == (0 if version >= 9 else 35)
        assert offset_at(client, -99, version).error_code == 35


def delete_records(client: RawClient, offset: int, version: int = 2, *, partition: int = 0) -> Any:
    asked = admin.DeleteRecordsRequest.DeleteRecordsTopic
    request = admin.DeleteRecordsRequest(
        topics=[asked(name="t", partitions=[asked.DeleteRecordsPartition(partition_index=partition, offset=offset)])],
        timeout_ms=1000,
    )
    return client.ask(request, admin.DeleteRecordsResponse, version).topics[0].partitions[0]


@versions(21)
def test_delete_records(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        for _ in range(3):
            client.produce("t", 0, make_batch([(b"k", b"v")] * 2))
        answer = delete_records(client, 3, version)
        assert (answer.error_code, answer.low_watermark) == (0, 3)
        assert offset_at(client, -2).offset == 3
        assert fetch(client, "t", 2).error_code == 1
        part = fetch(client, "t", 3)
        assert (part.error_code, part.log_start_offset) == (0, 3)
        assert bytes(part.records)
        assert offset_at(client, 0).offset == 3  # never below the start, though its batch begins there
        assert delete_records(client, 7, version).error_code == 1
        assert delete_records(client, 0, version, partition=9).error_code == 3
        assert delete_records(client, -1, version).low_watermark == 6
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).base_offset == 6


def test_delete_records_of_a_compacted_topic_is_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", cleanup_policy="compact")
        client.produce("t", 0, make_batch([(b"k", b"v")]))
        assert delete_records(client, 1).error_code == 44


@versions(23)
def test_offset_for_leader_epoch(broker: RunningBroker, version: int) -> None:
    asked = OffsetForLeaderEpochRequest.OffsetForLeaderTopic

    def ask(client: RawClient, epoch: int, partition: int = 0) -> Any:
        part = asked.OffsetForLeaderPartition(partition=partition, current_leader_epoch=-1, leader_epoch=epoch)
        request = OffsetForLeaderEpochRequest(replica_id=-1, topics=[asked(topic="t", partitions=[part])])
        return client.ask(request, OffsetForLeaderEpochResponse, version).topics[0].partitions[0]

    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch([(b"k", b"v")] * 4))
        answer = ask(client, 0)
        assert (answer.error_code, answer.leader_epoch, answer.end_offset) == (0, 0, 4)
        assert (ask(client, 3).leader_epoch, ask(client, 3).end_offset) == (-1, -1)
        assert ask(client, 0, partition=9).error_code == 3


@pytest.mark.parametrize("epoch", [1, 7])
def test_leader_epochs_that_never_were_are_refused(broker: RunningBroker, epoch: int) -> None:
    asked = OffsetForLeaderEpochRequest.OffsetForLeaderTopic
    with RawClient(broker.address) as client:
        create(client, "t")
        part = asked.OffsetForLeaderPartition(partition=0, current_leader_epoch=epoch, leader_epoch=0)
        request = OffsetForLeaderEpochRequest(replica_id=-1, topics=[asked(topic="t", partitions=[part])])
        answer = client.ask(request, OffsetForLeaderEpochResponse, 4).topics[0].partitions[0]
    assert answer.error_code == 75


@versions(61)
def test_describe_producers(broker: RunningBroker, version: int) -> None:
    asked = admin.DescribeProducersRequest.TopicRequest
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch([(b"k", b"v")] * 2, producer_id=44, epoch=1, sequence=0, timestamp=77))
        request = admin.DescribeProducersRequest(topics=[asked(name="t", partition_indexes=[0, 1, 9])])
        (topic,) = client.ask(request, admin.DescribeProducersResponse, version).topics
    first, second, third = topic.partitions
    (producer,) = first.active_producers
    assert (producer.producer_id, producer.producer_epoch, producer.last_sequence) == (44, 1, 1)
    assert (producer.last_timestamp, producer.current_txn_start_offset) == (77, -1)
    assert (second.error_code, second.active_producers) == (0, [])
    assert third.error_code == 3
