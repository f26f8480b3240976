"""The producers on a real Kafka: what is committed is there, what is not is told, and nothing waits for ever."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors

from gokamsg.engine.clients import (
    Assigned,
    ClientConfig,
    GroupConsumer,
    IdempotentProducer,
    Membership,
    TransactionalProducer,
)
from gokamsg.engine.clients.sending import BatchSender
from gokamsg.engine.records import BatchBuilder
from gokamsg.errors import (
    BrokerUnavailableError,
    FencedError,
    GokamsgError,
    OutcomeUnknownError,
    TopicError,
    TransactionAbortedError,
)
from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster, KafkaServer
from tests.plain_clients import plain_consumer

PARTITIONS = 4
Names = Callable[[str], str]


def batch(*values: bytes, key: bytes = b"k") -> BatchBuilder:
    builder = BatchBuilder()
    for value in values:
        builder.append(key, value, int(time.time() * 1000))
    return builder


@pytest.fixture
def topic(kafka_cluster: KafkaCluster, fresh_name: Names) -> str:
    return make_topic(kafka_cluster, fresh_name("topic"))


def make_topic(cluster: KafkaCluster, name: str, **options: object) -> str:
    cluster.create_topics({name: {"num_partitions": PARTITIONS, **options}})
    return name


def config(cluster: KafkaCluster) -> ClientConfig:
    return ClientConfig(cluster.address)


def stored(cluster: KafkaCluster, topic: str, isolation: str = "read_committed") -> list[bytes]:
    """The values in the topic, partition by partition, as plain kafka-python reads them."""
    reader = plain_consumer(cluster.address, isolation_level=isolation, enable_auto_commit=False)
    with closing(reader):
        parts = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        reader.assign(parts)
        reader.seek_to_beginning(*parts)
        ends = reader.end_offsets(parts)
        found: dict[TopicPartition, list[bytes]] = {part: [] for part in parts}

        def read_all() -> bool:
            for part, records in reader.poll(timeout_ms=200).items():
                found[part] += [record.value for record in records]
            return all(reader.position(part) >= ends[part] for part in parts)

        eventually(f"{topic} is read", read_all)
        return [value for part in parts for value in found[part]]


@contextmanager
def producer(cluster: KafkaCluster, transactional_id: str, **settings: int) -> Iterator[TransactionalProducer]:
    made = TransactionalProducer(config(cluster), transactional_id=transactional_id, **settings)
    try:
        made.init(20)
        yield made
    finally:
        made.close(0.0)


@contextmanager
def member(cluster: KafkaCluster, group: str, topic: str) -> Iterator[tuple[GroupConsumer, Membership]]:
    consumer = GroupConsumer(config(cluster), group=group, topics=[topic])
    consumer.join_as("one")
    try:

        def assigned() -> Membership | None:
            consumer.poll(0.1)
            return next((event.membership for event in consumer.events() if isinstance(event, Assigned)), None)

        yield consumer, eventually("the group has settled", assigned)
    finally:
        consumer.close()


def test_commits_records_and_offsets_together(kafka_cluster: KafkaCluster, topic: str, fresh_name: Names) -> None:
    group = fresh_name("group")
    with member(kafka_cluster, group, topic) as (consumer, membership), producer(kafka_cluster, group) as txn:
        for turn in range(3):
            txn.begin()
            txn.send_many([(topic, 0, batch(b"a%d" % turn, b"b%d" % turn)), (topic, 1, batch(b"c%d" % turn))])
            txn.send(topic, 0, batch(b"d%d" % turn))
            written = txn.commit({(topic, 0): turn + 1, (topic, 3): 10}, membership, 10)
            assert written == {(topic, 0): 4 * turn + 3, (topic, 1): 2 * turn + 1}  # a marker follows each turn
        assert consumer.committed([(topic, 0), (topic, 3), (topic, 1)]) == {
            (topic, 0): 3,
            (topic, 3): 10,
            (topic, 1): None,
        }
    assert stored(kafka_cluster, topic) == [
        *(v % n for n in range(3) for v in (b"a%d", b"b%d", b"d%d")),
        *(b"c%d" % n for n in range(3)),
    ]


def test_an_aborted_transaction_leaves_nothing(kafka_cluster: KafkaCluster, topic: str, fresh_name: Names) -> None:
    with producer(kafka_cluster, fresh_name("id")) as txn:
        txn.begin()
        txn.send(topic, 0, batch(b"dropped"))
        txn.abort(10)
        txn.begin()
        txn.abort(10)  # with nothing sent
        txn.begin()
        txn.commit({}, None, 10)  # the same
        txn.begin()
        txn.send(topic, 0, batch(b"kept"))
        txn.commit({}, None, 10)
    assert stored(kafka_cluster, topic) == [b"kept"]


def test_offsets_of_a_member_that_has_been_overtaken_are_refused(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """The membership is bound to the transaction: what the group is like at the commit does not matter.

    The refused offsets are gone with their transaction. They used to be committed with the next one, and sent a
    partition that another member had by then back to where this one had left it: its messages were handled twice.
    """
    group = fresh_name("group")
    with member(kafka_cluster, group, topic) as (consumer, membership), producer(kafka_cluster, group) as txn:
        stale = Membership(group, membership.generation_id - 1, membership.member_id, membership.instance_id)
        txn.begin()
        txn.send(topic, 0, batch(b"dropped"))
        with pytest.raises(TransactionAbortedError, match="IllegalGeneration"):
            txn.commit({(topic, 0): 5, (topic, 2): 7}, stale, 10)
        txn.abort(10)
        txn.begin()
        txn.send(topic, 0, batch(b"kept"))
        txn.commit({(topic, 0): 1}, membership, 10)
        assert consumer.committed([(topic, 0), (topic, 2)]) == {(topic, 0): 1, (topic, 2): None}
    assert stored(kafka_cluster, topic) == [b"kept"]


def test_a_batch_that_is_too_large_aborts(kafka_cluster: KafkaCluster, fresh_name: Names) -> None:
    topic = make_topic(kafka_cluster, fresh_name("small"), configs={"max.message.bytes": "2000"})
    with producer(kafka_cluster, fresh_name("id")) as txn:
        txn.begin()
        txn.send(topic, 1, batch(b"small"))
        txn.send(topic, 0, batch(b"x" * 1500, b"x" * 1500))
        with pytest.raises(TransactionAbortedError, match=f"2 records for '{topic}' partition 0 were refused"):
            txn.commit({}, None, 10)
        txn.abort(10)
        txn.begin()
        txn.send(topic, 0, batch(b"x"))
        txn.commit({}, None, 10)
    assert stored(kafka_cluster, topic) == [b"x"]


@pytest.mark.parametrize("moment", ["before send", "before commit"])
def test_an_owner_that_was_replaced_can_write_nothing_more(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names, moment: str
) -> None:
    name = fresh_name("id")
    with producer(kafka_cluster, name) as old:
        old.begin()
        if moment == "before commit":
            assert old.send(topic, 0, batch(b"old")).wait(10)
        with producer(kafka_cluster, name) as new:
            if moment == "before send":
                old.send(topic, 0, batch(b"old"))
            with pytest.raises((FencedError, OutcomeUnknownError)):
                old.commit({}, None, 10)
            with pytest.raises(GokamsgError):
                old.abort(5)
            with pytest.raises(GokamsgError):
                old.begin()
            # The old one has not taken the id back.
            new.begin()
            new.send(topic, 0, batch(b"new"))
            new.commit({}, None, 10)
    assert stored(kafka_cluster, topic) == [b"new"]


def test_an_owner_that_was_replaced_between_two_sends_does_not_take_the_id_back(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """Told INVALID_PRODUCER_EPOCH for a batch, kafka-python fetches a new epoch, and with it the id, by itself."""
    name = fresh_name("id")
    with producer(kafka_cluster, name) as old:
        old.begin()
        assert old.send(topic, 0, batch(b"old")).wait(10)
        with producer(kafka_cluster, name) as new:
            old.send(topic, 0, batch(b"old"))  # the partition is known: goes straight to its leader
            with pytest.raises(FencedError):
                old.commit({}, None, 10)
            new.begin()
            new.send(topic, 0, batch(b"new"))
            new.commit({}, None, 10)
    assert stored(kafka_cluster, topic) == [b"new"]


def test_a_transaction_that_timed_out_does_not_commit(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    with producer(kafka_cluster, fresh_name("id"), transaction_timeout_ms=1_000) as txn:
        txn.begin()
        assert txn.send(topic, 0, batch(b"late")).wait(10)
        eventually("the broker has ended it", lambda: has_marker(kafka_cluster, topic), timeout_s=15)
        with pytest.raises((FencedError, OutcomeUnknownError, TransactionAbortedError)):
            txn.commit({}, None, 10)
    assert stored(kafka_cluster, topic) == []


def has_marker(cluster: KafkaCluster, topic: str) -> bool:
    with cluster.admin() as admin:
        from kafka.admin import OffsetSpec

        part = TopicPartition(topic, 0)
        return bool(admin.list_partition_offsets({part: OffsetSpec.LATEST})[part].offset == 2)


def test_a_missing_topic_is_named(kafka_cluster: KafkaCluster, fresh_name: Names) -> None:
    with producer(kafka_cluster, fresh_name("id")) as txn, pytest.raises(TopicError, match="gokamsg topics create"):
        txn.partition_count("nowhere")


@pytest.mark.any_broker
def test_topics_that_are_new_to_a_producer_are_looked_for_without_a_pause(
    kafka_cluster: KafkaCluster, fresh_name: Names
) -> None:
    """kafka-python rests for 100 ms before it asks for one more; a worker that starts has some."""
    topics = [make_topic(kafka_cluster, fresh_name("topic")) for _ in range(10)]
    with closing(IdempotentProducer(config(kafka_cluster))) as plain:
        plain.partition_count(topics[0])
        started = time.monotonic()
        assert [plain.partition_count(topic) for topic in topics[1:]] == [PARTITIONS] * 9
        assert time.monotonic() - started < 0.6, "9 pauses take 0.9 s"


def test_the_idempotent_producer_tells_what_was_written(kafka_cluster: KafkaCluster, topic: str) -> None:
    with closing(IdempotentProducer(config(kafka_cluster))) as plain:
        assert plain.partition_count(topic) == PARTITIONS
        handle = plain.send(topic, 0, batch(b"a", b"b"))
        plain.send(topic, 0, batch(b"c"))
        plain.send(topic, 2, batch(b"d"))
        assert plain.flush(10) == {(topic, 0): 3, (topic, 2): 1}
        assert (handle.done, handle.error(), handle.base_offset()) == (True, None, 0)
        assert plain.flush(0) == {}
    assert stored(kafka_cluster, topic) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_compressed_batches_are_accepted(kafka_cluster: KafkaCluster, topic: str, codec: int) -> None:
    with closing(IdempotentProducer(config(kafka_cluster), compression=codec)) as plain:
        plain.send(topic, 0, batch(*(b"value" * 100 for _ in range(100))))
        assert plain.flush(10) == {(topic, 0): 100}
    assert stored(kafka_cluster, topic) == [b"value" * 100] * 100


@pytest.mark.any_broker
def test_nothing_waits_for_ever_for_a_broker_that_stands_still(own_cluster: KafkaServer) -> None:
    """The connection stays open and nobody answers: the worst kind of being away."""
    topic = make_topic(own_cluster, "t")
    plain = IdempotentProducer(config(own_cluster))
    with closing(plain), producer(own_cluster, "before") as before, producer(own_cluster, "between") as between:
        plain.send(topic, 0, batch(b"x"))
        plain.flush(10)
        assert before.partition_count(topic) == PARTITIONS
        between.begin()
        assert between.send(topic, 0, batch(b"x")).wait(10)
        own_cluster.pause()
        try:
            before.begin()
            before.send(topic, 1, batch(b"x"))
            for call, error in (
                (lambda: before.commit({}, None, 1), TransactionAbortedError),
                (lambda: between.commit({}, None, 1), OutcomeUnknownError),
                (lambda: before.abort(1), OutcomeUnknownError),
                (lambda: plain.send(topic, 0, batch(b"y")) and plain.flush(1), BrokerUnavailableError),
                (lambda: TransactionalProducer(config(own_cluster), transactional_id="x"), BrokerUnavailableError),
            ):
                started = time.monotonic()
                with pytest.raises(error):
                    call()
                assert time.monotonic() - started < 5.5
        finally:
            own_cluster.resume()


def test_batches_that_were_not_acknowledged_in_time_do_not_end_their_sender(tmp_path: Path) -> None:
    """It used to give up its producer id and to ask for no other one: the service took no message any more until it was
    started again."""
    cluster = EmbeddedServer(tmp_path)
    cluster.start()
    topic = make_topic(cluster, "t")
    patient = ClientConfig(cluster.address, request_timeout_ms=1_000)
    sender = BatchSender(patient, delivery_timeout_ms=2_500, enable_idempotence=True)
    try:
        assert all(sender.put(topic, number, batch(b"before")).wait(10) for number in range(PARTITIONS))
        cluster.pause()
        try:
            late = [sender.put(topic, number, batch(b"late")) for number in range(PARTITIONS)]
            eventually("one has waited too long", lambda: any(sent.done for sent in late))
        finally:
            cluster.resume()
        assert all(sent.wait(10) for sent in late)
        assert kafka_errors.KafkaTimeoutError in {type(sent.error()) for sent in late}
        after = [sender.put(topic, number, batch(b"after")) for number in range(PARTITIONS)]
        assert [sent.wait(10) and sent.error() for sent in after] == [None] * PARTITIONS
    finally:
        sender.shut(1.0)
        cluster.close()


def test_a_commit_gets_through_the_restart_of_the_broker(own_cluster: KafkaServer) -> None:
    """Every step of a transaction is asked again while the broker is killed and started anew.

    kafka-python drops a request when the connection to the coordinator is refused; the next step then waits in vain.
    """
    topic = make_topic(own_cluster, "t")
    with producer(own_cluster, "id", transaction_timeout_ms=60_000) as txn:
        assert txn.partition_count(topic) == PARTITIONS
        for turn in range(3):
            txn.begin()
            if turn == 1:
                assert txn.send(topic, 0, batch(b"first")).wait(10)
            own_cluster.kill()
            txn.send(topic, 0, batch(b"%d" % turn))
            eventually("it has lost its broker", lambda: not txn.connected())
            own_cluster.start()
            txn.commit({}, None, 60)
    assert stored(own_cluster, topic) == [b"0", b"first", b"1", b"2"]
