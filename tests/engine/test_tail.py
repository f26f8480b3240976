"""A look at the newest records, on a real Kafka."""

import threading
from collections.abc import Callable

import pytest

from gokamsg.engine import ClientConfig, Emitter, String, Tail
from gokamsg.errors import TopicError
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster

pytestmark = pytest.mark.any_broker


def test_a_look_shows_what_was_written_since_the_last_one(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]
) -> None:
    topic, config = fresh_name("topic"), ClientConfig(kafka_cluster.address)
    kafka_cluster.create_topics({topic: {"num_partitions": 2}})
    emitter = Emitter(config, topic, String())
    emitter.emit_sync("k", "before")
    with Tail(config, {topic: String()}) as tail:
        assert tail.newest() == []
        for value in ("one", "two"):
            emitter.emit_sync("k", value)
            found = eventually("it is seen", tail.newest)
            assert [(record.topic, record.key, record.value) for record in found] == [(topic, "k", value)]
    emitter.finish()


def test_of_one_that_cannot_be_opened_nothing_is_left(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]
) -> None:
    """Who watches tries again and again while the brokers are away."""
    before = set(threading.enumerate())
    with pytest.raises(TopicError):
        Tail(ClientConfig(kafka_cluster.address), {fresh_name("missing"): String()})
    eventually("its threads have ended", lambda: not set(threading.enumerate()) - before)
