"""kafka-python, confluent-kafka and aiokafka behind one small face, so that a test is written once for all of them."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol

import aiokafka
import confluent_kafka
import kafka
from aiokafka.structs import TopicPartition as AioTopicPartition
from confluent_kafka import TopicPartition as ConfluentTopicPartition
from kafka.structs import OffsetAndMetadata, TopicPartition

WAIT_S = 20.0
Position = tuple[str, int, int]  # topic, partition, next offset


class FencedError(Exception):
    """The client says that another producer has taken its transactional id."""


class Consumer(Protocol):
    """A member of a group that reads from the beginning and commits when told."""

    def poll(self) -> list[tuple[int, bytes]]: ...

    def assigned(self) -> set[int]: ...

    def commit(self) -> None: ...

    def close(self) -> None: ...


class Producer(Protocol):
    """A transactional producer."""

    def begin(self) -> None: ...

    def send(self, topic: str, partition: int, value: bytes) -> None: ...

    def send_offsets(self, positions: list[Position], consumer: Any, group: str) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


# ---- kafka-python


class KafkaPythonConsumer:
    """Polled on a thread of its own, with long polls.

    kafka-python 3.0.12 loses a leader's join that completes between two polls (no assignment, no heartbeats, until the
    session ends). Members that one thread polls in turn meet that nearly always: each one's join needs the other's.
    """

    def __init__(self, address: str, group: str, topic: str, instance_id: str | None = None) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[Any], Any], Future[Any]]] = queue.SimpleQueue()
        self._records: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._stopping = False
        inner = kafka.KafkaConsumer(
            topic,
            bootstrap_servers=address,
            group_id=group,
            group_instance_id=instance_id,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            session_timeout_ms=6_000,
            heartbeat_interval_ms=300,
        )
        self._thread = threading.Thread(target=self._run, args=(inner,), daemon=True)
        self._thread.start()

    def _run(self, inner: Any) -> None:
        while not self._stopping:
            for records in inner.poll(timeout_ms=1000).values():
                for record in records:
                    self._records.put((record.partition, record.value))
            while not self._tasks.empty():
                function, future = self._tasks.get()
                try:
                    future.set_result(function(inner))
                except Exception as error:
                    future.set_exception(error)
        inner.close()

    def call(self, function: Callable[[Any], Any]) -> Any:
        """The function's result, called with the KafkaConsumer on its thread."""
        future: Future[Any] = Future()
        self._tasks.put((function, future))
        return future.result(WAIT_S)

    def poll(self) -> list[tuple[int, bytes]]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._records.get(timeout=0.05))
        return found

    def assigned(self) -> set[int]:
        return {partition.partition for partition in self.call(lambda inner: inner.assignment())}

    def commit(self) -> None:
        self.call(lambda inner: inner.commit())

    def close(self) -> None:
        self._stopping = True
        self._thread.join(WAIT_S)


class KafkaPythonProducer:
    def __init__(self, address: str, transactional_id: str) -> None:
        self.inner = kafka.KafkaProducer(bootstrap_servers=address, transactional_id=transactional_id)
        self.inner.init_transactions()

    def begin(self) -> None:
        self.inner.begin_transaction()

    def send(self, topic: str, partition: int, value: bytes) -> None:
        self.inner.send(topic, partition=partition, value=value)

    def send_offsets(self, positions: list[Position], consumer: Any, group: str) -> None:
        offsets = {TopicPartition(topic, part): OffsetAndMetadata(offset, "", -1) for topic, part, offset in positions}
        self.inner.send_offsets_to_transaction(offsets, consumer.call(lambda inner: inner.group_metadata()))

    def commit(self) -> None:
        try:
            self.inner.commit_transaction()
        except (kafka.errors.ProducerFencedError, kafka.errors.InvalidProducerEpochError) as error:
            raise FencedError from error

    def abort(self) -> None:
        self.inner.abort_transaction()

    def close(self) -> None:
        self.inner.close(timeout=1)


# ---- confluent-kafka (librdkafka)


