"""Emitters on a real Kafka: each record once, in order, and its promise kept or broken."""

import threading
import time
from collections.abc import Callable

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.codec import Int64, String
from gokamsg.engine.emitter import Emitter, RecordPosition
from gokamsg.engine.hashing import partition_of
from gokamsg.errors import BrokerUnavailableError, CodecError, GokamsgError, TopicError
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster, KafkaServer
from tests.plain_clients import plain_consumer

PARTITIONS = 4


@pytest.fixture
def topic(kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]) -> str:
    name = fresh_name("topic")
    kafka_cluster.create_topics({name: {"num_partitions": PARTITIONS}})
    return name


def stored(cluster: KafkaCluster, topic: str) -> list[ConsumerRecord]:
    reader = plain_consumer(cluster.address, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        reader.assign(parts)
        reader.seek_to_beginning(*parts)
        ends = reader.end_offsets(parts)
        records: list[ConsumerRecord] = []

        def read_all() -> bool:
            records.extend(record for found in reader.poll(timeout_ms=200).values() for record in found)
            return all(reader.position(part) >= ends[part] for part in parts)

        eventually("the topic is read", read_all)
        return records
    finally:
        reader.close()


@pytest.mark.goka(
    "emitter: emit", "emitter: emit_sync", "emitter: headers and default headers", "null values are tombstones"
)
def test_a_record_lies_where_the_promise_says(kafka_cluster: KafkaCluster, topic: str) -> None:
    emitter = Emitter(ClientConfig(kafka_cluster.address), topic, String(), default_headers={"from": b"test"})
    position = emitter.emit_sync("Älva", "hello", {"trace": b"1", "none": None})
    assert position == RecordPosition(topic, partition_of("Älva".encode(), PARTITIONS), 0)
    emitter.emit_sync("Älva", None)
    emitter.finish()
    first, second = stored(kafka_cluster, topic)
    assert (first.key, first.value, first.partition, first.offset) == (
        "Älva".encode(),
        b"hello",
        *position_of(position),
    )
    assert first.headers == [("from", b"test"), ("trace", b"1"), ("none", None)]
    assert abs(first.timestamp / 1000 - time.time()) < 60
    assert (second.value, second.headers) == (None, [("from", b"test")])


def position_of(position: RecordPosition) -> tuple[int, int]:
    return position.partition, position.offset


@pytest.mark.goka("emitter: emit", "emitter: promise")
def test_many_records_from_many_threads_arrive_once_and_in_order(kafka_cluster: KafkaCluster, topic: str) -> None:
    emitter = Emitter(ClientConfig(kafka_cluster.address), topic, Int64())
    positions: dict[str, list[RecordPosition]] = {}

    def work(key: str) -> None:
        promises = [emitter.emit(key, number) for number in range(2000)]
        positions[key] = [promise.result(30) for promise in promises]

    keys = [f"key-{number}" for number in range(8)]
    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    emitter.finish()
    found: dict[str, list[tuple[int, int, int]]] = {key: [] for key in keys}
    for record in stored(kafka_cluster, topic):
        found[record.key.decode()].append((int(record.value), record.partition, record.offset))
    assert found == {key: [(number, *position_of(at)) for number, at in enumerate(positions[key])] for key in keys}


@pytest.mark.goka("emitter: promise")
def test_callbacks_are_called_once_before_and_after_the_answer(kafka_cluster: KafkaCluster, topic: str) -> None:
    emitter = Emitter(ClientConfig(kafka_cluster.address), topic, String())
    called: list[tuple[str, Exception | None]] = []
    promise = emitter.emit("k", "v").then(lambda error: called.append(("first", error)))
    promise.result()
    eventually("the first callback", lambda: called)
    promise.then(lambda error: called.append(("second", error)))
    assert called == [("first", None), ("second", None)]
    emitter.finish()


@pytest.mark.goka("emitter: encoding error")
def test_what_cannot_be_sent_is_told(kafka_cluster: KafkaCluster, topic: str, fresh_name: Callable[[str], str]) -> None:
    config = ClientConfig(kafka_cluster.address)
    with pytest.raises(TopicError, match="does not exist"):
        Emitter(config, fresh_name("missing"), String())
    emitter = Emitter(config, topic, String())
    with pytest.raises(CodecError):
        emitter.emit("k", 5)  # type: ignore[arg-type]
    too_large = emitter.emit("k", "x" * 2_000_000)
    with pytest.raises(BrokerUnavailableError, match="was not acknowledged"):
        too_large.result()
    emitter.emit_sync("k", "small")
    emitter.finish()
    with pytest.raises(GokamsgError, match="is finished"):
        emitter.emit("k", "late")
    assert [record.value for record in stored(kafka_cluster, topic)] == [b"small"]


def test_promises_are_kept_over_a_restart_and_waiting_ends_when_nobody_answers(own_cluster: KafkaServer) -> None:
    own_cluster.create_topics({"t": {"num_partitions": PARTITIONS}})
    emitter = Emitter(ClientConfig(own_cluster.address), "t", String())
    emitter.emit_sync("k", "before")
    own_cluster.pause()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match="may be written or not"):
        emitter.emit_sync("k", "unknown", timeout_s=0.5)
    assert time.monotonic() - started < 2
    later = emitter.emit("k", "later")
    own_cluster.resume()
    assert later.result(30).offset == 2
    emitter.finish()
    assert [record.value for record in stored(own_cluster, "t")] == [b"before", b"unknown", b"later"]


@pytest.mark.goka("emitter: finish", "emitter: finish twice", "emitter: emit after finish")
def test_finish_waits_for_all_and_may_be_called_again(kafka_cluster: KafkaCluster, topic: str) -> None:
    emitter = Emitter(ClientConfig(kafka_cluster.address), topic, Int64())
    promises = [emitter.emit(f"k{number}", number) for number in range(500)]
    emitter.finish()
    assert all(promise.done for promise in promises)
    emitter.finish()
    with pytest.raises(GokamsgError, match="is finished"):
        emitter.emit("k", 1)
    assert sorted(int(record.value) for record in stored(kafka_cluster, topic)) == list(range(500))


@pytest.mark.goka("emitter: promise with message", "emitter: hasher")
def test_a_promise_tells_where_the_record_lies(kafka_cluster: KafkaCluster, topic: str) -> None:
    emitter = Emitter(ClientConfig(kafka_cluster.address), topic, Int64(), hasher=lambda key: 3)
    told: list[tuple[RecordPosition | None, Exception | None]] = []
    emitter.emit("k", 1).then_with_message(lambda position, error: told.append((position, error))).result()
    eventually("the callback", lambda: told)
    emitter.emit("k", 2).then_with_message(lambda position, error: told.append((position, error))).result()
    emitter.finish()
    assert told == [(RecordPosition(topic, 3, 0), None), (RecordPosition(topic, 3, 1), None)]
    assert {record.partition for record in stored(kafka_cluster, topic)} == {3}
