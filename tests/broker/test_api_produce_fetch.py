"""Produce and Fetch at every version that is served, over a plain socket."""

import threading
import time
import uuid
from typing import Any

import pytest
from kafka.protocol.admin import CreateTopicsRequest, CreateTopicsResponse
from kafka.protocol.consumer import FetchRequest, FetchResponse

from gokamsg.broker.batch import read_header
from gokamsg.broker.runner import RunningBroker
from tests.broker.raw_client import RawClient, make_batch, produce_request

ONE = [(b"k", b"v")]


def create(client: RawClient, name: str, *, partitions: int = 2, **configs: str) -> uuid.UUID:
    topic = CreateTopicsRequest.CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=1,
        assignments=[],
        configs=[
            CreateTopicsRequest.CreatableTopic.CreatableTopicConfig(name=key.replace("_", "."), value=value)
            for key, value in configs.items()
        ],
    )
    request = CreateTopicsRequest(topics=[topic], timeout_ms=5000, validate_only=False)
    result = client.ask(request, CreateTopicsResponse, 7).topics[0]
    assert result.error_code == 0, result.error_message
    topic_id: uuid.UUID = result.topic_id
    return topic_id


def fetch_request(
    topic: str | uuid.UUID,
    offsets: dict[int, int],
    *,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 20,
    partition_max_bytes: int = 1 << 20,
    committed: bool = False,
    session_id: int = 0,
) -> Any:
    partitions = [
        FetchRequest.FetchTopic.FetchPartition(
            partition=partition,
            current_leader_epoch=-1,
            fetch_offset=offset,
            last_fetched_epoch=-1,
            log_start_offset=-1,
            partition_max_bytes=partition_max_bytes,
        )
        for partition, offset in offsets.items()
    ]
    named = {"topic": topic} if isinstance(topic, str) else {"topic_id": topic}
    return FetchRequest(
        replica_id=-1,
        max_wait_ms=max_wait_ms,
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        isolation_level=1 if committed else 0,
        session_id=session_id,
        session_epoch=0,
        topics=[FetchRequest.FetchTopic(partitions=partitions, **named)],
        forgotten_topics_data=[],
        rack_id="",
    )


def fetch(client: RawClient, topic: str, offset: int, *, partition: int = 0, version: int = 12, **more: Any) -> Any:
    answer = client.ask(fetch_request(topic, {partition: offset}, **more), FetchResponse, version)
    assert answer.error_code == 0
    return answer.responses[0].partitions[0]


@pytest.mark.parametrize("version", range(3, 12))
def test_produced_batch_is_answered_with_its_offset(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 1, make_batch(ONE * 3))
        answer = client.produce("t", 1, make_batch(ONE), version=version)
    assert (answer.index, answer.error_code, answer.base_offset) == (1, 0, 3)
    assert answer.log_append_time_ms == -1
    if version >= 5:
        assert answer.log_start_offset == 0


@pytest.mark.parametrize("version", range(3))
def test_produce_versions_that_are_listed_only_are_refused(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, make_batch(ONE), version=version).error_code == 35
        assert fetch(client, "t", 0).high_watermark == 0


@pytest.mark.parametrize("version", range(4, 18))
def test_fetched_batch_is_the_produced_one(broker: RunningBroker, version: int) -> None:
    sent = make_batch([(b"a", b"1"), (b"b", b"2")])
    with RawClient(broker.address) as client:
        topic_id = create(client, "t")
        client.produce("t", 0, sent)
        named: str | uuid.UUID = topic_id if version >= 13 else "t"
        answer = client.ask(fetch_request(named, {0: 0, 1: 0}), FetchResponse, version)
    topic = answer.responses[0]
    assert (topic.topic_id if version >= 13 else topic.topic) == named
    first, second = topic.partitions
    assert (first.partition_index, first.error_code, first.high_watermark, first.last_stable_offset) == (0, 0, 2, 2)
    assert bytes(first.records)[16:] == sent[16:]
    assert read_header(bytes(first.records)).base_offset == 0
    assert (second.error_code, second.high_watermark, bytes(second.records or b"")) == (0, 0, b"")
    if version >= 7:
        assert (answer.error_code, answer.session_id) == (0, 0)


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (None, 2),
        (b"too short", 2),
        (make_batch(ONE)[:-1] + b"?", 2),  # checksum
        (make_batch(ONE)[:-1], 2),  # cut off
        (make_batch(ONE) * 2, 87),  # two batches
        (make_batch(ONE, attributes=0x20), 87),  # control
        (make_batch(ONE, attributes=0x07), 76),  # unknown codec
        (make_batch(ONE, transactional=True), 87),  # no producer id
        (make_batch(ONE, producer_id=5, epoch=0, sequence=-1), 87),
        (make_batch([(b"k", b"x" * 2_000_000)]), 10),
    ],
)
def test_bad_batch_is_refused_and_stores_nothing(broker: RunningBroker, batch: bytes | None, code: int) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        answer = client.produce("t", 0, batch)
        assert (answer.error_code, answer.base_offset) == (code, -1)
        assert answer.error_message
        assert client.produce("t", 0, make_batch(ONE)).base_offset == 0


