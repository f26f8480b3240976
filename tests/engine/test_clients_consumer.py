"""The consumers on a real Kafka: which records come out, where positions stand, and what a group tells its member."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import pytest
from kafka import KafkaProducer, TopicPartition

from gokamsg.engine.clients import (
    Admin,
    Assigned,
    Batches,
    ClientConfig,
    Event,
    GroupConsumer,
    Lost,
    Membership,
    Patience,
    Place,
    Revoked,
    TableConsumer,
)
from gokamsg.errors import (
    BrokerUnavailableError,
    GokamsgError,
    IdentityError,
    OffsetsPendingError,
    PositionLostError,
    TopicError,
    TransactionAbortedError,
)
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster, KafkaServer
from tests.plain_clients import plain_producer

PARTITIONS = 4
Names = Callable[[str], str]


@pytest.fixture
def topic(kafka_cluster: KafkaCluster, fresh_name: Names) -> str:
    return make_topic(kafka_cluster, fresh_name("topic"))


def make_topic(cluster: KafkaCluster, name: str, partitions: int = PARTITIONS) -> str:
    cluster.create_topics({name: {"num_partitions": partitions}})
    return name


def delete(cluster: KafkaCluster, topic: str) -> None:
    with cluster.admin() as admin:
        admin.delete_topics([topic])


def write(cluster: KafkaCluster, topic: str, *values: bytes, partition: int = 0, **settings: object) -> None:
    with closing(plain_producer(cluster.address, linger_ms=50, **settings)) as producer:
        for value in values:
            producer.send(topic, key=b"k", value=value, partition=partition)
        producer.flush(20)


@contextmanager
def transaction(cluster: KafkaCluster, name: str) -> Iterator[KafkaProducer]:
    with closing(plain_producer(cluster.address, transactional_id=name)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        yield producer


@contextmanager
def group_member(
    cluster: KafkaCluster, group: str, *topics: str, instance: str = "one", **settings: int
) -> Iterator[GroupConsumer]:
    config = ClientConfig(cluster.address, **settings)
    consumer = GroupConsumer(config, group=group, topics=topics)
    consumer.join_as(instance)
    try:
        yield consumer
    finally:
        consumer.close()


@contextmanager
def table_reader(cluster: KafkaCluster) -> Iterator[TableConsumer]:
    with closing(TableConsumer(ClientConfig(cluster.address))) as consumer:
        yield consumer


def joined(consumer: GroupConsumer) -> Assigned:
    """Polls until an assignment has come, and gives the last one."""
    return assignment(consumer, lambda event: True)


def assignment(consumer: GroupConsumer, wanted: Callable[[Assigned], bool]) -> Assigned:
    found: list[Event] = []

    def poll() -> Assigned | None:
        consumer.poll(0.05)
        found.extend(consumer.events())
        return next((e for e in reversed(found) if isinstance(e, Assigned) and wanted(e)), None)

    return eventually("an assignment", poll, timeout_s=20)


def values(batches: Batches) -> list[bytes | None]:
    return [value for part in sorted(batches) for batch in batches[part] for value in batch.split().values]


def read(consumer: GroupConsumer | TableConsumer, count: int) -> list[bytes | None]:
    """At least so many values; exactly so many, if no more come with the same poll."""
    found: list[bytes | None] = []

    def poll() -> bool:
        found.extend(values(consumer.poll(0.2)))
        return len(found) >= count

    eventually(f"{count} records", poll)
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def test_reads_from_the_position_even_inside_a_batch(kafka_cluster: KafkaCluster, topic: str) -> None:
    write(kafka_cluster, topic, b"a", b"b", b"c", compression_type="gzip")
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 1})
        assert read(reader, 2) == [b"b", b"c"]
        assert reader.position(topic, 0) == 3
        reader.seek(topic, 0, 2)
        assert read(reader, 1) == [b"c"]


def test_a_position_in_a_topic_that_was_made_anew_is_told(kafka_cluster: KafkaCluster, topic: str) -> None:
    """The new topic has that position too, with other records; what it has before that is read as well."""
    other = make_topic(kafka_cluster, f"{topic}-other")
    write(kafka_cluster, topic, b"a", b"b")
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0, (other, 0): 0})
        assert read(reader, 2) == [b"a", b"b"]
        delete(kafka_cluster, topic)
        gone = {(topic, 0)}
        eventually("it is seen to be gone", lambda: not reader.poll(0.05) and reader.leaderless() == gone, timeout_s=30)
        make_topic(kafka_cluster, topic)
        write(kafka_cluster, topic, b"c", b"d", b"e", b"f")
        write(kafka_cluster, other, b"x")
        found: list[bytes | None] = []

        def told() -> bool:
            try:
                found.extend(values(reader.poll(0.2)))
            except PositionLostError as error:
                return set(error.positions) == gone
            return False

        eventually("it is told", told, timeout_s=30)
        with pytest.raises(PositionLostError):
            reader.poll(0.05)
        reader.seek(topic, 0, 0)
        found += read(reader, 5 - len(found))
        assert sorted(filter(None, found)) == [b"c", b"d", b"e", b"f", b"x"]


def test_partitions_keep_their_positions_when_others_are_added(kafka_cluster: KafkaCluster, topic: str) -> None:
    write(kafka_cluster, topic, b"a", b"b")
    write(kafka_cluster, topic, b"c", partition=1)
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0})
        assert read(reader, 2) == [b"a", b"b"]
        assert reader.poll(0.05) == {}  # a fetch is parked at the broker now
        started = time.monotonic()
        reader.set_partitions({(topic, 0): 0, (topic, 1): 0})
        assert read(reader, 1) == [b"c"]
        assert time.monotonic() - started < 2  # it did not wait for the parked fetch
        assert reader.assignment() == {(topic, 0), (topic, 1)}
        reader.set_partitions({})
        assert reader.poll(0) == {}
        assert reader.assignment() == set()


def test_aborted_records_and_markers_are_passed_over(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    with transaction(kafka_cluster, fresh_name("id")) as producer:
        producer.send(topic, value=b"aborted", partition=0).get(10)
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send(topic, value=b"committed", partition=0).get(10)
        producer.commit_transaction()
        producer.begin_transaction()
        producer.send(topic, value=b"aborted too", partition=0).get(10)
        producer.abort_transaction()
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0})
        assert read(reader, 1) == [b"committed"]
        eventually("the last marker is passed", lambda: reader.poll(0.1) == {} and reader.position(topic, 0) == 6)


def test_pending_records_are_not_read_but_counted_in_the_high_watermark(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    write(kafka_cluster, topic, b"before")
    with transaction(kafka_cluster, fresh_name("id")) as producer, table_reader(kafka_cluster) as reader:
        producer.send(topic, value=b"pending", partition=0).get(10)
        part = (topic, 0)
        reader.set_partitions({part: 0})
        assert read(reader, 1) == [b"before"]
        assert reader.poll(0.2) == {}
        assert reader.end_offsets([part]) == {part: 2}
        assert reader.end_offsets([part], read_committed=True) == {part: 1}
        with Admin(ClientConfig(kafka_cluster.address)) as admin:
            assert admin.high_watermarks([part]) == {part: 2}
        producer.commit_transaction()
        assert read(reader, 1) == [b"pending"]


def test_what_comes_while_the_owner_is_busy_has_arrived_by_its_next_poll(
    kafka_cluster: KafkaCluster, topic: str
) -> None:
    """Also after a poll that had to wait for what it brought."""
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0})
        assert reader.poll(0.2) == {}
        writing = threading.Timer(0.2, write, [kafka_cluster, topic, b"waited for"])
        writing.start()
        assert values(reader.poll(5.0)) == [b"waited for"]
        writing.join()
        write(kafka_cluster, topic, b"while it is busy")
        eventually("it has arrived", reader.arrived)
        assert values(reader.poll(0.0)) == [b"while it is busy"]


def test_all_places_of_all_logs_are_told_at_once(kafka_cluster: KafkaCluster, topic: str, fresh_name: Names) -> None:
    write(kafka_cluster, topic, b"a", b"b", b"c")
    with kafka_cluster.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 2})
    with transaction(kafka_cluster, fresh_name("id")) as producer, table_reader(kafka_cluster) as reader:
        producer.send(topic, value=b"pending", partition=0).get(10)
        parts = [(topic, 0), (topic, 1)]
        assert reader.offsets({Place.START: parts, Place.END: parts, Place.STABLE_END: parts[:1]}) == {
            Place.START: {parts[0]: 2, parts[1]: 0},
            Place.END: {parts[0]: 4, parts[1]: 0},
            Place.STABLE_END: {parts[0]: 3},
        }
        assert reader.offsets({Place.START: parts[:1], Place.END: []}) == {Place.START: {parts[0]: 2}, Place.END: {}}
        producer.commit_transaction()


@pytest.mark.parametrize("position", [0, 99])
def test_a_position_outside_the_log_is_told_and_never_reset(
    kafka_cluster: KafkaCluster, topic: str, position: int
) -> None:
    write(kafka_cluster, topic, b"a", b"b", b"c")
    write(kafka_cluster, topic, b"x", partition=1)
    with kafka_cluster.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 2})
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): position, (topic, 1): 0})
        found: list[bytes | None] = []

        def told() -> bool:
            try:
                found.extend(values(reader.poll(0.2)))
            except PositionLostError as error:
                return error.positions == {(topic, 0): position}
            return False

        eventually("the first error", told)
        eventually("the other partition is read", lambda: told() and found == [b"x"])
        assert reader.log_start(topic, 0) == 2
        reader.seek(topic, 0, 2)
        assert read(reader, 1) == [b"c"]


def test_a_poll_without_waiting_finds_what_has_arrived(kafka_cluster: KafkaCluster, topic: str) -> None:
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0})
        assert reader.poll(0) == {}
        write(kafka_cluster, topic, b"a")
        assert eventually("the record", lambda: values(reader.poll(0))) == [b"a"]


def test_a_stop_takes_nothing_along_that_a_poll_has_drained(kafka_cluster: KafkaCluster, topic: str) -> None:
    """The position would be behind records that nobody was given, and a table without them stored with it."""
    write(kafka_cluster, topic, b"a", b"b", b"c")
    for _ in range(5):
        patience, given = Patience(), []
        with closing(TableConsumer(ClientConfig(kafka_cluster.address), patience=patience)) as reader:
            reader.set_partitions({(topic, 0): 0})

            def something(reader: TableConsumer = reader, given: list[bytes | None] = given) -> bool:
                if not reader.arrived():
                    given.extend(values(reader.poll(0)))
                return bool(given) or reader.arrived()

            eventually("a fetch has brought something", something)
            patience.hurry()
            given.extend(values(reader.poll(0)))
            assert len(given) == reader.position(topic, 0)


@pytest.mark.parametrize("where", ["the same topic", "another topic"])
def test_partitions_that_are_added_while_a_fetch_is_parked_do_not_wait_for_its_end(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names, where: str
) -> None:
    added = topic if where == "the same topic" else make_topic(kafka_cluster, fresh_name("topic"))
    config = ClientConfig(kafka_cluster.address, request_timeout_ms=90_000, fetch_max_wait_ms=60_000)
    with closing(TableConsumer(config)) as reader:
        reader.set_partitions({(topic, 0): 0})
        parked = reader._fetcher._nodes_with_pending_fetch_requests
        eventually("a fetch is parked", lambda: reader.poll(0.05) == {} and parked and not reader.starting())
        reader.set_partitions({(topic, 0): 0, (added, 1): 0})
        assert reader.starting()
        assert reader.poll(0) == {}
        write(kafka_cluster, added, b"added", partition=1)
        eventually("the new partition is read", lambda: values(reader.poll(0)) == [b"added"])
        eventually("both are followed", lambda: reader.poll(0.05) == {} and not reader.starting())


def test_missing_topics_are_named(kafka_cluster: KafkaCluster, fresh_name: Names) -> None:
    with table_reader(kafka_cluster) as reader, pytest.raises(TopicError, match="'nowhere' does not exist"):
        reader.partitions("nowhere")
    with pytest.raises(TopicError, match="'nowhere' does not exist"):
        GroupConsumer(ClientConfig(kafka_cluster.address), group=fresh_name("g"), topics=["nowhere"])


# --- groups -------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_before_the_owner_has_sought_and_resumed(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    write(kafka_cluster, topic, b"a", b"b")
    with group_member(kafka_cluster, fresh_name("group"), topic) as consumer:
        assigned = joined(consumer)
        everything = frozenset((topic, partition) for partition in range(PARTITIONS))
        assert assigned.partitions == everything
        assert assigned.membership == consumer.membership()
        assert assigned.membership.generation_id > 0
        assert consumer.paused() == everything
        assert consumer.poll(0.3) == {}
        assert consumer.committed(everything) == dict.fromkeys(everything)
        consumer.seek(topic, 0, 1)
        consumer.resume([(topic, 0)])
        assert read(consumer, 1) == [b"b"]
        assert consumer.position(topic, 0) == 2
        assert consumer.lags()[topic, 0] == 0
        assert not consumer.will_rejoin()
        assert consumer.events() == []


def test_offsets_are_committed_for_the_membership_they_were_read_with(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    with group_member(kafka_cluster, fresh_name("group"), topic) as consumer:
        now = joined(consumer).membership
        consumer.commit({(topic, 0): 7, (topic, 1): 0}, now)
        part = [(topic, 0), (topic, 1), (topic, 2)]
        assert consumer.committed(part) == {(topic, 0): 7, (topic, 1): 0, (topic, 2): None}
        stale = Membership(now.group, now.generation_id - 1, now.member_id, now.instance_id)
        with pytest.raises(TransactionAbortedError, match="rebalanced"):
            consumer.commit({(topic, 0): 8}, stale)
        assert consumer.committed([(topic, 0)]) == {(topic, 0): 7}


def test_a_member_is_not_given_a_new_topic_from_where_it_was_in_the_old_one(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """It learns of it while there is no such topic, or when it asks the brokers, as once a minute, what there is."""
    write(kafka_cluster, topic, b"a", b"b")
    with group_member(kafka_cluster, fresh_name("group"), topic) as member:
        joined(member)
        member.seek(topic, 0, 0)
        member.resume([(topic, 0)])
        assert read(member, 2) == [b"a", b"b"]
        delete(kafka_cluster, topic)
        make_topic(kafka_cluster, topic)
        write(kafka_cluster, topic, b"c", b"d")
        member._consumer._cluster.request_update()

        def poll_on() -> None:
            for _ in range(100):
                member.poll(0.2)

        with pytest.raises(TopicError, match=f"topic '{topic}' .*(does not exist|deleted and created again)"):
            poll_on()


def test_committed_waits_while_a_transaction_of_the_offsets_is_pending(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    from kafka import OffsetAndMetadata

    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as consumer, transaction(kafka_cluster, group) as producer:
        joined(consumer)
        offsets = {TopicPartition(topic, 0): OffsetAndMetadata(5, "", -1)}
        producer.send_offsets_to_transaction(offsets, consumer._consumer.group_metadata())
        started = time.monotonic()
        with pytest.raises(OffsetsPendingError):
            consumer.committed([(topic, 0)], timeout_s=0.5)
        assert 0.4 < time.monotonic() - started < 3
        producer.commit_transaction()
        assert consumer.committed([(topic, 0)]) == {(topic, 0): 5}


def test_a_second_member_moves_partitions_and_leaving_gives_them_back_at_once(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as first:
        before = joined(first)
        with group_member(kafka_cluster, group, topic, instance="two") as second:
            second.poll(0.05)
            eventually("the first is told", lambda: second.poll(0.05) == {} and first.will_rejoin())
            assert first.events() == []  # so far only told: it may commit
            after: list[Event] = []

            def both() -> bool:
                first.poll(0.05)
                second.poll(0.05)
                after.extend(first.events())
                return len(first.assignment()) == len(second.assignment()) == PARTITIONS // 2

            eventually("both have two partitions", both, timeout_s=20)
            assert after[0] == Revoked(before.partitions)
            assert isinstance(after[-1], Assigned)
            assert after[-1].membership.generation_id > before.membership.generation_id
            assert first.assignment() < before.partitions  # it kept half of its own
            assert first.assignment() | second.assignment() == before.partitions
            second.leave()
        started = time.monotonic()
        again = assignment(first, lambda event: len(event.partitions) == PARTITIONS)
        assert time.monotonic() - started < 5  # well below the session timeout
        assert again.partitions == before.partitions


def test_a_restarted_member_has_its_partitions_back_without_a_rebalance(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as first:
        before = joined(first)
        # As after a kill: nobody has left.
        with group_member(kafka_cluster, group, topic) as successor:
            started = time.monotonic()
            after = joined(successor)
            assert time.monotonic() - started < 3
            assert after.partitions == before.partitions
            assert after.membership.generation_id == before.membership.generation_id
            assert after.membership.member_id != before.membership.member_id

            # And the one that lives on is told that it has been replaced, once it has tried to have its place back.
            def told() -> bool:
                successor.poll(0.05)
                with suppress(IdentityError):
                    first.poll(0.05)
                return first.fatal() is not None

            eventually("the fenced one is told", told)
            with pytest.raises(IdentityError, match="another process uses this worker's identity 'one'"):
                first.poll(0.1)
            first.leave()  # does not put out its successor
            eventually("the successor is at rest", lambda: not successor.poll(0.05) and not successor.will_rejoin())
            successor.commit({(topic, 0): 3}, successor.membership())
            assert not successor.will_rejoin()
            assert successor.assignment() == before.partitions


def test_a_member_fenced_by_nobody_who_lives_takes_its_place_back(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """As by a join that a broker read too late, or one that it remembers in place of a later one."""
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as member:
        before = joined(member)
        with group_member(kafka_cluster, group, topic) as ghost:
            joined(ghost)
        after = assignment(member, lambda event: event.membership.member_id != before.membership.member_id)
        assert after.partitions == before.partitions
        member.commit({(topic, 0): 3}, after.membership)
        assert member.fatal() is None


def test_a_join_that_ends_between_two_polls_is_not_repeated(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """kafka-python joined anew then; when the leader does that, the whole group rebalances once more."""
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as leader:
        joined(leader)
        with group_member(kafka_cluster, group, topic, instance="two") as second:
            eventually("another join waits", lambda: second.poll(0.01) == {} and leader.will_rejoin())
            assert leader.poll(0) == {}  # begins to join, and does not wait for it
            join = leader._coordinator._join_task
            eventually("the join has ended", lambda: join.is_done)
            assert join.succeeded()
            generation = leader._coordinator._generation.generation_id
            assert joined(leader).membership.generation_id == generation
            assert joined(second).membership.generation_id == generation


def test_a_join_for_new_partitions_is_carried_through_however_short_the_polls(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """kafka-python forgot it when another member kept it waiting for longer than a poll, and hung without a word."""
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as leader, kafka_cluster.admin() as admin:
        joined(leader)
        with group_member(kafka_cluster, group, topic, instance="two") as second:

            def each_has(partitions: int) -> bool:
                leader.poll(0.02)
                second.poll(0.02)
                return len(leader.assignment()) == len(second.assignment()) == partitions

            eventually("both have two partitions", lambda: each_has(2), timeout_s=20)
            admin.create_partitions({topic: 6})
            leader._consumer._cluster.request_update()  # as once a minute
            eventually("the leader knows", lambda: leader.will_rejoin())
            assert leader.poll(0) == {}  # begins to join, and does not wait for the other member
            eventually("both have three partitions", lambda: each_has(3), timeout_s=20)


def test_a_poll_that_waits_for_data_ends_for_a_rebalance_and_when_it_is_woken(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as first, ThreadPoolExecutor(1) as owner:
        before = owner.submit(joined, first).result(20)
        polled = owner.submit(first.poll, 60.0)
        first.wake()
        assert polled.result(10) == {}

        polled = owner.submit(first.poll, 60.0)
        with group_member(kafka_cluster, group, topic, instance="two") as second:
            found: list[Event] = []

            def halved() -> bool:
                nonlocal polled
                second.poll(0.02)
                if polled.done():
                    found.extend(first.events())
                    if any(isinstance(event, Assigned) and event.partitions < before.partitions for event in found):
                        return True
                    polled = owner.submit(first.poll, 60.0)
                return False

            eventually("the first has its half", halved)


def test_a_member_that_was_put_out_is_told_and_joins_again(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as consumer, Admin(ClientConfig(kafka_cluster.address)) as admin:
        before = joined(consumer)
        assert admin.remove_member(group, "one")
        eventually("it knows", consumer.will_rejoin)
        with pytest.raises(GokamsgError):
            consumer.commit({(topic, 0): 1}, before.membership)
        events: list[Event] = []

        def again() -> bool:
            consumer.poll(0.1)
            events.extend(consumer.events())
            return any(isinstance(event, Assigned) for event in events)

        eventually("it is in again", again, timeout_s=20)
        assert events[0] == Lost(before.partitions)


def test_a_group_is_joined_while_something_else_is_waited_for(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """And its member is who it was told to be, though that was known only after it had connected."""
    group, config = fresh_name("group"), ClientConfig(kafka_cluster.address)
    with closing(GroupConsumer(config, group=group, topics=[topic])) as consumer, closing(Admin(config)) as admin:
        consumer.join_as("late")

        deadline = time.monotonic() + 20.0

        def members() -> dict[str | None, frozenset[tuple[str, int]]]:
            return {member.instance_id: member.partitions for member in admin.describe_groups([group])[group].members}

        everything = {"late": frozenset((topic, partition) for partition in range(consumer.partitions(topic)))}
        consumer.join_until(lambda _: members() == everything or time.monotonic() > deadline)
        assert members() == everything
        [assigned] = consumer.events()
        assert isinstance(assigned, Assigned)
        assert assigned.membership.instance_id == "late"


@pytest.mark.goka("group: protocol named copartition, user data none of Goka's")
def test_a_member_that_attends_stays_in_the_group_without_a_poll(
    kafka_cluster: KafkaCluster, topic: str, fresh_name: Names
) -> None:
    """For several times as long as may pass between two polls."""
    interval_s = 1.0
    group, config = fresh_name("group"), ClientConfig(kafka_cluster.address)
    consumer = GroupConsumer(config, group=group, topics=[topic], max_poll_interval_ms=int(interval_s * 1000))
    consumer.join_as("one")
    with closing(consumer), closing(Admin(config)) as admin:
        membership = joined(consumer).membership
        until = time.monotonic() + 4 * interval_s

        def attended() -> bool:
            consumer.attend()
            return time.monotonic() >= until

        eventually("time has passed", attended)
        assert consumer.events() == []
        assert not consumer.will_rejoin()
        consumer.commit({(topic, 0): 1}, membership)
        assert admin.describe_groups([group])[group].state == "Stable"


def test_groups_are_described(kafka_cluster: KafkaCluster, topic: str, fresh_name: Names) -> None:
    group = fresh_name("group")
    with group_member(kafka_cluster, group, topic) as consumer, Admin(ClientConfig(kafka_cluster.address)) as admin:
        consumer.commit({(topic, 1): 4}, joined(consumer).membership)
        nobody = fresh_name("group")
        described = admin.describe_groups([group, nobody])
        assert (described[nobody].state, described[nobody].members) == ("Dead", ())
        found = described[group]
        assert (found.state, found.protocol) == ("Stable", "copartition")
        assert [(m.instance_id, m.client_id, m.host) for m in found.members] == [("one", "gokamsg", "127.0.0.1")]
        assert found.members[0].partitions == {(topic, partition) for partition in range(PARTITIONS)}
        assert admin.group_offsets([group, nobody]) == {group: {(topic, 1): 4}, nobody: {}}
        assert admin.groups()[group] == "Stable"
        consumer.leave()
        assert admin.delete_group(group)
        assert admin.describe_groups([group])[group].state == "Dead"


def test_consumers_go_on_after_the_broker_was_away(own_cluster: KafkaServer) -> None:
    topic = make_topic(own_cluster, "t")
    write(own_cluster, topic, b"before")
    with group_member(own_cluster, "g", topic) as consumer, table_reader(own_cluster) as reader:
        joined(consumer)
        consumer.seek(topic, 0, 0)
        consumer.resume([(topic, 0)])
        reader.set_partitions({(topic, 0): 0})
        assert read(consumer, 1) == read(reader, 1) == [b"before"]

        own_cluster.kill()
        started = time.monotonic()
        assert consumer.poll(0.5) == reader.poll(0.5) == {}
        with pytest.raises(BrokerUnavailableError):
            consumer.committed([(topic, 0)], timeout_s=1)
        with pytest.raises(BrokerUnavailableError):
            reader.end_offsets([(topic, 0)], timeout_s=1)
        assert time.monotonic() - started < 10
        own_cluster.start()
        write(own_cluster, topic, b"after")
        assert read(reader, 1) == [b"after"]

        def back() -> list[bytes | None]:
            found = values(consumer.poll(0.2))
            for event in consumer.events():
                if isinstance(event, Assigned):
                    consumer.seek(topic, 0, 1)
                    consumer.resume([(topic, 0)])
            return found

        assert eventually("the group goes on", back, timeout_s=30) == [b"after"]


@pytest.mark.any_broker
def test_nothing_waits_for_ever_for_a_broker_that_stands_still(own_cluster: KafkaServer) -> None:
    topic = make_topic(own_cluster, "t")
    with group_member(own_cluster, "g", topic) as consumer, table_reader(own_cluster) as reader:
        membership = joined(consumer).membership
        reader.set_partitions({(topic, 0): 0})
        reader.poll(0.1)
        own_cluster.pause()
        try:
            for call in (
                lambda: consumer.committed([(topic, 0)], timeout_s=0.5),
                lambda: consumer.commit({(topic, 0): 1}, membership, timeout_s=0.5),
                lambda: reader.end_offsets([(topic, 0)], timeout_s=0.5),
                lambda: reader.beginning_offsets([(topic, 0)], timeout_s=0.5),
                lambda: reader.partitions("unknown", timeout_s=0.5),
                lambda: TableConsumer(ClientConfig(own_cluster.address)),
            ):
                started = time.monotonic()
                with pytest.raises(BrokerUnavailableError):
                    call()
                assert time.monotonic() - started < 6
            started = time.monotonic()
            assert consumer.poll(0.5) == {}
            consumer.leave(timeout_s=0.5)
            assert time.monotonic() - started < 5
        finally:
            own_cluster.resume()


@pytest.mark.any_broker
@pytest.mark.parametrize("silent", [False, True], ids=["answered", "not answered"])
def test_a_member_that_waits_does_not_look_up_for_its_heartbeats(
    own_cluster: KafkaServer, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """One in 400 ms; and one without an answer was due all the time: thousands of rounds a second."""
    topic = make_topic(own_cluster, "t")
    with group_member(own_cluster, "g", topic) as consumer:
        joined(consumer)
        consumer.seek(topic, 0, 0)
        consumer.resume([(topic, 0)])
        consumer.poll(0.1)
        look, rounds = consumer._fetcher.fetch_records, 0

        def counted(*args: object, **options: object) -> object:
            nonlocal rounds
            rounds += 1
            return look(*args, **options)

        monkeypatch.setattr(consumer._fetcher, "fetch_records", counted)
        if silent:
            own_cluster.pause()
        try:
            assert consumer.poll(3.0) == {}
        finally:
            if silent:
                own_cluster.resume()
        assert rounds <= 5, f"{rounds} rounds in 3 s"


def test_the_next_fetch_is_under_way_while_records_are_handled(kafka_cluster: KafkaCluster, topic: str) -> None:
    with table_reader(kafka_cluster) as reader:
        reader.set_partitions({(topic, 0): 0})
        assert reader.poll(0.2) == {}
        write(kafka_cluster, topic, b"a")
        eventually("the record has arrived", reader.arrived)
        assert values(reader.poll(0.0)) == [b"a"]
        eventually("the next fetch is sent", lambda: bool(reader._fetcher._nodes_with_pending_fetch_requests))


def test_polls_without_waiting_follow_a_partition_whose_position_was_looked_into(
    kafka_cluster: KafkaCluster, topic: str
) -> None:
    """Meanwhile it is part of no fetch whose end would tell that there is something to poll for."""
    with table_reader(kafka_cluster) as reader:
        write(kafka_cluster, topic, b"a")
        reader.set_partitions({(topic, 0): 0})
        eventually("the first record is read", lambda: values(reader.poll(0.2)) == [b"a"])
        reader._subscription.request_position_validation(TopicPartition(topic, 0))
        write(kafka_cluster, topic, b"b")
        eventually("the second record is read", lambda: values(reader.poll(0.0)) == [b"b"])
