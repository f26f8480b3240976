"""A table read by callbacks through join() and lookup(): its partitions held here, its values decoded.

A join has the partitions assigned to the worker, a lookup all of them. Values whose codec calls itself `shareable`
(decoded values are immutable) are decoded once and remembered; a change of the key forgets them. Contexts look into
`remembered` first, by the key of a lookup or the partition and encoded key of a join. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gokamsg.engine.codec import Codec
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.output import encode_key
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.errors import ProcessingError

REMEMBERED = 200_000
"""Decoded values kept per table; beyond it they are all forgotten and decoded again when needed."""


class LookupTable:
    """The partitions of one table that this worker holds."""

    def __init__(self, topic: str, codec: Codec[Any], partition_of: Partitioner) -> None:
        self.topic = topic
        self._decode = codec.decode
        self._partition_of = partition_of
        self._shareable = bool(getattr(codec, "shareable", False))
        self.remembered: dict[Any, Any] = {}
        self._partitions: dict[int, PartitionTable] = {}

    def hold(self, partition: int, table: PartitionTable) -> None:
        """Serve `partition` from `table`."""
        self._partitions[partition] = table
        self.remembered.clear()

    def release(self, partition: int) -> None:
        """Stop serving `partition`."""
        self._partitions.pop(partition, None)
        self.remembered.clear()

    def changed(self, partition: int, keys: Collection[bytes]) -> None:
        """The values of `keys` in `partition` changed; of any, if none is named."""
        remembered = self.remembered
        if not keys:
            remembered.clear()
        elif remembered:
            for key in keys:
                remembered.pop((partition, key), None)
                try:
                    remembered.pop(key.decode(), None)
                except UnicodeDecodeError:
                    remembered.clear()
                    return

    def get(self, key: str) -> Any:
        """The value of `key` in whatever partition it lives, None if there is none."""
        raw_key = encode_key(key)
        return self._read(key, self._partition_of(raw_key), raw_key)

    def get_in(self, partition: int, key: bytes) -> Any:
        """The value of `key` in `partition`, None if there is none."""
        return self._read((partition, key), partition, key)

    def _read(self, name: Any, partition: int, key: bytes) -> Any:
        table = self._partitions.get(partition)
        if table is None:
            raise ProcessingError(f"partition {partition} of table {self.topic!r} is not held by this worker")
        raw = table.get(key)
        value = None if raw is None else self._decode(raw)
        if value is None or self._shareable:
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[name] = value
        return value
