"""Where the rows of one table partition are kept: the contract. memory_storage.py and sqlite/ answer to it.

1. Rows and the changelog position are written together: after a killed process the position never covers a row that is
   missing. Writing the same rows again is harmless.
2. A failing read or write raises StateError, and the storage is unusable from then on.

Keys are ordered by their bytes. Threads: one owner writes; get, get_many, has and iterate may be called from any
thread, and see rows as of now (each at most once, in order, while the owner goes on writing).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol


class PendingWrite(Protocol):
    """A write that goes on by itself."""

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or the other."""

    def wait(self) -> None:
        """Return once it has ended; StateError if it failed."""


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
