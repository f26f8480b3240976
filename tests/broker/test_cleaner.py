"""Retention and compaction: what goes, what stays, and that readers never notice but for what is gone."""

import random

import pytest
from kafka import KafkaConsumer, TopicPartition

from gokamsg.broker import compaction, retention
from gokamsg.broker.batch import HEADER_BYTES, read_header, seal
from gokamsg.broker.cleaner import Cleaner
from gokamsg.broker.compression import compress
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.state import Broker
from tests.broker.conftest import StartBroker
from tests.broker.raw_client import RawClient, make_batch
from tests.broker.test_api_produce_fetch import create, fetch
from tests.broker.test_log import PID, append, end, state, the_log

DAY = 24 * 3600 * 1000
NOW = 1_700_000_000_000


def rows(broker: Broker) -> list[tuple[int, int]]:
    """Base and last offset of every stored batch of the partition."""
    log = the_log(broker)
    reader = broker.store.reader()
    try:
        found = reader.execute(
            "SELECT id, last_offset FROM batches WHERE id >= ? AND id < ? ORDER BY id",
            (log.row_id(0), log.row_id((1 << 40) - 1)),
        ).fetchall()
    finally:
        reader.close()
    return [(row_id & (1 << 40) - 1, last) for row_id, last in found]


def keep(broker: RunningBroker, now_ms: int = NOW) -> None:
    """Enforce retention on partition 0 of topic t, and delete the rows that are below the start."""

    async def work(it: Broker) -> None:
        topic = it.topics.get("t")
        assert topic is not None
        await retention.enforce(it, topic.partitions[0], topic.config, now_ms)
        await retention.sweep(it, topic.partitions[0])

    broker.run(work)


def clean(broker: RunningBroker, now_ms: int = NOW, *, force: bool = True) -> bool:
    """Run a compaction pass over partition 0 of topic t."""

    async def work(it: Broker) -> bool:
        topic = it.topics.get("t")
        assert topic is not None
        return await compaction.compact(it, topic.partitions[0], topic.config, now_ms, force=force)

    return broker.run(work)


def read_all(address: str, *, committed: bool = False) -> list[tuple[int, bytes | None, bytes | None]]:
    """Offset, key and value of every record a real consumer sees from the beginning to the end."""
    consumer = KafkaConsumer(
        bootstrap_servers=address,
        isolation_level="read_committed" if committed else "read_uncommitted",
        enable_auto_commit=False,
    )
    try:
        partition = TopicPartition("t", 0)
        consumer.assign([partition])
        end_offset = consumer.end_offsets([partition])[partition]
        consumer.seek_to_beginning(partition)
        seen = []
        while consumer.position(partition) < end_offset:
            for batch in consumer.poll(timeout_ms=500).values():
                seen += [(record.offset, record.key, record.value) for record in batch]
        return seen
    finally:
        consumer.close()


# ---- retention


def test_old_batches_go_by_time(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", retention_ms="1000")
        for age in (5000, 4000, 500, 100):
            client.produce("t", 0, make_batch([(b"k", b"v")] * 2, timestamp=NOW - age))
        keep(broker)
        assert fetch(client, "t", 4).log_start_offset == 4
        assert fetch(client, "t", 0).error_code == 1
        assert broker.call(rows) == [(4, 5), (6, 7)]
        keep(broker, NOW + DAY)  # everything is old: the log is empty, but its end stays
        assert broker.call(rows) == []
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).base_offset == 8


def test_old_batches_go_by_size(broker: RunningBroker) -> None:
    batch = make_batch([(b"k", b"x" * 100)])
    with RawClient(broker.address) as client:
        create(client, "t", retention_ms="-1", retention_bytes=str(3 * len(batch)))
        for _ in range(10):
            client.produce("t", 0, batch)
    keep(broker)
    assert broker.call(rows) == [(7, 7), (8, 8), (9, 9)]
    assert broker.call(lambda it: the_log(it).size_bytes) == 3 * len(batch)


