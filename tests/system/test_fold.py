"""The independent computation itself, on cases small enough to be done by hand."""

import json
from collections.abc import Callable

import pytest
from kafka import TopicPartition

from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer
from tests.system import fold
from tests.system.fold import Record


def _message(offset: int, sender: str, recipient: str, content: str, *, key: str | None = None) -> Record:
    value = json.dumps({"From": sender, "To": recipient, "Content": content}).encode()
    owner = key or sender
    return Record(fold.partition_of(owner, 8), offset, owner, value)


@pytest.mark.parametrize(
    ("key", "three", "eight"),
    [("", 0, 3), ("Alice", 2, 7), ("Bob", 0, 4), ("Hello", 2, 5), ("zü", 0, 6), ("afjtjzd", 2, 0)],
)
def test_partitions_are_gokas(key: str, three: int, eight: int) -> None:
    assert (fold.partition_of(key, 3), fold.partition_of(key, 8)) == (three, eight)


def test_the_fold_of_three_messages() -> None:
    sent = [
        _message(0, "Bob", "Alice", "good day"),
        _message(1, "Bob", "Alice", "spam"),
        _message(0, "Alice", "Bob", "go away"),
    ]
    assert fold.filtered(sent, blocked=["Alice"], words={"day": "night"}) == {("Bob", "Alice"): ["good night", "spam"]}
    assert fold.counters(sent) == {"Bob": {"Sent": 2, "Received": 1}, "Alice": {"Sent": 1, "Received": 2}}
    assert fold.misplaced([*sent, Record(0, 9, "Alice", b"{}")]) == [Record(0, 9, "Alice", b"{}")]


def test_a_feed_keeps_the_last_five() -> None:
    received = [_message(number, "Bob", "Alice", str(number), key="Alice") for number in range(7)]
    assert [message["Content"] for message in fold.feeds(received)["Alice"]] == ["2", "3", "4", "5", "6"]


def test_an_unblocked_user_keeps_a_row() -> None:
    events = [Record(4, 0, "Bob", b'{"Unblock":false}'), Record(4, 1, "Bob", b'{"Unblock":true}')]
    assert fold.blocked_users(events) == {"Bob": {"Blocked": False}}


def test_differences_are_told() -> None:
    assert fold.difference({"a": [1, 2]}, {"a": [1, 2]}) == []
    assert fold.difference({"a": [1, 2]}, {"a": [1]}) == ["'a': expected 2 entries, found 1"]
    assert fold.difference({"a": 1}, {}) == ["'a': expected 1, found None"]


@pytest.mark.any_broker
def test_what_an_open_transaction_wrote_is_undecided(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]
) -> None:
    topics = [fresh_name("decided"), fresh_name("open")]
    kafka_cluster.create_topics({topic: {"num_partitions": 2} for topic in topics})
    producer = plain_producer(kafka_cluster.address, transactional_id=fresh_name("id"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topics[1], b"x", partition=1).get(10)
        assert fold.undecided(kafka_cluster.address, topics) == {TopicPartition(topics[1], 1): 1}
        assert fold.undecided(kafka_cluster.address, topics[:1]) == {}
        producer.abort_transaction()
        eventually("it is decided", lambda: fold.undecided(kafka_cluster.address, topics) == {})
    finally:
        producer.close()
