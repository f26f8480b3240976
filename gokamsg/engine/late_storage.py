"""Storage of a table partition that has no rows yet, opened with its first write.

Making a file takes milliseconds, of which a worker has none to spare between two records, and most of these tables
never get a row. What the opened storage holds from earlier belongs to another changelog, and is cleared.

Threads: as every storage's. One owner writes; the others find nothing until it has written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from gokamsg.engine.storage import PendingWrite, Storage


class LateStorage:
    """See the module. Whatever `build` raises, the first write raises."""

    def __init__(self, build: Callable[[], Storage]) -> None:
        self._build = build
        self._storage: Storage | None = None

    def get(self, key: bytes) -> bytes | None:
        return None if self._storage is None else self._storage.get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        return {} if self._storage is None else self._storage.get_many(keys)

    def has(self, key: bytes) -> bool:
        return self._storage is not None and self._storage.has(key)

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        return iter(()) if self._storage is None else self._storage.iterate(start, limit)

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        self.begin_write(changes, position).wait()

    def begin_write(self, changes: Mapping[bytes, bytes | None], position: int) -> PendingWrite:
        """As write(); it goes on by itself where the storage can do that."""
        if self._storage is None and not changes and not position:
            return _Written()  # an empty table stays without a file
        storage = self._opened()
        begin = getattr(storage, "begin_write", None)
        if begin is not None:
            return begin(changes, position)  # type: ignore[no-any-return]
        storage.write(changes, position)
        return _Written()

    def position(self) -> int | None:
        return None if self._storage is None else self._storage.position()

    def size_bytes(self) -> int:
        return 0 if self._storage is None else self._storage.size_bytes()

    def __len__(self) -> int:
        return 0 if self._storage is None else len(self._storage)

    def clear(self) -> None:
        if self._storage is not None:
            self._storage.clear()

    def close(self, *, clean: bool = True) -> None:
        if self._storage is not None:
            self._storage.close(clean=clean)

    def discard(self) -> None:
        if self._storage is not None:
            self._storage.discard()

    def _opened(self) -> Storage:
        if self._storage is None:
            storage = self._build()
            if storage.position() is not None:
                storage.clear()
            self._storage = storage
        return self._storage


class _Written:
    """A write that is over."""

    done = True

    def wait(self) -> None:
        """It went well."""
