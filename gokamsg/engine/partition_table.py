"""One partition of a table: uncommitted writes, committed rows not yet in the file, a cache, and the storage behind.

1. A read sees, in this order, the open transaction's writes (the overlay), rows that are committed but not yet stored
   (dirty), the cache, and the storage. Dirty rows leave memory once they are stored or on their way there: a storage
   that writes while its owner goes on (begin_write) answers later reads after that.
2. The storage never holds anything uncommitted, and its position never covers a row that is not in it: rows and
   position are written together by flush(). It may lag behind the changelog; applying records again is harmless.
3. Memory is bounded: the cache by `cache_bytes`, dirty rows by `dirty_bytes`, beyond which they are stored; one write
   is under way at a time. The next one, close() and discard() wait for it, and raise its StateError.
4. While the whole table fits the cache, it is known to be complete, and a missing key costs no read.

Not here: codecs (callers pass bytes), reading the changelog (table_reader).
Threads: owned by one; committed() and iterate() may be called from any. The owner writes an overlay only between
callbacks of its own, so iterate() from elsewhere is for tables that have none, as those of views.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.storage import PendingWrite, Storage
from gokamsg.errors import StateError

CACHE_BYTES: Final = 32 << 20
DIRTY_BYTES: Final = 8 << 20
# What a row costs beyond its bytes: two bytes objects, a slot of a dictionary.
_ROW_BYTES: Final = 200
_UNKNOWN: Final[Any] = object()


class PartitionTable:
    """See the module."""

    def __init__(
        self,
        storage: Storage,
        *,
        topic: str,
        partition: int,
        cache_bytes: int = CACHE_BYTES,
        dirty_bytes: int = DIRTY_BYTES,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self._storage = storage
        stored = storage.position()
        self._position = stored or 0
        self._stored_position = stored
        self._overlay: dict[bytes, bytes | None] = {}
        self._dirty: dict[bytes, bytes | None] = {}
        self._dirty_bytes = 0
        self._dirty_limit = dirty_bytes
        self._write: PendingWrite | None = None
        self._begin_write = getattr(storage, "begin_write", None)
        # A dictionary is not made faster by another one before it.
        self._cache = _Cache(0 if isinstance(storage, MemoryStorage) else cache_bytes, complete=stored is None)
        self._may_load = stored is not None

    def get(self, key: bytes) -> bytes | None:
        """The value of the key as the open transaction sees it; None if it has none. For the owner only."""
        value = self._overlay.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._dirty.get(key, _UNKNOWN)
            if value is _UNKNOWN:
                value = self._cache.get(key)
                if value is _UNKNOWN:
                    value = self._read(key)
        return value  # type: ignore[no-any-return]

    def committed(self, key: bytes) -> bytes | None:
        """The last committed value of the key; None if it has none. From any thread."""
        for rows in (self._dirty, self._cache.young, self._cache.old):
            value = rows.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                return value  # type: ignore[no-any-return]
        return self._storage.get(key)

    def has(self, key: bytes) -> bool:
        """Whether the key has a value, as the open transaction sees it."""
        return self.get(key) is not None

    def prefetch(self, keys: Iterable[bytes | None]) -> None:
        """Bring those keys into the cache that are not in memory, with few reads."""
        if self._cache.complete or not self._cache.limit:
            return
        missing = self._unknown({key or b"" for key in keys})
        if missing and self._may_load:
            self._load()
            missing = [] if self._cache.complete else self._unknown(set(missing))
        if missing:
            rows: dict[bytes, bytes | None] = dict.fromkeys(missing)
            rows.update(self._storage.get_many(missing))
            self._cache.take(rows, _size_of(rows))

    def _unknown(self, keys: set[bytes]) -> list[bytes]:
        """Those that are not in memory; those that are in the cache count as used just now."""
        cache = self._cache
        for key in keys.intersection(cache.old):
            cache.get(key)
        return list(keys.difference(cache.young, cache.old, self._dirty))

    def put(self, key: bytes, value: bytes) -> None:
        """Set a row in the open transaction."""
        self._overlay[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a row in the open transaction."""
        self._overlay[key] = None

    @property
    def overlay(self) -> Mapping[bytes, bytes | None]:
        """The last write of each key in the open transaction; None is a removal."""
        return self._overlay

    def commit(self, position: int | None = None) -> None:
        """The overlay is committed. `position`, if given, is a changelog offset below which everything is in here."""
        overlay, self._overlay = self._overlay, {}
        self._take(overlay)
        if position is not None and position > self._position:
            self._position = position
        self._bound()

    def rollback(self) -> None:
        """The open transaction's writes never happened."""
        self._overlay = {}

    def apply(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        """Take over records of the changelog; everything below `position` is in here now."""
        self._take(changes)
        self._position = position
        self._bound()

    @property
    def position(self) -> int:
        """The next changelog offset to read, 0 if none was read."""
        return self._position

    @property
    def dirty_rows(self) -> int:
        """How many committed rows are not stored yet."""
        return len(self._dirty)

    def flush(self, position: int | None = None) -> None:
        """Store the dirty rows and the position, or the given later one if everything below it is in here."""
        if position is not None and position > self._position:
            self._position = position
        if not self._dirty and self._stored_position == self._position:
            return
        self._settle()
        dirty = self._dirty
        if self._begin_write is None:
            self._storage.write(dirty, self._position)
        else:
            self._write = self._begin_write(dirty, self._position)
        self._stored_position = self._position
        if self._cache.limit:
            self._cache.take(dirty, self._dirty_bytes)
        # Last, so that other threads find each row in one place or the other.
        self._dirty = {}
        self._dirty_bytes = 0

    def check_write(self) -> None:
        """StateError if the write that was under way has failed. To be asked now and then: else a full disk is only
        noticed with the next row."""
        if self._write is not None and self._write.done:
            self._settle()

    def _settle(self) -> None:
        """Wait for the write that is under way."""
        if self._write is not None:
            self._write.wait()
            self._write = None

    def discard(self) -> None:
        """Empty the table and its storage; it is at position 0 then, and can be filled again."""
        self._settle()
        self._storage.clear()
        self._overlay, self._dirty, self._dirty_bytes = {}, {}, 0
        self._cache = _Cache(self._cache.limit, complete=True)
        self._position, self._stored_position, self._may_load = 0, None, False

    def close(self) -> None:
        """Store what is committed, drop the open transaction and close the storage; StateError if that failed."""
        self.rollback()
        try:
            self.flush()
            self._settle()
        except StateError:
            self._storage.close(clean=False)
            raise
        self._storage.close()

    def iterate(self, start: bytes | None = None, limit: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < limit in byte order, as the open transaction sees them at the start.

        Rows written while it runs are seen or not; each key comes once at most.
        """
        recent = {**self._dirty, **self._overlay}
        keys = sorted(k for k in recent if (start is None or k >= start) and (limit is None or k < limit))
        return _merged(self._storage.iterate(start, limit), recent, keys)

    def __len__(self) -> int:
        """The number of rows, as the open transaction sees them. Reads the storage."""
        recent = {**self._dirty, **self._overlay}
        stored = self._storage.get_many(recent)
        return len(self._storage) + sum((value is not None) - (key in stored) for key, value in recent.items())

    def _take(self, changes: Mapping[bytes, bytes | None]) -> None:
        if changes:
            self._dirty.update(changes)
            self._dirty_bytes += _size_of(changes)

    def _bound(self) -> None:
        if self._dirty_bytes > self._dirty_limit:
            self.flush()
        else:
            self.check_write()

    def _read(self, key: bytes) -> bytes | None:
        if self._cache.complete:
            return None
        if self._may_load and self._cache.limit:
            self._load()
            value = self._cache.get(key)
            if value is not _UNKNOWN or self._cache.complete:
                return None if value is _UNKNOWN else value
        value = self._storage.get(key)
        if self._cache.limit:
            self._cache.remember(key, value)
        return value

    def _load(self) -> None:
        """Read the whole table into the cache, if it is likely to fit: it is complete from then on."""
        self._may_load = False
        if self._storage.size_bytes() <= self._cache.limit // 2:
            self._cache.fill(self._storage.iterate())


class _Cache:
    """Recently used rows within a bound, in two generations.

    Rows enter the younger one. When that is full it becomes the older one, and what was there and not used since is
    dropped. A hit costs one or two look-ups and no bookkeeping; a row that is known not to exist is remembered as None.
    """

    __slots__ = ("_bytes", "complete", "limit", "old", "young")

    def __init__(self, limit: int, *, complete: bool) -> None:
        self.limit = limit
        self.complete = complete and limit > 0
        self.young: dict[bytes, bytes | None] = {}
        self.old: dict[bytes, bytes | None] = {}
        self._bytes = 0

    def get(self, key: bytes) -> Any:
        """The value, None if the row is known not to exist, _UNKNOWN if nothing is known."""
        value = self.young.get(key, _UNKNOWN)
        if value is _UNKNOWN and self.old:
            value = self.old.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                self.remember(key, value)
        return value

    def remember(self, key: bytes, value: bytes | None) -> None:
        if value is None and self.complete:
            self._forget(key)
            return
        before = self.young.get(key, _UNKNOWN)
        # Into the younger one before it leaves the older one: other threads look there in this order.
        self.young[key] = value
        self._bytes += _cost(key, value) - (0 if before is _UNKNOWN else _cost(key, before))
        if self.old:
            self.old.pop(key, None)
        self._make_room()

    def take(self, rows: Mapping[bytes, bytes | None], size: int) -> None:
        """Remember many rows that together cost at most `size`."""
        if self.complete and None in rows.values():
            for key, value in rows.items():
                self.remember(key, value)
            return
        remaining = iter(rows.items())
        count = max(1, len(rows) * self.limit // (16 * max(size, 1)))
        while chunk := dict(islice(remaining, count)):
            size = _size_of(chunk)
            self._make_room(size)
            self.young.update(chunk)
            self._bytes += size  # rows that were there before are counted twice, until it matters

    def _make_room(self, size: int = 0) -> None:
        # One generation may take two thirds as long as it is alone; together they stay within the limit.
        limit = self.limit if self.old else 2 * self.limit
        if (self._bytes + size) * 3 > limit:
            self._bytes = _size_of(self.young)
            if (self._bytes + size) * 3 > limit:
                if self.old:
                    self.complete = False
                self.old, self.young, self._bytes = self.young, {}, 0

    def fill(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the rows of a whole table, unless they turn out not to fit."""
        known = {**self.old, **self.young}
        young: dict[bytes, bytes | None] = {}
        size = 0
        for key, value in rows:
            young[key] = value
            size += _cost(key, value)
            if size * 3 > 2 * self.limit:
                return
        young.update(known)
        self.young, self.old, self._bytes, self.complete = young, {}, size, True

    def _forget(self, key: bytes) -> None:
        before = self.young.pop(key, _UNKNOWN)
        if before is not _UNKNOWN:
            self._bytes -= _cost(key, before)
        self.old.pop(key, None)


def _size_of(rows: Mapping[bytes, bytes | None]) -> int:
    return sum(map(len, rows)) + sum(map(len, filter(None, rows.values()))) + _ROW_BYTES * len(rows)


def _cost(key: bytes, value: bytes | None) -> int:
    return len(key) + _ROW_BYTES + (0 if value is None else len(value))


def _merged(
    stored: Iterator[tuple[bytes, bytes]], recent: Mapping[bytes, bytes | None], keys: list[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """The stored rows with the recent ones in their places (None removes a row)."""
    waiting = iter(keys)
    following = next(waiting, None)
    for key, value in stored:
        while following is not None and following < key:
            fresh = recent[following]
            if fresh is not None:
                yield following, fresh
            following = next(waiting, None)
        if key not in recent:
            yield key, value
    while following is not None:
        fresh = recent[following]
        if fresh is not None:
            yield following, fresh
        following = next(waiting, None)