class ConfluentConsumer:
    def __init__(self, address: str, group: str, topic: str) -> None:
        self.inner = confluent_kafka.Consumer(
            {
                "bootstrap.servers": address,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 300,
            }
        )
        self.inner.subscribe([topic])

    def poll(self) -> list[tuple[int, bytes]]:
        found = []
        for message in self.inner.consume(100, 0.2):
            assert message.error() is None, message.error()
            found.append((message.partition(), message.value()))
        return found

    def assigned(self) -> set[int]:
        return {partition.partition for partition in self.inner.assignment()}

    def commit(self) -> None:
        self.inner.commit(asynchronous=False)

    def close(self) -> None:
        self.inner.close()


class ConfluentProducer:
    def __init__(self, address: str, transactional_id: str) -> None:
        self.inner = confluent_kafka.Producer({"bootstrap.servers": address, "transactional.id": transactional_id})
        self.inner.init_transactions(WAIT_S)

    def begin(self) -> None:
        self.inner.begin_transaction()

    def send(self, topic: str, partition: int, value: bytes) -> None:
        self.inner.produce(topic, value, partition=partition)

    def send_offsets(self, positions: list[Position], consumer: Any, group: str) -> None:
        offsets = [ConfluentTopicPartition(*position) for position in positions]
        self.inner.send_offsets_to_transaction(offsets, consumer.inner.consumer_group_metadata(), WAIT_S)

    def commit(self) -> None:
        try:
            self.inner.commit_transaction(WAIT_S)
        except confluent_kafka.KafkaException as error:
            if error.args[0].fatal():
                raise FencedError from error
            raise

    def abort(self) -> None:
        self.inner.abort_transaction(WAIT_S)

    def close(self) -> None:
        self.inner.purge()
        with contextlib.suppress(confluent_kafka.KafkaException):  # it was fenced, and says so to the end
            self.inner.flush(1)


# ---- aiokafka


class _Loop:
    """A loop on a thread of its own, so that heartbeats go on while the test does something else."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


class AiokafkaConsumer:
    def __init__(self, address: str, group: str, topic: str) -> None:
        self.loop = _Loop()

        async def start() -> Any:
            consumer = aiokafka.AIOKafkaConsumer(
                topic,
                bootstrap_servers=address,
                group_id=group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                isolation_level="read_committed",
                session_timeout_ms=6_000,
                heartbeat_interval_ms=300,
            )
            await consumer.start()
            return consumer

        self.inner = self.loop.run(start())

    def poll(self) -> list[tuple[int, bytes]]:
        polled = self.loop.run(self.inner.getmany(timeout_ms=200))
        return [(record.partition, record.value) for records in polled.values() for record in records]

    def assigned(self) -> set[int]:
        return {partition.partition for partition in self.inner.assignment()}

    def commit(self) -> None:
        self.loop.run(self.inner.commit())

    def close(self) -> None:
        self.loop.run(self.inner.stop())
        self.loop.close()


class AiokafkaProducer:
    def __init__(self, address: str, transactional_id: str) -> None:
        self.loop = _Loop()

        async def start() -> Any:
            producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, transactional_id=transactional_id)
            await producer.start()
            return producer

        self.inner = self.loop.run(start())
        self._sent: list[Any] = []

    def begin(self) -> None:
        self.loop.run(self.inner.begin_transaction())

    def send(self, topic: str, partition: int, value: bytes) -> None:
        self.loop.run(self.inner.send(topic, value, partition=partition))

    def send_offsets(self, positions: list[Position], consumer: Any, group: str) -> None:
        offsets = {AioTopicPartition(topic, part): offset for topic, part, offset in positions}
        self.loop.run(self.inner.send_offsets_to_transaction(offsets, group))

    def commit(self) -> None:
        try:
            self.loop.run(self.inner.commit_transaction())
        except (aiokafka.errors.ProducerFenced, aiokafka.errors.InvalidProducerEpoch) as error:
            raise FencedError from error

    def abort(self) -> None:
        self.loop.run(self.inner.abort_transaction())

    def close(self) -> None:
        self.loop.run(self.inner.stop())
        self.loop.close()


CLIENTS: dict[str, tuple[type[Consumer], type[Producer]]] = {
    "kafka-python": (KafkaPythonConsumer, KafkaPythonProducer),
    "confluent-kafka": (ConfluentConsumer, ConfluentProducer),
    "aiokafka": (AiokafkaConsumer, AiokafkaProducer),
}
