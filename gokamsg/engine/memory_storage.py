"""Storage of one table partition in memory. storage.py holds the contract."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping


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
