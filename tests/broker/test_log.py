"""One partition's log: what readers see, and when; and that a restart changes none of it."""

from typing import Any

import pytest

from gokamsg.broker.batch import read_header
from gokamsg.broker.log import SNAPSHOT_BATCHES, PartitionLog
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.state import Broker
from tests.broker.conftest import StartBroker
from tests.broker.raw_client import RawClient, make_batch
from tests.broker.test_api_produce_fetch import create, fetch

PID = 500


async def append(broker: Broker, batch: bytes, *, topic: str = "t") -> int:
    """Append past the coordinator's checks; the offset."""
    log = broker.log(topic, 0)
    assert log is not None
    unit = broker.store.unit()
    staged = log.stage(unit, batch, read_header(batch))
    await broker.store.commit(unit)
    return staged.base_offset


async def end(broker: Broker, *, commit: bool, producer_id: int = PID, epoch: int = 0) -> int:
    """Write a transaction's marker; its offset."""
    log = broker.log("t", 0)
    assert log is not None
    unit = broker.store.unit()
    staged = log.stage_marker(unit, producer_id, epoch, commit=commit)
    await broker.store.commit(unit)
    return staged.base_offset


def txn_batch(sequence: int, count: int = 1, *, producer_id: int = PID) -> bytes:
    pairs: list[tuple[bytes | None, bytes | None]] = [(b"k%d" % index, b"v") for index in range(count)]
    return make_batch(pairs, producer_id=producer_id, epoch=0, sequence=sequence, transactional=True)


def the_log(broker: Broker) -> PartitionLog:
    log = broker.log("t", 0)
    assert log is not None
    return log


def state(broker: Broker) -> dict[str, Any]:
    """Everything of a log that must survive a restart."""
    log = the_log(broker)
    return {
        "start": log.log_start_offset,
        "high watermark": log.high_watermark,
        "last stable": log.last_stable_offset,
        "size": log.size_bytes,
        "aborted": list(log.aborted),
        "producers": log.producers.snapshot(),
    }


def test_committed_readers_stop_at_an_open_transaction(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch([(b"k", b"v")]))
        broker.run(lambda it: append(it, txn_batch(0, 2)))
        client.produce("t", 0, make_batch([(b"k", b"v")]))
        part = fetch(client, "t", 0, committed=True)
        assert (part.high_watermark, part.last_stable_offset) == (4, 1)
        assert read_header(bytes(part.records)).length + 12 == len(bytes(part.records))  # the first batch alone
        assert not bytes(fetch(client, "t", 1, committed=True).records or b"")
        assert bytes(fetch(client, "t", 1).records)
        broker.run(lambda it: end(it, commit=True))
        part = fetch(client, "t", 1, committed=True)
        assert (part.last_stable_offset, part.aborted_transactions) == (5, [])


def test_waiting_committed_reader_wakes_at_the_marker(broker: RunningBroker) -> None:
    from kafka.protocol.consumer import FetchResponse

    from tests.broker.test_api_produce_fetch import fetch_request

    with RawClient(broker.address) as client:
        create(client, "t")
        broker.run(lambda it: append(it, txn_batch(0)))
        number = client.send(fetch_request("t", {0: 0}, max_wait_ms=10_000, committed=True), 12)
        broker.run(lambda it: end(it, commit=True))
        answer = client.receive(FetchResponse, 12, number)
    assert bytes(answer.responses[0].partitions[0].records)


