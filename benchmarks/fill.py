"""Records into a topic as fast as a broker takes them: whole batches, several on their way at once.

Ten million rows are there in a minute; a producer that is called for each record takes four.
"""

import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from types import TracebackType

from kafka.protocol.producer import ProduceResponse

from benchmarks.measure import Written
from gokamsg.engine.records import BatchBuilder
from tests.broker.raw_client import RawClient, produce_request

VERSION = 9
BATCH_BYTES = 256 << 10
IN_FLIGHT = 8

Row = tuple[int, bytes, bytes]
"""Partition, key, value."""


def batches(rows: Iterable[Row]) -> Iterable[tuple[int, bytearray]]:
    """Partitions and batches; the records of a partition keep their order."""
    now_ms = int(time.time() * 1000)
    started: dict[int, BatchBuilder] = {}
    for partition, key, value in rows:
        builder = started.get(partition)
        if builder is None:
            builder = started[partition] = BatchBuilder()
        if builder.append(key, value, now_ms) >= BATCH_BYTES:
            yield partition, started.pop(partition).build()
    for partition, builder in started.items():
        yield partition, builder.build()


class Filler:
    """One connection, for one topic; leaving the block waits until everything is acknowledged."""

    def __init__(self, address: str, topic: str) -> None:
        with closing(Written(address, topic)) as written:
            written()  # answered once every partition of a topic just made has its leader
        self._client = RawClient(address, timeout_s=60)
        self._topic = topic
        self._asked: deque[int] = deque()

    def send(self, partition: int, batch: bytearray) -> None:
        request = produce_request([(self._topic, partition, batch)])  # type: ignore[list-item]
        self._asked.append(self._client.send(request, VERSION))
        if len(self._asked) >= IN_FLIGHT:
            self._acknowledged()

    def _acknowledged(self) -> None:
        answer = self._client.receive(ProduceResponse, VERSION, self._asked.popleft())
        error = answer.responses[0].partition_responses[0].error_code
        if error:
            raise SystemExit(f"a batch for {self._topic} was refused with error {error}")

    def __enter__(self) -> "Filler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while error is None and self._asked:
            self._acknowledged()
        self._client.socket.close()
