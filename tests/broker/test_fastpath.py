"""The hand-written encoders against kafka.protocol's, byte for byte, over random responses."""

import random
import uuid

import pytest
from kafka.protocol.consumer import FetchResponse
from kafka.protocol.producer import ProduceResponse

from gokamsg.broker.fastpath import Fetched, Produced, encode_fetch, encode_produce
from gokamsg.broker.log import Aborted

ROUNDS = 30


def number(chance: random.Random, bits: int) -> int:
    return chance.choice([0, -1, 1, -(1 << bits - 1), (1 << bits - 1) - 1, chance.getrandbits(bits - 2)])


def name(chance: random.Random) -> str:
    return chance.choice(["t", "", "é" * 70, "x" * 249, "topic-1"])


@pytest.mark.parametrize("version", range(12))
def test_produce_is_encoded_as_kafka_protocol_does(version: int, seed: int) -> None:
    chance = random.Random(seed)
    topic_class = ProduceResponse.TopicProduceResponse
    for _ in range(ROUNDS):
        topics = [
            (
                name(chance),
                [
                    Produced(
                        number(chance, 32),
                        number(chance, 16),
                        number(chance, 64),
                        number(chance, 64),
                        number(chance, 64),
                        chance.choice([None, "", "why", "w" * 300]),
                    )
                    for _ in range(chance.randrange(4))
                ],
            )
            for _ in range(chance.randrange(4))
        ]
        expected = ProduceResponse(
            version=version,
            responses=[
                topic_class(
                    name=topic,
                    partition_responses=[
                        topic_class.PartitionProduceResponse(
                            index=it.partition,
                            error_code=it.error,
                            base_offset=it.base_offset,
                            log_append_time_ms=it.append_time_ms,
                            log_start_offset=it.log_start_offset,
                            record_errors=[],
                            error_message=it.message,
                        )
                        for it in partitions
                    ],
                )
                for topic, partitions in topics
            ],
            throttle_time_ms=0,
        ).encode(version=version)
        assert encode_produce(version, topics) == bytes(expected)


@pytest.mark.parametrize("version", range(4, 18))
def test_fetch_is_encoded_as_kafka_protocol_does(version: int, seed: int) -> None:
    chance = random.Random(seed)
    topic_class = FetchResponse.FetchableTopicResponse
    partition_class = topic_class.PartitionData
    for _ in range(ROUNDS):
        error = chance.choice([0, 70]) if version >= 7 else 0
        topics = [
            (
                name(chance),
                uuid.UUID(int=chance.getrandbits(128) | 1),
                [
                    Fetched(
                        number(chance, 32),
                        number(chance, 16),
                        number(chance, 64),
                        number(chance, 64),
                        number(chance, 64),
                        chance.choice([None, [], [Aborted(number(chance, 64), number(chance, 64), 0)] * 130]),
                        [chance.randbytes(chance.choice([1, 60, 20_000])) for _ in range(chance.randrange(3))],
                    )
                    for _ in range(chance.randrange(4))
                ],
            )
            for _ in range(chance.randrange(4))
        ]
        expected = FetchResponse(
            version=version,
            throttle_time_ms=0,
            error_code=error,
            session_id=0,
            responses=[
                topic_class(
                    topic=topic,
                    topic_id=topic_id,
                    partitions=[
                        partition_class(
                            partition_index=it.partition,
                            error_code=it.error,
                            high_watermark=it.high_watermark,
                            last_stable_offset=it.last_stable_offset,
                            log_start_offset=it.log_start_offset,
                            aborted_transactions=None
                            if it.aborted is None
                            else [
                                partition_class.AbortedTransaction(
                                    producer_id=entry.producer_id, first_offset=entry.first_offset
                                )
                                for entry in it.aborted
                            ],
                            preferred_read_replica=-1,
                            records=b"".join(it.batches),
                        )
                        for it in partitions
                    ],
                )
                for topic, topic_id, partitions in topics
            ],
        ).encode(version=version)
        assert encode_fetch(version, topics, error=error) == bytes(expected)
