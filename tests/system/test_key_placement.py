"""Inputs written by clients that place keys otherwise than Goka: the role that reads them says so, and whose way it is.

Invariant: one warning for each such input, with the partitioner's name, and none for an input in Goka's way.
"""

import json

import pytest
from confluent_kafka import Producer as ConfluentProducer

from tests.plain_clients import plain_producer
from tests.system.chain import make_topics
from tests.system.fold import partition_of
from tests.system.messaging import Messaging
from tests.system.traffic import PEOPLE


@pytest.mark.any_broker
def test_a_role_names_the_partitioner_of_its_input(messaging: Messaging) -> None:
    """message_sent by kafka-python (Java's way), translate-word by librdkafka, block_user by Goka's rule."""
    make_topics(messaging.cluster)
    producer = plain_producer(messaging.cluster.address, acks="all")
    for person in PEOPLE:
        message = json.dumps({"From": person, "To": "Alice", "Content": "hi"}).encode()
        producer.send("message_sent", message, person.encode())
        producer.send("block_user", b'{"Unblock":true}', person.encode(), partition=partition_of(person, 8))
    producer.flush()
    producer.close()
    librdkafka = ConfluentProducer({"bootstrap.servers": messaging.cluster.address})
    for person in PEOPLE:
        librdkafka.produce("translate-word", b"word", person.encode())
    assert librdkafka.flush(30) == 0

    roles = messaging.role("blocker", "translator", "filter")
    found = roles.wait_line(r"filter: .*keys of 'message_sent' do not lie where Goka's partitioner")
    assert "they lie where murmur2 (the default of Java's clients) puts them" in found.string
    found = roles.wait_line(r"translator: .*keys of 'translate-word' do not lie where Goka's partitioner")
    assert "they lie where CRC32 (the default of librdkafka and what is built on it) puts them" in found.string
    messaging.drained("blocker", "translator", "message_filter")
    shown = roles.stdout() + roles.stderr()
    assert shown.count("do not lie where") == 2, shown