def test_record_count_that_does_not_match_is_refused(broker: RunningBroker) -> None:
    from gokamsg.broker.batch import HEADER_BYTES, seal

    batch = make_batch(ONE * 2)
    lying = seal(read_header(batch)._replace(last_offset_delta=9), batch[HEADER_BYTES:])
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, lying).error_code == 87


def test_old_message_format_is_refused(broker: RunningBroker) -> None:
    batch = bytearray(make_batch(ONE))
    batch[16] = 1
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, bytes(batch)).error_code == 43


def test_unknown_topic_and_partition_are_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", partitions=1)
        assert client.produce("nope", 0, make_batch(ONE)).error_code == 3
        assert client.produce("t", 1, make_batch(ONE)).error_code == 3
        assert client.produce("t", -1, make_batch(ONE)).error_code == 3


def test_one_bad_partition_does_not_hold_back_the_others(broker: RunningBroker) -> None:
    from kafka.protocol.producer import ProduceResponse

    with RawClient(broker.address) as client:
        create(client, "t")
        request = produce_request([("t", 0, b"junk" * 20), ("t", 1, make_batch(ONE))])
        parts = client.ask(request, ProduceResponse, 9).responses[0].partition_responses
    assert [part.error_code for part in parts] == [43, 0] or [part.error_code for part in parts] == [2, 0]


def test_invalid_acks_are_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, make_batch(ONE), acks=7).error_code == 21