def test_aborted_transactions_are_told_to_committed_readers(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        broker.run(lambda it: append(it, txn_batch(0)))  # 0
        broker.run(lambda it: end(it, commit=False))  # 1
        broker.run(lambda it: append(it, txn_batch(1)))  # 2
        broker.run(lambda it: end(it, commit=True))  # 3
        broker.run(lambda it: append(it, txn_batch(2)))  # 4
        broker.run(lambda it: end(it, commit=False))  # 5

        def told(offset: int) -> list[tuple[int, int]]:
            part = fetch(client, "t", offset, committed=True)
            return [(entry.producer_id, entry.first_offset) for entry in part.aborted_transactions]

        assert told(0) == [(PID, 0), (PID, 4)]
        assert told(1) == [(PID, 0), (PID, 4)]
        assert told(2) == [(PID, 4)]
        assert told(6) == []
        assert fetch(client, "t", 0).aborted_transactions is None


def test_last_stable_offset_moves_only_when_the_marker_is_durable(broker: RunningBroker) -> None:
    async def stage_and_look(it: Broker) -> tuple[int, int, int]:
        log = the_log(it)
        unit = it.store.unit()
        log.stage_marker(unit, PID, 0, commit=False)
        staged = log.last_stable_offset
        future = it.store.commit(unit)
        committing = log.last_stable_offset
        await future
        return staged, committing, log.last_stable_offset

    with RawClient(broker.address) as client:
        create(client, "t")
    broker.run(lambda it: append(it, txn_batch(0)))
    assert broker.run(stage_and_look) == (0, 0, 2)


def test_high_watermark_moves_only_when_the_batch_is_durable(broker: RunningBroker) -> None:
    async def stage_and_look(it: Broker) -> tuple[int, int, int]:
        log = the_log(it)
        unit = it.store.unit()
        batch = make_batch([(b"k", b"v")])
        log.stage(unit, batch, read_header(batch))
        staged = log.high_watermark
        await it.store.commit(unit)
        return staged, log.high_watermark, log.end_offset

    with RawClient(broker.address) as client:
        create(client, "t")
    assert broker.run(stage_and_look) == (0, 1, 1)


@pytest.mark.parametrize("snapshot_first", [False, True], ids=["replayed", "from a snapshot and replayed"])
def test_restart_brings_back_offsets_windows_and_open_transactions(start: StartBroker, snapshot_first: bool) -> None:
    """Retries after a restart must find their sequence window, or they duplicate."""

    async def snapshot(it: Broker) -> None:
        unit = it.store.unit()
        the_log(it).stage_snapshot(unit)
        await it.store.commit(unit)

    async def forget_snapshots(it: Broker) -> None:
        unit = it.store.unit()
        unit.delete("log", str(the_log(it).number))
        await it.store.commit(unit)
        the_log(it).snapshot_offset = the_log(it).end_offset  # stop() has nothing to store

    first = start()
    with RawClient(first.address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch([(b"k", b"v")] * 3, producer_id=7, epoch=2, sequence=0, timestamp=5))
        first.run(lambda it: append(it, txn_batch(0, 2)))
        first.run(lambda it: end(it, commit=False))
        if snapshot_first:
            first.run(snapshot)
        client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=2, sequence=3, timestamp=6))
        first.run(lambda it: append(it, txn_batch(2, 2)))
    before = first.call(state)
    if snapshot_first:
        first.call(lambda it: setattr(the_log(it), "snapshot_offset", the_log(it).end_offset))
    else:
        first.run(forget_snapshots)
    first.stop()

    second = start()
    after = second.call(state)
    assert before["last stable"] == 7
    for producers in (before["producers"], after["producers"]):
        for producer in producers:
            producer.coordinator_epoch = 0  # not stored with the batch
    assert after == before
    with RawClient(second.address) as client:
        again = client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=2, sequence=3))
        assert (again.error_code, again.base_offset) == (0, 6)
        gap = client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=2, sequence=9))
        assert gap.error_code == 45
        assert client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=2, sequence=4)).base_offset == 9


def test_a_start_without_a_clean_stop_has_few_batches_to_read(start: StartBroker) -> None:
    """However long ago the last upkeep was: a log stores its state after so many batches."""

    async def fill(it: Broker) -> None:
        for first_sequence in range(0, SNAPSHOT_BATCHES + 100, 100):
            unit = it.store.unit()
            for sequence in range(first_sequence, first_sequence + 100):
                batch = make_batch([(b"k", b"v")], producer_id=7, epoch=0, sequence=sequence)
                the_log(it).stage(unit, batch, read_header(batch))
            await it.store.commit(unit)
        the_log(it).snapshot_offset = the_log(it).end_offset  # stop() has nothing to store

    first = start()
    with RawClient(first.address) as client:
        create(client, "t")
    first.run(lambda it: append(it, txn_batch(0)))
    first.run(fill)
    before = first.call(state)
    first.stop()
    second = start()
    assert second.call(lambda it: the_log(it).snapshot_offset) == SNAPSHOT_BATCHES
    assert second.call(state) == before
    assert before["high watermark"] == SNAPSHOT_BATCHES + 101
    assert before["last stable"] == 0


def test_clean_stop_leaves_nothing_to_replay(start: StartBroker) -> None:
    first = start()
    with RawClient(first.address) as client:
        create(client, "t")
        for _ in range(5):
            client.produce("t", 0, make_batch([(b"k", b"v")]))
    before = first.call(state)
    first.stop()
    second = start()
    assert second.call(state) == before
    assert second.call(lambda it: the_log(it).snapshot_offset) == 5


def test_topics_configs_ids_and_cluster_id_survive_a_restart(start: StartBroker) -> None:
    first = start()
    with RawClient(first.address) as client:
        topic_id = create(client, "t", partitions=3, retention_ms="1234")
        cluster_id = first.call(lambda it: it.cluster_id)
    first.stop()
    second = start()
    topic = second.call(lambda it: it.topics.get("t"))
    assert topic is not None
    assert (topic.id, len(topic.partitions), topic.config.retention_ms) == (topic_id, 3, 1234)
    assert second.call(lambda it: it.cluster_id) == cluster_id
