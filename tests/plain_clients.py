"""kafka-python's own clients, for what tests write and read beside the engine.

A client of kafka-python rests for 100 ms between its first two questions about the cluster, who the brokers are and
where a topic is, and no setting reaches that. A test run has more than a thousand clients that would wait for it.
"""

from typing import Any

from kafka import KafkaConsumer, KafkaProducer

_REST_MS = 5


def plain_producer(address: str, **settings: Any) -> KafkaProducer:
    """A KafkaProducer at `address`; `settings` are its own."""
    producer = KafkaProducer(bootstrap_servers=address.split(","), **settings)
    producer._metadata.config["retry_backoff_ms"] = _REST_MS
    return producer


def plain_consumer(address: str, **settings: Any) -> KafkaConsumer:
    """A KafkaConsumer without topics at `address`; `settings` are its own."""
    consumer = KafkaConsumer(bootstrap_servers=address.split(","), **settings)
    consumer._cluster.config["retry_backoff_ms"] = _REST_MS
    return consumer