def test_nothing_goes_without_limits_and_nothing_from_an_open_transaction_on(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t", retention_ms="1000")
        client.produce("t", 0, make_batch([(b"k", b"v")], timestamp=1))
        broker.run(
            lambda it: append(
                it, make_batch([(b"k", b"v")], timestamp=1, producer_id=PID, epoch=0, sequence=0, transactional=True)
            )
        )
        client.produce("t", 0, make_batch([(b"k", b"v")], timestamp=1))
    keep(broker)
    assert broker.call(rows) == [(1, 1), (2, 2)]


def test_retention_survives_a_restart(start: StartBroker) -> None:
    first = start()
    with RawClient(first.address) as client:
        create(client, "t", retention_ms="1000")
        for sequence in range(4):
            batch = make_batch([(b"k", b"v")], timestamp=1, producer_id=7, epoch=0, sequence=sequence)
            client.produce("t", 0, batch)
    keep(first)
    before = first.call(state)
    first.stop()
    second = start()
    assert second.call(state) == before
    assert before["start"] == before["high watermark"] == 4
    with RawClient(second.address) as client:  # the window outlives the batches
        again = client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=0, sequence=3))
        assert (again.error_code, again.base_offset) == (0, 3)


def test_rows_of_deleted_topics_are_freed(start: StartBroker) -> None:
    from kafka.protocol.admin import DeleteTopicsRequest, DeleteTopicsResponse

    broker = start(wal_checkpoint_bytes=1)
    with RawClient(broker.address) as client:
        create(client, "t", partitions=2)
        for _ in range(20):
            client.produce("t", 0, make_batch([(b"k", random.randbytes(900_000))]))
        client.ask(DeleteTopicsRequest(topic_names=["t"], timeout_ms=1000), DeleteTopicsResponse, 5)
    path = broker.call(lambda it: it.store.path)
    size_before = path.stat().st_size

    async def tidy(it: Broker) -> tuple[int, set[int]]:
        await Cleaner(it).round()
        await it.store.barrier()
        reader = it.store.reader()
        left = reader.execute("SELECT count(*) FROM batches").fetchone()[0]
        reader.close()
        return left, it.topics.doomed

    assert broker.run(tidy) == (0, set())
    broker.stop()
    assert path.stat().st_size < size_before / 2


# ---- compaction


def compacted_topic(client: RawClient, **configs: str) -> None:
    create(client, "t", cleanup_policy="compact", **configs)


def test_last_record_of_each_key_stays_at_its_offset(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client)
        client.produce("t", 0, make_batch([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]))
        client.produce("t", 0, make_batch([(b"a", b"2"), (b"b", b"2")]))
        client.produce("t", 0, make_batch([(b"a", b"3")]))
        client.produce("t", 0, make_batch([(b"z", b"end")]))
    assert clean(broker)
    assert read_all(broker.address) == [(2, b"c", b"1"), (4, b"b", b"2"), (5, b"a", b"3"), (6, b"z", b"end")]
    assert broker.call(rows) == [(0, 2), (3, 4), (5, 5), (6, 6)]


def test_the_last_batch_stays_so_that_readers_reach_the_end(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client)
        client.produce("t", 0, make_batch([(b"a", b"1")]))
        client.produce("t", 0, make_batch([(b"a", b"2"), (b"a", b"3")]))
    clean(broker)
    assert read_all(broker.address) == [(0, b"a", b"1"), (1, b"a", b"2"), (2, b"a", b"3")]


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_stay_compressed_and_readable(broker: RunningBroker, codec: int) -> None:
    def packed(pairs: list[tuple[bytes | None, bytes | None]]) -> bytes:
        plain = make_batch(pairs)
        header = read_header(plain)
        return seal(header._replace(attributes=codec), compress(codec, plain[HEADER_BYTES:]))

    with RawClient(broker.address) as client:
        compacted_topic(client)
        assert client.produce("t", 0, packed([(b"a", b"1"), (b"b", b"1" * 200)])).error_code == 0
        client.produce("t", 0, packed([(b"a", b"2")]))
        client.produce("t", 0, packed([(b"z", b"")]))
        clean(broker)
        batch = bytes(fetch(client, "t", 0).records)
    assert read_header(batch).compression == codec
    assert read_all(broker.address) == [(1, b"b", b"1" * 200), (2, b"a", b"2"), (3, b"z", b"")]


