"""Questions about the ends of a log, to a broker that does not lead the partition any more.

The client's metadata is minutes old, as it is where leaders move without a connection that breaks. Invariants: the
answer comes as soon as new metadata could, not when the old is due; and the wrong broker is not asked in a hot loop.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient
from kafka.protocol.consumer import ListOffsetsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.control import Answer
from gokamsg.engine.clients import ClientConfig, TableConsumer
from tests.engine.broken_broker import Meddling, Restarting
from tests.plain_clients import plain_producer

PARTITIONS = 3
RECORDS = 5
WITHIN_S = 2.0  # metadata is renewed once a minute


@dataclass
class Moved:
    """A broker that leads nothing until it is asked for metadata again."""

    topic: str
    consumer: TableConsumer
    asked: int = 0
    known: bool = True

    def answer(self, request: Any, context: Any) -> Answer | None:
        if self.known:
            return None
        self.asked += 1
        topic = ListOffsetsResponse.ListOffsetsTopicResponse
        partition = topic.ListOffsetsPartitionResponse
        return Answer(
            ListOffsetsResponse(
                version=context.api_version,
                throttle_time_ms=0,
                topics=[
                    topic(
                        name=each.name,
                        partitions=[
                            partition(
                                partition_index=it.partition_index,
                                error_code=Code.NOT_LEADER_OR_FOLLOWER,
                                timestamp=-1,
                                offset=-1,
                                leader_epoch=-1,
                            )
                            for it in each.partitions
                        ],
                    )
                    for each in request.topics
                ],
            )
        )

    def refreshed(self, request: Any, context: Any) -> None:
        if self.asked:
            self.known = True


@pytest.fixture
def moved(restarting_broker: Restarting, fresh_name: Callable[[str], str]) -> Iterator[Moved]:
    address, topic = restarting_broker.address, fresh_name("topic")
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}})
    with closing(plain_producer(address)) as producer:
        for number in range(PARTITIONS * RECORDS):
            producer.send(topic, value=b"v", partition=number % PARTITIONS)
    with closing(TableConsumer(ClientConfig(address))) as consumer:
        moved = Moved(topic, consumer)
        assert consumer.partitions(topic) == PARTITIONS
        meddlings = [
            Meddling(restarting_broker.control, "ListOffsets", moved.answer, float("inf")),
            Meddling(restarting_broker.control, "Metadata", moved.refreshed, float("inf")),
        ]
        yield moved
        for meddling in meddlings:
            meddling.cancel()


@pytest.mark.parametrize("question", ["beginning", "end", "stable end"])
def test_a_leader_that_moved_is_looked_for_at_once(moved: Moved, question: str) -> None:
    parts = [(moved.topic, number) for number in range(PARTITIONS)]
    moved.known = False
    began = time.monotonic()
    if question == "beginning":
        found = moved.consumer.beginning_offsets(parts)
    else:
        found = moved.consumer.end_offsets(parts, read_committed=question == "stable end")
    took = time.monotonic() - began
    assert found == dict.fromkeys(parts, 0 if question == "beginning" else RECORDS)
    assert took < WITHIN_S, f"took {took:.1f} s"
    assert 1 <= moved.asked <= 5, f"the old leader was asked {moved.asked} times"
