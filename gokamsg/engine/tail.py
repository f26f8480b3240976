"""The newest records of some topics, for people who watch: a look at the end of each log, not a subscription.

Each look costs the same, however much was written since the last one. Owned by one thread; a context manager.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from msgspec import Struct

from gokamsg.engine.clients import ClientConfig, TableConsumer
from gokamsg.engine.codec import Codec
from gokamsg.engine.output import decode_key
from gokamsg.errors import CodecError, GokamsgError, PositionLostError

LOOK_BACK = 8
"""Offsets before the end of a partition that are read; transaction markers are among them."""
ENDS_WITHIN_S = 1.0
"""A broker that takes longer to say where its logs end is away, for somebody who watches."""


class TailRecord(Struct, frozen=True):
    """One record; `value` is None for a null value and for one that its codec cannot decode."""

    topic: str
    key: str
    value: Any
    timestamp_ms: int


class Tail:
    """See the module."""

    def __init__(self, config: ClientConfig, codecs: Mapping[str, Codec[Any]]) -> None:
        self._consumer = TableConsumer(config)
        self._codecs = codecs
        try:
            self._parts = [(topic, number) for topic in codecs for number in range(self._consumer.partitions(topic))]
            self._seen = self._consumer.end_offsets(self._parts, read_committed=True)
        except GokamsgError:
            self._consumer.close()
            raise

    def __enter__(self) -> Tail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def newest(self, timeout_s: float = 0.2) -> list[TailRecord]:
        """What was written since the last look, oldest first; of much, only the newest of each partition.

        BrokerUnavailableError when the brokers do not say within a second where the logs end.
        """
        ends = self._consumer.end_offsets(self._parts, read_committed=True, timeout_s=ENDS_WITHIN_S)
        grown = {part: max(self._seen[part], end - LOOK_BACK) for part, end in ends.items() if end > self._seen[part]}
        self._seen = ends
        if not grown:
            return []
        self._consumer.set_partitions({})
        self._consumer.set_partitions(grown)
        found: list[TailRecord] = []
        try:
            polled = self._consumer.poll(timeout_s)
        except PositionLostError:
            return []
        for (topic, _), batches in polled.items():
            for batch in batches:
                records = batch.split()
                for index, raw in enumerate(records.values):
                    value = self._decoded(topic, raw)
                    found.append(TailRecord(topic, decode_key(records.keys[index]), value, records.timestamp(index)))
        return sorted(found, key=lambda record: record.timestamp_ms)

    def _decoded(self, topic: str, raw: bytes | None) -> Any:
        if raw is None:
            return None
        try:
            return self._codecs[topic].decode(raw)
        except CodecError:
            return None
