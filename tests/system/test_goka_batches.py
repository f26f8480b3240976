"""What the clients of Goka and of ours leave in a topic, and what the other side makes of it.

Goka's producers send record batches compressed with snappy; ours send batches that belong to transactions. Goka reads
uncommitted. Its views, joins and restores end with the record below the partition's end, which a transaction's marker
is not: they wait there until a record without a transaction follows. A role of ours that is started at-least-once
writes such a record to each partition of its table.
"""

from collections.abc import Iterable

from confluent_kafka import Producer as ConfluentProducer

from gokamsg.engine.clients import ClientConfig, TableConsumer
from gokamsg.engine.records import RecordBatch
from tests.helpers import eventually
from tests.system import chain
from tests.system.goka import Goka, rows
from tests.system.messaging import Messaging

SNAPPY = 2
USERS = tuple(f"user {number}" for number in range(60))


def _stored(address: str, topic: str) -> list[RecordBatch]:
    """The topic's batches as they were sent."""
    consumer = TableConsumer(ClientConfig([address]))
    found: list[RecordBatch] = []
    try:
        ends = consumer.end_offsets([(topic, number) for number in range(chain.PARTITIONS)])
        consumer.set_partitions(dict.fromkeys(ends, 0))

        def read() -> bool:
            for batches in consumer.poll(0.1).values():
                found.extend(batches)
            return all(consumer.position(*partition) >= end for partition, end in ends.items())

        eventually(f"{topic} is read", read, interval_s=0.0)
        return found
    finally:
        consumer.close()


def test_each_reads_the_batches_of_the_other(messaging: Messaging, goka: Goka) -> None:
    """Snappy from Goka's emitter through our filter and collector; what these wrote in transactions, in Goka's view."""
    address = messaging.cluster.address
    chain.make_topics(messaging.cluster)
    goka.emit(address, [("message_sent", user, _said(user, number)) for number in range(5) for user in USERS])
    sent = _stored(address, "message_sent")
    assert {batch.attributes & 7 for batch in sent} == {SNAPPY}
    assert max(batch.count for batch in sent) > 1

    ours = messaging.role("filter", "collector")
    messaging.drained("message_filter", "collector")
    assert ours.terminate() == 0, ours.tail()
    for topic in ("message_received", "collector-table"):
        assert all(batch.is_transactional for batch in _stored(address, topic)), topic
    feeds = {record.key: (record.value or b"").decode() for record in messaging.read("collector-table")}
    assert feeds == {user: _feed(user, range(5)) for user in USERS}

    early = goka.view(messaging, "collector-table", state="early")
    messaging.running(messaging.role("collector", options=["--guarantee", "at-least-once"]), "collector")
    assert rows(early) == feeds

    goka.emit(address, [("message_received", user, _said(user, 5)) for user in USERS])
    messaging.drained("collector")
    now = {record.key: (record.value or b"").decode() for record in messaging.read("collector-table")}
    assert now == {user: _feed(user, range(1, 6)) for user in USERS}
    assert rows(goka.view(messaging, "collector-table", state="late")) == now


def test_goka_sees_what_was_aborted(messaging: Messaging, goka: Goka) -> None:
    """Every partition holds an aborted record and its marker, and no row: ours sees nothing there, Goka the record."""
    chain.make_topics(messaging.cluster)
    producer = ConfluentProducer({"bootstrap.servers": messaging.cluster.address, "transactional.id": "to be aborted"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(chain.PARTITIONS):
        producer.produce("collector-table", b"[]", f"nobody {number}".encode(), partition=number)
    producer.flush(30)
    producer.abort_transaction(30)
    messaging.running(messaging.role("collector", options=["--guarantee", "at-least-once"]), "collector")
    assert rows(goka.view(messaging, "collector-table")) == {f"nobody {n}": "[]" for n in range(chain.PARTITIONS)}
    assert messaging.table("collector-table") == {}


def _feed(user: str, numbers: Iterable[int]) -> str:
    return "[" + ",".join(_said(user, number) for number in numbers) + "]"


def _said(user: str, number: int) -> str:
    return f'{{"From":"{user}","To":"{user}","Content":"{number} hello"}}'