def test_tombstones_go_after_their_time(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client, delete_retention_ms="1000")
        client.produce("t", 0, make_batch([(b"a", b"1"), (b"b", b"1")]))
        client.produce("t", 0, make_batch([(b"a", None)]))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    clean(broker)
    assert [row[1:] for row in read_all(broker.address)] == [(b"b", b"1"), (b"a", None), (b"z", b"")]
    assert not clean(broker, NOW + 999, force=False)
    assert clean(broker, NOW + 1000, force=False)  # nothing is dirty, but a tombstone's time has come
    assert [row[1:] for row in read_all(broker.address)] == [(b"b", b"1"), (b"z", b"")]


def test_tombstones_time_is_known_after_a_restart(start: StartBroker) -> None:
    first = start()
    with RawClient(first.address) as client:
        compacted_topic(client, delete_retention_ms="1000")
        client.produce("t", 0, make_batch([(b"a", b"1")]))
        client.produce("t", 0, make_batch([(b"a", None)]))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    clean(first)
    first.stop()
    second = start()
    assert not clean(second, NOW + 999, force=False)
    assert clean(second, NOW + 1000, force=False)
    assert [row[1:] for row in read_all(second.address)] == [(b"z", b"")]


def test_nothing_at_or_above_an_open_transaction_is_touched(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client)
        for _ in range(3):
            client.produce("t", 0, make_batch([(b"a", b"1")]))
        broker.run(
            lambda it: append(
                it, make_batch([(b"a", b"open")], producer_id=PID, epoch=0, sequence=0, transactional=True)
            )
        )
        client.produce("t", 0, make_batch([(b"a", b"after")]))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    clean(broker)
    assert [row[0] for row in read_all(broker.address)] == [1, 2, 3, 4, 5]  # 2 is the last batch below: it stays


def test_aborted_data_goes_and_then_marker_and_entry_together(broker: RunningBroker) -> None:
    """With the entry alone, readers would discard what the same producer committed later."""

    def batch(value: bytes, sequence: int) -> bytes:
        return make_batch([(b"a", value)], producer_id=PID, epoch=0, sequence=sequence, transactional=True)

    with RawClient(broker.address) as client:
        compacted_topic(client, delete_retention_ms="1000")
        client.produce("t", 0, make_batch([(b"a", b"before")]))  # 0
        broker.run(lambda it: append(it, batch(b"aborted", 0)))  # 1
        broker.run(lambda it: end(it, commit=False))  # 2
        broker.run(lambda it: append(it, batch(b"committed", 1)))  # 3
        broker.run(lambda it: end(it, commit=True))  # 4
        client.produce("t", 0, make_batch([(b"z", b"")]))  # 5
    expected = [(3, b"a", b"committed"), (5, b"z", b"")]
    clean(broker)
    assert broker.call(rows) == [(2, 2), (3, 3), (4, 4), (5, 5)]
    assert len(broker.call(state)["aborted"]) == 1
    assert read_all(broker.address, committed=True) == expected
    clean(broker, NOW + 1000)
    assert broker.call(rows) == [(3, 3), (5, 5)]
    assert broker.call(state)["aborted"] == []
    assert read_all(broker.address, committed=True) == expected


def test_an_aborted_record_does_not_replace_an_older_one(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client)
        client.produce("t", 0, make_batch([(b"a", b"kept")]))
        broker.run(
            lambda it: append(
                it, make_batch([(b"a", b"void")], producer_id=PID, epoch=0, sequence=0, transactional=True)
            )
        )
        broker.run(lambda it: end(it, commit=False))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    clean(broker)
    assert [row[1:] for row in read_all(broker.address, committed=True)] == [(b"a", b"kept"), (b"z", b"")]


def test_sequence_windows_outlive_compaction_and_a_restart(start: StartBroker) -> None:
    first = start()
    with RawClient(first.address) as client:
        compacted_topic(client)
        for sequence in range(3):
            batch = make_batch([(b"a", b"%d" % sequence)], producer_id=7, epoch=0, sequence=sequence)
            client.produce("t", 0, batch)
        client.produce("t", 0, make_batch([(b"a", b"end")]))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    clean(first)
    assert first.call(rows) == [(3, 3), (4, 4)]
    first.stop()
    second = start()
    with RawClient(second.address) as client:
        again = client.produce("t", 0, make_batch([(b"a", b"2")], producer_id=7, epoch=0, sequence=2))
        assert (again.error_code, again.base_offset) == (0, 2)


