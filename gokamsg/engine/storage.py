"""Where one partition of a table is kept: in memory, or in a SQLite file through sqlitedict.

1. Rows and the changelog position are written together: after a killed process the position never covers a row that is
   missing. Writing the same rows again is harmless.
2. The file is a cache. If it is damaged, of another topic or another format, or may have lost pages in a power failure
   (nothing is synchronised to the disk while it is open), it starts empty and is filled again from the changelog.
3. A failing read or write raises StateError, and the storage is unusable from then on; closing it removes the file.
4. A file is open in one process at a time; a second one gets StateError.

Keys are ordered by their bytes. Threads: one owner writes; get, get_many, has and iterate may be called from any
thread, and see rows as of now (each at most once, in order, while the owner goes on writing).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from gokamsg.engine.sqlite_storage import SQLiteStorage, boot_id

__all__ = ["MemoryStorage", "SQLiteStorage", "Storage", "boot_id", "prefix_limit"]


class Storage(Protocol):
    """The rows of one table partition, and the changelog position up to which they are complete."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if it has none."""

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that have one."""

    def has(self, key: bytes) -> bool:
        """Whether the key has a value."""

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < limit in byte order; None leaves that side open."""

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        """Set rows (None deletes) and the position, all or nothing."""

    def position(self) -> int | None:
        """The next changelog offset to read, None if nothing was ever written."""

    def size_bytes(self) -> int:
        """About how much is stored (an upper bound for the rows)."""

    def __len__(self) -> int: ...

    def clear(self) -> None:
        """Remove every row and the position."""

    def close(self, *, clean: bool = True) -> None:
        """Close; not clean means that the process may be in a bad state, and that nothing more is vouched for."""

    def discard(self) -> None:
        """Close, and remove what is stored."""


def prefix_limit(prefix: bytes) -> bytes | None:
    """The key after the last one that begins with the prefix; None if there is no such key."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


class MemoryStorage:
    """Rows in a dictionary; the sorted keys are made when somebody iterates."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] | None = None
        self._position: int | None = None
        self._bytes = 0

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        return {key: value for key in keys if (value := self._rows.get(key)) is not None}

    def has(self, key: bytes) -> bool:
        return key in self._rows

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        keys = self._sorted
        if keys is None:
            keys = self._sorted = sorted(self._rows)
        first = 0 if start is None else bisect_left(keys, start)
        last = len(keys) if limit is None else bisect_left(keys, limit)
        for key in keys[first:last]:
            value = self._rows.get(key)
            if value is not None:
                yield key, value

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        rows = self._rows
        for key, value in changes.items():
            before = rows.pop(key, None) if value is None else rows.get(key)
            if value is not None:
                rows[key] = value
            if (before is None) != (value is None):
                self._bytes += len(key) if before is None else -len(key)
                self._sorted = None
            self._bytes += (0 if value is None else len(value)) - (0 if before is None else len(before))
        self._position = position

    def position(self) -> int | None:
        return self._position

    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        self._rows, self._sorted, self._position, self._bytes = {}, None, None, 0

    def close(self, *, clean: bool = True) -> None:
        """Nothing to close; the rows stay readable."""

    def discard(self) -> None:
        self.clear()
