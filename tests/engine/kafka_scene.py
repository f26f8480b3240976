"""What the engine's tests on a real cluster share: records in, records out, processors that run beside the test.

Reading and writing goes through plain kafka-python, so that nothing of the engine vouches for itself.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition

from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.clock import Clock
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.kafka_cluster import KafkaCluster
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.processor import Processor
from gokamsg.engine.state import ProcessorState
from gokamsg.engine.stats import ProcessorStatus
from tests.helpers import eventually
from tests.plain_clients import plain_consumer, plain_producer

PARTITIONS = 4
Row = tuple[str, str | None]


class Scene:
    """One cluster as a test sees it."""

    def __init__(self, address: str, state_dir: Path) -> None:
        self.address = address
        self.state_dir = state_dir

    def produce(self, topic: str, records: Sequence[tuple[str | None, str | bytes | None]]) -> None:
        """Write records in order, each to the partition of its key, acknowledged."""
        producer = plain_producer(self.address, linger_ms=5)
        try:
            sent = [
                producer.send(
                    topic,
                    key=None if key is None else key.encode(),
                    value=value.encode() if isinstance(value, str) else value,
                    partition=partition_of((key or "").encode(), PARTITIONS),
                )
                for key, value in records
            ]
            for future in sent:
                future.get(timeout=20)
        finally:
            producer.close()

    def read(self, topic: str) -> list[tuple[str | None, bytes | None]]:
        """Every committed record of the topic, partition by partition."""
        consumer = plain_consumer(self.address, isolation_level="read_committed", enable_auto_commit=False)
        try:
            parts = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            ends = consumer.end_offsets(parts)
            found: dict[TopicPartition, list[tuple[str | None, bytes | None]]] = {part: [] for part in parts}

            def all_read() -> bool:
                for part, records in consumer.poll(timeout_ms=100).items():
                    found[part] += [(r.key.decode() if r.key is not None else None, r.value) for r in records]
                return all(consumer.position(part) >= ends[part] for part in parts)

            eventually(f"all of {topic} is read", all_read, timeout_s=30)
            return [record for part in parts for record in found[part]]
        finally:
            consumer.close()

    def table(self, topic: str) -> dict[str | None, bytes]:
        """A changelog folded to its last values."""
        rows: dict[str | None, bytes] = {}
        for key, value in self.read(topic):
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        return rows

    def processor(
        self,
        graph: GroupGraph,
        *,
        state_dir: Path | None = None,
        on_status: Callable[[ProcessorStatus], None] | None = None,
        clock: Clock | None = None,
        **options: object,
    ) -> Processor:
        """A processor on this cluster, not yet running."""
        cluster = KafkaCluster(ClientConfig(self.address))
        cluster.clock = clock or cluster.clock
        return Processor(
            cluster,
            graph,
            ProcessorOptions(state_dir=state_dir or self.state_dir, **options),  # type: ignore[arg-type]
            on_status=on_status,
        )

    @contextmanager
    def running(self, graph: GroupGraph, **options: object) -> Iterator["Running"]:
        """A processor at work beside the test; stopped, and its error raised, at the end."""
        running = Running(self.processor(graph, **options))  # type: ignore[arg-type]
        running.start()
        try:
            yield running
        finally:
            running.processor.stop()
            running.join()
        if running.error is not None and not running.error_expected:
            raise running.error


class Running:
    """A processor on a thread of its own."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.error: BaseException | None = None
        self.error_expected = False
        self._thread = threading.Thread(target=self._run, name=f"processor-{processor.graph.group}")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(40)
        assert not self._thread.is_alive(), "the processor did not stop within 40 s"

    def wait_at_work(self, timeout_s: float = 30.0) -> "Running":
        """Until every assigned partition runs."""
        eventually(
            f"group {self.processor.graph.group} is at work",
            lambda: self.error is not None or self.processor.state.state == ProcessorState.RUNNING,
            timeout_s=timeout_s,
        )
        if self.error is not None and not self.error_expected:
            raise self.error
        return self

    def failed(self, timeout_s: float = 30.0) -> BaseException:
        """The error that ended the processor."""
        self.error_expected = True
        return eventually("the processor ends with an error", lambda: self.error, timeout_s=timeout_s)  # type: ignore[return-value]

    def caught_up(self, records: int, timeout_s: float = 40.0) -> None:
        """Until so many records were handled."""
        status: Callable[[], int] = lambda: self.processor.status().records  # noqa: E731
        eventually(
            f"group {self.processor.graph.group} has handled {records} records",
            lambda: self.error is not None or status() >= records,
            timeout_s=timeout_s,
        )

    def _run(self) -> None:
        try:
            self.processor.run()
        except BaseException as error:
            self.error = error


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of brokers that do not answer."""
    return [record.message for record in caplog.records if record.name == "gokamsg.engine.silence"]