def test_acks_0_is_stored_and_not_answered(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        client.send(produce_request([("t", 0, make_batch(ONE))], acks=0), 9)
        assert client.produce("t", 0, make_batch(ONE)).base_offset == 1  # the next answer is this request's own


def test_zstd_needs_a_version_that_knows_it(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, make_batch(ONE, attributes=4), version=6).error_code == 76


def test_topic_limit_on_message_size(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", max_message_bytes="200")
        assert client.produce("t", 0, make_batch([(b"k", b"x" * 300)])).error_code == 10
        assert client.produce("t", 0, make_batch([(b"k", b"x" * 30)])).error_code == 0


def test_compacted_topic_needs_keys(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", cleanup_policy="compact")
        answer = client.produce("t", 0, make_batch([(b"k", b"v"), (None, b"v")]))
        assert answer.error_code == 87
        assert "record 1" in answer.error_message
        assert client.produce("t", 0, make_batch(ONE)).error_code == 0


def test_log_append_time_replaces_the_producers(broker: RunningBroker) -> None:
    before = int(time.time() * 1000)
    with RawClient(broker.address) as client:
        create(client, "t", message_timestamp_type="LogAppendTime")
        answer = client.produce("t", 0, make_batch(ONE, timestamp=1000))
        batch = bytes(fetch(client, "t", 0).records)
    header = read_header(batch)
    assert answer.log_append_time_ms == header.max_timestamp
    assert before <= header.max_timestamp <= int(time.time() * 1000)
    assert header.append_time
    from gokamsg.broker.batch import validate

    assert validate(batch, max_bytes=1 << 20).crc == header.crc  # the checksum covers the new time


def test_timestamp_out_of_the_topics_bounds_is_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", message_timestamp_before_max_ms="60000", message_timestamp_after_max_ms="60000")
        now = int(time.time() * 1000)
        assert client.produce("t", 0, make_batch(ONE, timestamp=now - 120_000)).error_code == 32
        assert client.produce("t", 0, make_batch(ONE, timestamp=now + 120_000)).error_code == 32
        assert client.produce("t", 0, make_batch(ONE, timestamp=now)).error_code == 0


def test_batch_sent_twice_is_stored_once(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        first = make_batch(ONE * 2, producer_id=7, epoch=0, sequence=0)
        second = make_batch(ONE, producer_id=7, epoch=0, sequence=2)
        assert client.produce("t", 0, first).base_offset == 0
        assert client.produce("t", 0, second).base_offset == 2
        again = client.produce("t", 0, first)
        assert (again.error_code, again.base_offset) == (0, 0)
        assert fetch(client, "t", 0).high_watermark == 3
        gap = make_batch(ONE, producer_id=7, epoch=0, sequence=9)
        assert client.produce("t", 0, gap).error_code == 45


def test_pipelined_produce_is_answered_in_order(broker: RunningBroker) -> None:
    from kafka.protocol.producer import ProduceResponse

    with RawClient(broker.address) as client:
        create(client, "t")
        ids = [client.send(produce_request([("t", 0, make_batch(ONE))]), 9) for _ in range(200)]
        answers = [client.receive(ProduceResponse, 9, number) for number in ids]
    offsets = [answer.responses[0].partition_responses[0].base_offset for answer in answers]
    assert offsets == list(range(200))


def test_fetch_from_within_a_batch_returns_the_whole_batch(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch(ONE * 5))
        assert read_header(bytes(fetch(client, "t", 3).records)).base_offset == 0


def test_fetch_returns_at_least_one_batch_above_every_limit(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        for _ in range(2):
            client.produce("t", 0, make_batch([(b"k", b"x" * 1000)]))
            client.produce("t", 1, make_batch([(b"k", b"x" * 1000)]))
        request = fetch_request("t", {0: 0, 1: 0}, max_bytes=10, partition_max_bytes=10)
        first, second = client.ask(request, FetchResponse, 12).responses[0].partitions
    assert len(bytes(first.records)) > 1000
    assert read_header(bytes(first.records)).length + 12 == len(bytes(first.records))  # one batch, not two
    assert not bytes(second.records or b"")


def test_fetch_out_of_range_is_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        assert fetch(client, "t", 1).error_code == 1
        assert fetch(client, "t", -1).error_code == 1
        assert fetch(client, "t", 0).error_code == 0


def test_fetch_of_unknown_topic_partition_and_id_is_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        assert fetch(client, "nope", 0).error_code == 3
        assert fetch(client, "t", 0, partition=9).error_code == 3
        answer = client.ask(fetch_request(uuid.uuid4(), {0: 0}), FetchResponse, 13)
        assert answer.responses[0].partitions[0].error_code == 100


def test_fetch_sessions_are_refused(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        answer = client.ask(fetch_request("t", {0: 0}, session_id=5), FetchResponse, 12)
        assert (answer.error_code, answer.session_id) == (70, 0)


def test_fetch_waits_for_a_record(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client, RawClient(broker.address) as producer:
        create(client, "t")
        number = client.send(fetch_request("t", {0: 0}, max_wait_ms=10_000), 12)
        producer.produce("t", 0, make_batch(ONE))
        started = time.monotonic()
        answer = client.receive(FetchResponse, 12, number)
        assert time.monotonic() - started < 5
        assert read_header(bytes(answer.responses[0].partitions[0].records)).record_count == 1


def test_fetch_answers_empty_when_its_time_is_up(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        started = time.monotonic()
        part = fetch(client, "t", 0, max_wait_ms=200)
        assert time.monotonic() - started >= 0.19
        assert not bytes(part.records or b"")


def test_fetch_waits_for_min_bytes(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client, RawClient(broker.address) as producer:
        create(client, "t")
        size = len(make_batch(ONE))
        number = client.send(fetch_request("t", {0: 0}, max_wait_ms=10_000, min_bytes=3 * size), 12)
        for _ in range(3):
            producer.produce("t", 0, make_batch(ONE))
        answer = client.receive(FetchResponse, 12, number)
        assert len(bytes(answer.responses[0].partitions[0].records)) == 3 * size


def test_fetch_that_leaves_out_what_was_given_is_answered_early(broker: RunningBroker) -> None:
    """The client has records of partition 0 in hand and cannot ask for more of them while it waits for partition 1."""
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch(ONE))
        both = client.ask(fetch_request("t", {0: 0, 1: 0}), FetchResponse, 12).responses[0].partitions
        assert [bool(part.records) for part in both] == [True, False]
        started = time.monotonic()
        assert not fetch(client, "t", 0, partition=1, max_wait_ms=30_000).records
        assert time.monotonic() - started < 10


def test_fetch_that_leaves_out_what_was_given_waits_for_the_bytes_it_wants(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch(ONE))
        assert fetch(client, "t", 0).records
        started = time.monotonic()
        assert not fetch(client, "t", 0, partition=1, max_wait_ms=200, min_bytes=2).records
        assert time.monotonic() - started >= 0.19


def test_waiting_fetch_ends_when_its_topic_is_deleted(broker: RunningBroker) -> None:
    from kafka.protocol.admin import DeleteTopicsRequest, DeleteTopicsResponse

    with RawClient(broker.address) as client, RawClient(broker.address) as admin:
        create(admin, "t")
        number = client.send(fetch_request("t", {0: 0}, max_wait_ms=30_000), 12)
        admin.ask(DeleteTopicsRequest(topic_names=["t"], timeout_ms=1000), DeleteTopicsResponse, 5)
        assert client.receive(FetchResponse, 12, number).responses[0].partitions[0].error_code == 3


def test_readers_of_the_file_and_of_the_cache_see_the_same(start: Any) -> None:
    """A cache of a few kilobytes: most of the log has to come from the file, the end of it from memory."""
    broker = start(cache_bytes=4_000)
    batches = [make_batch([(b"k", str(index).encode() * 20)]) for index in range(200)]
    with RawClient(broker.address) as client:
        create(client, "t")
        for batch in batches:
            client.produce("t", 0, batch)
        offset, seen = 0, []
        while offset < 200:
            data = bytes(fetch(client, "t", offset, partition_max_bytes=3_000).records)
            while data:
                header = read_header(data)
                assert header.base_offset == offset
                seen.append(data[16 : header.length + 12])
                data = data[header.length + 12 :]
                offset = header.last_offset + 1
    assert seen == [batch[16:] for batch in batches]


def test_fetch_serves_many_connections_at_once(broker: RunningBroker) -> None:
    with RawClient(broker.address) as admin:
        create(admin, "t")
        results: list[int] = []

        def wait_for_one() -> None:
            with RawClient(broker.address) as client:
                results.append(len(bytes(fetch(client, "t", 0, max_wait_ms=10_000).records)))

        threads = [threading.Thread(target=wait_for_one) for _ in range(20)]
        for thread in threads:
            thread.start()
        admin.produce("t", 0, make_batch(ONE))
        for thread in threads:
            thread.join(10)
    assert results == [len(make_batch(ONE))] * 20


def test_a_batch_that_comes_while_a_fetch_begins_to_wait_is_seen(broker: RunningBroker) -> None:
    """A fetch found nothing, and slept to its end over the batch that came before it was listening."""
    from gokamsg.broker.api.k01_fetch import fetch as handler
    from gokamsg.broker.readahead import ReadAhead
    from gokamsg.broker.registry import RequestContext
    from gokamsg.broker.state import Broker

    async def begin_then_append(it: Broker) -> bytes:
        request = fetch_request("t", {0: 0}, max_wait_ms=5_000)
        waiting = handler(it, request, RequestContext("test", "", 12, 0, ReadAhead()))
        assert not isinstance(waiting, bytes)
        unit = it.store.unit()
        log = it.log("t", 0)
        assert log is not None
        log.stage(unit, make_batch(ONE), read_header(make_batch(ONE)))
        await it.store.commit(unit)
        return await waiting

    with RawClient(broker.address) as client:
        create(client, "t")
    started = time.monotonic()
    assert make_batch(ONE)[16:] in broker.run(begin_then_append)
    assert time.monotonic() - started < 4
