"""The table partitions that a worker has on disk: where they lie, and which are open.

One file per table partition in the worker's slot. A partition that leaves the worker keeps its file: should it come
back, only what changed in between is read again. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from gokamsg.engine.late_storage import LateStorage
from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.partition_table import DIRTY_BYTES, PartitionTable
from gokamsg.engine.sqlite import SQLiteStorage, boot_id
from gokamsg.engine.storage import Storage

# Committed rows that are not stored yet, of all tables together; of one it is worth while to store a thousand at once.
ALL_DIRTY_BYTES: Final = 64 << 20
LEAST_DIRTY_BYTES: Final = 512 << 10

StorageBuilder = Callable[[str, int, str], Storage]
"""(topic, partition, topic id) -> the storage of that table partition."""


def sqlite_builder(directory: Path) -> StorageBuilder:
    """Files in `directory`, as `<topic>.<partition>`."""

    boot = boot_id()

    def build(topic: str, partition: int, topic_id: str) -> Storage:
        return SQLiteStorage(directory / f"{topic}.{partition}", topic_id=topic_id, boot_id=boot)

    return build


def memory_builder(topic: str, partition: int, topic_id: str) -> Storage:
    """Nothing on disk: restored from the changelog at each start."""
    return MemoryStorage()


class Tables:
    """See the module."""

    def __init__(self, build: StorageBuilder, *, cache_bytes: int, shares: int) -> None:
        """What may be in memory is divided among `shares` table partitions, which is how many there can be."""
        self._build = build
        self._cache_bytes = cache_bytes // max(shares, 1)
        self._dirty_bytes = min(DIRTY_BYTES, max(ALL_DIRTY_BYTES // max(shares, 1), LEAST_DIRTY_BYTES))
        self._open: dict[tuple[str, int], PartitionTable] = {}

    def open(self, topic: str, partition: int, topic_id: str, *, is_new: bool = False) -> PartitionTable:
        """The table partition; the same object while it is open. Raises StateError when its file cannot be used.

        `is_new`: its changelog is empty, so it is too, and its file is only made when rows are to be stored."""
        key = (topic, partition)
        table = self._open.get(key)
        if table is None:
            build = partial(self._build, topic, partition, topic_id)
            storage = LateStorage(build) if is_new else build()
            table = self._open[key] = PartitionTable(
                storage,
                topic=topic,
                partition=partition,
                cache_bytes=self._cache_bytes,
                dirty_bytes=self._dirty_bytes,
            )
        return table

    def close(self, topic: str, partition: int) -> None:
        """Write what is committed and close the file."""
        table = self._open.pop((topic, partition), None)
        if table is not None:
            table.close()

    def close_all(self) -> None:
        """Write what is committed and close every file; the first error is raised after all were tried."""
        errors: list[Exception] = []
        while self._open:
            _, table = self._open.popitem()
            try:
                table.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __iter__(self) -> Iterator[PartitionTable]:
        return iter(list(self._open.values()))
