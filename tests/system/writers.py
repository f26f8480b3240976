"""Writes to the service's small inputs while a test runs, with kafka-python alone."""

import itertools
import json
import random
import threading
from abc import abstractmethod
from typing import Self

from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer
from tests.system.fold import partition_of


class _Writer:
    """Writes on a thread of its own, from its start as a context to its end; then all of it is acknowledged."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._producer = plain_producer(cluster.address, acks="all", linger_ms=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__.lower(), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self._producer.flush()
        self._producer.close()

    @abstractmethod
    def _run(self) -> None: ...


class Drip(_Writer):
    """Blocks and unblocks people who never write, and translates words that nobody uses, 40 times a second.

    It keeps blocker and translator at work without a say in what the filter lets through.
    """

    def __init__(self, cluster: KafkaCluster, seed: int) -> None:
        super().__init__(cluster)
        self._rng = random.Random(seed)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(0.025):
                return
            name = f"quiet {self._rng.randrange(200)}"
            if number % 2:
                self._send("translate-word", name, f"word {number}")
            else:
                self._send("block_user", name, '{"Unblock":true}' if self._rng.random() < 0.5 else '{"Unblock":false}')

    def _send(self, topic: str, key: str, value: str) -> None:
        self._producer.send(topic, value.encode(), key.encode(), partition=partition_of(key, 8))


class Trickle(_Writer):
    """Ten messages a second to each partition of message_received, one person for each partition."""

    def __init__(self, cluster: KafkaCluster) -> None:
        super().__init__(cluster)
        names = (f"everybody {number}" for number in itertools.count())
        self._people = {partition_of(name, 8): name for name in itertools.islice(names, 200)}

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for partition, name in self._people.items():
                value = json.dumps({"From": "Bob", "To": name, "Content": "tick"})
                self._producer.send("message_received", value.encode(), name.encode(), partition=partition)
