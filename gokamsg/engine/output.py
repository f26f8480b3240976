"""What callbacks emit, collected into record batches: one open batch per partition of each topic.

A batch goes to the producer when it is full, the rest when the transaction is committed. Nothing here survives an
abort: `discard()` drops every open batch. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gokamsg.engine.clients import BATCH_BYTES
from gokamsg.engine.clock import Clock
from gokamsg.engine.counts import OutputStats
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.records import HEADER_BYTES, BatchBuilder

Headers = Sequence[tuple[str, bytes | None]]
OpenBatch = tuple[str, int, BatchBuilder]
"""Topic, partition, records."""

Send = Callable[[Sequence[OpenBatch]], object]

LIMIT_BYTES = 768 << 10
"""A record that would take a batch over this goes into the next one; brokers take 1 MiB by default."""


class OutputTopic:
    """One topic that a worker writes to."""

    __slots__ = ("_builders", "_outputs", "bytes", "count", "known", "partition_of", "partitions", "topic")

    def __init__(self, outputs: Outputs, topic: str, partition_of: Partitioner, partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions
        self._outputs = outputs
        self.partition_of = partition_of
        self.known = partition_of.known
        self.count = self.bytes = 0  # of what was handed to the producer
        self._builders: list[BatchBuilder | None] = [None] * partitions

    def append_to(self, partition: int, key: bytes, value: bytes | None, headers: Headers = ()) -> None:
        """Add a record to `partition`; a batch that is full is sent first."""
        builder = self._builders[partition]
        if builder is None:
            builder = self._builders[partition] = BatchBuilder()
        elif builder.size + len(key) + (len(value) if value else 0) > LIMIT_BYTES or builder.size >= BATCH_BYTES:
            self._sent(builder)
            self._outputs.send([(self.topic, partition, builder)])
            builder = self._builders[partition] = BatchBuilder()
        builder.append(key, value, self._outputs.now_ms, headers)

    def take(self) -> list[OpenBatch]:
        """Every open batch; they are open no longer."""
        batches = [
            (self.topic, number, builder) for number, builder in enumerate(self._builders) if builder is not None
        ]
        self._builders = [None] * self.partitions
        for _, _, builder in batches:
            self._sent(builder)
        return batches

    def _sent(self, builder: BatchBuilder) -> None:
        self.count += builder.count
        self.bytes += builder.size - HEADER_BYTES

    def discard(self) -> None:
        """Drop every open batch."""
        self._builders = [None] * self.partitions


Staged = tuple[OutputTopic, bytes, bytes | None, Headers]


class Outputs:
    """All topics that a worker writes to. `now_ms` is the timestamp of new records, set by the worker per poll."""

    def __init__(self, send: Send, clock: Clock | None = None) -> None:
        self.send = send
        self._clock = clock or Clock()
        self.now_ms = 0
        self.records = 0
        self._topics: dict[str, OutputTopic] = {}

    def read_clock(self) -> None:
        """What is written from now on has the present time as its timestamp."""
        self.now_ms = self._clock.now_ms()

    def add(self, topic: str, partition_of: Partitioner, partitions: int) -> OutputTopic:
        """Register `topic`; the same one is returned when it is already known."""
        known = self._topics.get(topic)
        if known is None:
            known = self._topics[topic] = OutputTopic(self, topic, partition_of, partitions)
        return known

    def stats(self) -> dict[str, OutputStats]:
        """What was sent, by topic."""
        return {name: OutputStats(topic.count, topic.bytes) for name, topic in self._topics.items()}

    def topic(self, name: str) -> OutputTopic:
        """The registered topic `name`."""
        return self._topics[name]

    def get(self, name: str) -> OutputTopic | None:
        """The topic `name`, None if it is not registered."""
        return self._topics.get(name)

    def accept(self, staged: Sequence[Staged]) -> None:
        """Take over what one callback emitted, after it returned without error."""
        for topic, key, value, headers in staged:
            partition = topic.known.get(key)
            topic.append_to(topic.partition_of(key) if partition is None else partition, key, value, headers)
        self.records += len(staged)

    def flush(self) -> None:
        """Send every open batch, all in one go."""
        batches = [batch for topic in self._topics.values() for batch in topic.take()]
        if batches:
            self.send(batches)

    def discard(self) -> None:
        """Drop every open batch (abort)."""
        for topic in self._topics.values():
            topic.discard()


def encode_key(key: Any) -> bytes:
    """The bytes of a record key; raises TypeError for anything but str. Inverse of decode_key."""
    if type(key) is not str:
        raise TypeError(f"a key must be a str, not {type(key).__name__}")
    try:
        return key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogateescape")


def decode_key(key: bytes | None) -> str:
    """The key as callbacks see it; bytes that are not UTF-8 survive a round trip, a null key is the empty one."""
    if key is None:
        return ""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.decode(errors="surrogateescape")
