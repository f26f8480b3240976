"""Groups and transactions as three client libraries use them."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.structs import TopicPartition

from gokamsg.broker.group import State
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.state import Broker
from tests.broker.clients import CLIENTS, ConfluentConsumer, Consumer, FencedError, KafkaPythonConsumer, Producer
from tests.broker.wire_client import WireClient, batch, produce
from tests.helpers import eventually

PARTITIONS = 4

Begin = Callable[[str], Producer]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def topics(address: str) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in ("in", "out")])


class Members:
    """Consumers that are closed with the test, unless they left before."""

    def __init__(self, address: str, consumer: type[Consumer]) -> None:
        self._address, self._consumer = address, consumer
        self._joined: list[Consumer] = []

    def __call__(self, group: str, topic: str = "in") -> Consumer:
        self._joined.append(self._consumer(self._address, group, topic))
        return self._joined[-1]

    def leave(self, consumer: Consumer) -> None:
        self._joined.remove(consumer)
        consumer.close()

    def close(self) -> None:
        while self._joined:
            self.leave(self._joined[-1])


@pytest.fixture
def join(address: str, client: str, topics: None) -> Iterator[Members]:
    with closing(Members(address, CLIENTS[client][0])) as members:
        yield members


@pytest.fixture
def producing(address: str, client: str, topics: None) -> Iterator[Begin]:
    started: list[Producer] = []

    def begin(transactional_id: str) -> Producer:
        started.append(CLIENTS[client][1](address, transactional_id))
        return started[-1]

    yield begin
    for producer in started:
        producer.close()


def fill(producer: Producer, topic: str, *values: bytes) -> None:
    """One committed transaction over all partitions."""
    producer.begin()
    for number, value in enumerate(values):
        producer.send(topic, number % PARTITIONS, value)
    producer.commit()


def read(consumer: Consumer, count: int) -> set[bytes]:
    seen: list[bytes] = []

    def enough() -> bool:
        seen.extend(value for _, value in consumer.poll())
        return len(seen) >= count

    eventually(f"{count} records", enough, timeout_s=20)
    assert len(seen) == len(set(seen)) == count
    return set(seen)


def values(prefix: str, count: int) -> list[bytes]:
    return [f"{prefix}{number}".encode() for number in range(count)]


def test_members_share_the_partitions_and_take_over_from_one_that_leaves(join: Members, producing: Begin) -> None:
    producer = producing("filler")
    fill(producer, "in", *values("a", 40))
    first, second = join("g"), join("g")

    def shared() -> bool:
        first.poll(), second.poll()
        shares = [first.assigned(), second.assigned()]
        return [len(share) for share in shares] == [2, 2] and not shares[0] & shares[1]

    eventually("both have two partitions", shared, timeout_s=20)
    join.leave(second)
    eventually("the one that stays has all", lambda: first.poll() is not None and len(first.assigned()) == 4)


def test_commits_are_found_by_the_next_member(join: Members, producing: Begin) -> None:
    producer = producing("filler")
    fill(producer, "in", *values("a", 40))
    first = join("g")
    assert read(first, 40) == set(values("a", 40))
    first.commit()
    join.leave(first)
    fill(producer, "in", *values("b", 8))
    assert read(join("g"), 8) == set(values("b", 8))


def test_read_process_write_in_transactions(
    join: Members, producing: Begin, broker: RunningBroker, address: str
) -> None:
    fill(producing("filler"), "in", *values("a", 40))
    consumer, worker = join("g"), producing("worker")
    assert read(consumer, 40) == set(values("a", 40))
    ends = [("in", partition, 11) for partition in range(PARTITIONS)]  # ten records and a marker
    worker.begin()
    worker.send("out", 0, b"aborted")
    worker.send_offsets(ends, consumer, "g")
    worker.abort()
    committed = [broker.call(lambda it, tp=("in", part): it.offsets.fetch("g", tp)) for part in range(PARTITIONS)]
    assert committed == [None] * PARTITIONS
    fill(worker, "out", b"kept")
    worker.begin()
    for number in range(40):
        worker.send("out", number % PARTITIONS, f"b{number}".encode())
    worker.send_offsets(ends, consumer, "g")
    worker.commit()
    assert read(join("reader", "out"), 41) == {b"kept", *values("b", 40)}
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        offsets = admin.list_group_offsets("g")["g"]
    assert {part: offsets[TopicPartition("in", part)].offset for part in range(PARTITIONS)} == dict.fromkeys(
        range(PARTITIONS), 11
    )


def test_a_producer_with_the_same_id_fences_the_first(join: Members, producing: Begin) -> None:
    first = producing("same")
    first.begin()
    first.send("in", 0, b"of the zombie")
    second = producing("same")
    fill(second, "in", b"of the successor")
    with pytest.raises(FencedError):
        first.commit()
    assert read(join("g"), 1) == {b"of the successor"}


# ---- members that stay who they are


def generation(broker: RunningBroker, group: str) -> int:
    def of(it: Broker) -> int:
        found = it.groups.get(group)
        return 0 if found is None or found.state is not State.STABLE else found.generation

    return broker.call(of)


def static_member(address: str, instance_id: str) -> KafkaPythonConsumer:
    return KafkaPythonConsumer(address, "g", "in", instance_id)


def settled(*consumers: KafkaPythonConsumer) -> bool:
    """Everybody has its share of the four partitions."""
    shares = [consumer.assigned() for consumer in consumers]
    return all(len(share) == PARTITIONS // len(shares) for share in shares)


def test_a_static_member_that_restarts_has_its_partitions_back_without_a_rebalance(
    broker: RunningBroker, address: str, topics: None
) -> None:
    with closing(static_member(address, "a")) as first:
        second = static_member(address, "b")
        eventually("both have two partitions", lambda: settled(first, second), timeout_s=20)
        before, owned = generation(broker, "g"), second.assigned()
        second.close()  # a static member does not leave
        with closing(static_member(address, "b")) as again:
            eventually("the second is back", lambda: settled(first, again), timeout_s=20)
            assert again.assigned() == owned
            assert generation(broker, "g") == before


def test_members_go_on_over_a_restart_of_the_broker(start: Callable[..., RunningBroker]) -> None:
    """With librdkafka: kafka-python leaves the sockets of refused connections unclosed, which is an error in tests."""
    broker = start()
    address = broker.address
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.create_topics([NewTopic("in", PARTITIONS, 1)])
    with (
        closing(ConfluentConsumer(address, "g", "in")) as first,
        closing(ConfluentConsumer(address, "g", "in")) as second,
    ):
        seen: list[int] = []

        def read_by_both() -> bool:
            for consumer in (first, second):
                seen.extend(partition for partition, _ in consumer.poll())
            return len(first.assigned()) == len(second.assigned()) == PARTITIONS // 2

        eventually("both have two partitions", read_by_both, timeout_s=20)
        before = generation(broker, "g")
        broker.stop()
        broker = start(port=int(address.rpartition(":")[2]))
        with WireClient(address) as client:
            for partition in range(PARTITIONS):
                assert produce(client, "in", partition, batch([b"after"])).error_code == 0
        eventually("both read on", lambda: read_by_both() and sorted(seen) == list(range(PARTITIONS)), timeout_s=20)
        first.commit()
        assert generation(broker, "g") == before