def test_dirty_ratio_and_lag_decide_when(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        compacted_topic(client, min_compaction_lag_ms="60000", min_cleanable_dirty_ratio="0.5")
        for _ in range(4):
            client.produce("t", 0, make_batch([(b"a", b"v")], timestamp=NOW))
    assert not clean(broker, NOW + 1000, force=False)  # too young
    assert clean(broker, NOW + 61_000, force=False)
    assert len(broker.call(rows)) == 2
    assert not clean(broker, NOW + 62_000, force=False)  # clean


def test_a_log_of_many_keys_is_compacted_in_several_passes(start: StartBroker) -> None:
    broker = start(compaction_max_keys=10)
    with RawClient(broker.address) as client:
        compacted_topic(client)
        for version in range(2):
            for number in range(40):
                client.produce("t", 0, make_batch([(b"key-%02d" % number, b"%d" % version)]))
        client.produce("t", 0, make_batch([(b"z", b"")]))
    assert clean(broker)
    assert len(broker.call(rows)) > 70  # ten keys of forty, at most
    for _ in range(10):
        clean(broker)
    assert [row[2] for row in read_all(broker.address)][:-1] == [b"1"] * 40


def test_random_logs_read_the_same_after_compaction(start: StartBroker, seed: int) -> None:
    """Invariants: a committed reader's final value of every key is that of the uncompacted log; offsets never change
    their record; the end is reached; a restart changes nothing."""
    chance = random.Random(seed)
    broker = start(compaction_max_keys=chance.choice([3, 1000]), cache_bytes=chance.choice([0, 2_000, 1 << 20]))
    model: dict[int, tuple[bytes | None, bytes | None]] = {}
    sequences: dict[int, int] = {}
    pending: dict[int, dict[int, tuple[bytes | None, bytes | None]]] = {}
    with RawClient(broker.address) as client:
        compacted_topic(client, delete_retention_ms="1000")
        now = NOW
        for _ in range(120):
            pairs: list[tuple[bytes | None, bytes | None]] = [
                (b"k%d" % chance.randrange(6), chance.choice([b"v%d" % chance.randrange(1000), b"x" * 300, None]))
                for _ in range(chance.randrange(1, 5))
            ]
            what = chance.random()
            producer_id = chance.choice([100, 200])
            if what < 0.4:
                offset = client.produce("t", 0, make_batch(pairs, timestamp=now)).base_offset
                model |= {offset + index: pair for index, pair in enumerate(pairs)}
            elif what < 0.7:
                batch = make_batch(
                    pairs,
                    timestamp=now,
                    producer_id=producer_id,
                    epoch=0,
                    sequence=sequences.get(producer_id, 0),
                    transactional=True,
                )
                sequences[producer_id] = sequences.get(producer_id, 0) + len(pairs)
                offset = broker.run(lambda it, batch=batch: append(it, batch))  # type: ignore[misc]
                written = pending.setdefault(producer_id, {})
                written |= {offset + index: pair for index, pair in enumerate(pairs)}
            elif what < 0.9:
                commit = chance.random() < 0.5
                broker.run(lambda it, p=producer_id, c=commit: end(it, commit=c, producer_id=p))  # type: ignore[misc]
                done = pending.pop(producer_id, {})
                model |= done if commit else {}
            else:
                now += chance.choice([0, 400, 1500])
                clean(broker, now, force=chance.random() < 0.7)
        for producer_id in list(pending):
            broker.run(lambda it, p=producer_id: end(it, commit=False, producer_id=p))  # type: ignore[misc]
        client.produce("t", 0, make_batch([(b"end", b"")]))
    final = {key: value for _, (key, value) in sorted(model.items())} | {b"end": b""}
    for attempt in range(3):
        seen = read_all(broker.address, committed=True)
        assert [row[0] for row in seen] == sorted({row[0] for row in seen})
        assert all(model.get(offset, (key, value)) == (key, value) for offset, key, value in seen)
        values = {key: value for _, key, value in seen}
        wanted = {key: value for key, value in final.items() if value is not None}
        assert {key: value for key, value in values.items() if value is not None} == wanted, f"attempt {attempt}"
        if attempt == 0:
            clean(broker, now + 10_000)
            clean(broker, now + 20_000)
        else:
            broker.stop()
            broker = start()
