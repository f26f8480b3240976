"""From key to partition, exactly as Goka's emitters, processors and views do it. Pure.

FNV-1a with 32 bits, read as a signed number, its absolute value modulo the number of partitions. Neither the unsigned
sum nor the masked one gives the same partitions. The one value whose negative overflows in Go (0x80000000) goes where
Goka's producers put it.

Threads: a Partitioner may be shared; the worst that two threads do to its cache is to compute a key twice.
"""

from collections.abc import Callable
from typing import TypeAlias

Hasher: TypeAlias = Callable[[bytes], int]

_CACHED_KEYS = 1 << 16
_CACHED_KEY_BYTES = 256


def fnv1a32(data: bytes) -> int:
    """FNV-1a of the bytes, as an unsigned 32-bit number."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def partition_of(key: bytes, partitions: int, hasher: Hasher = fnv1a32) -> int:
    """The partition of a key in a topic of so many partitions."""
    value = hasher(key)
    if value >= 0x80000000:
        value -= 0x100000000
    return abs(value) % partitions


class Partitioner:
    """Partitions of keys for one number of partitions; remembers recent answers, as hashing costs microseconds."""

    __slots__ = ("_hasher", "known", "partitions")

    def __init__(self, partitions: int, hasher: Hasher = fnv1a32) -> None:
        if partitions < 1:
            raise ValueError(f"a topic has at least one partition, not {partitions}")
        self.partitions = partitions
        self._hasher = hasher
        self.known: dict[bytes, int] = {}

    def __call__(self, key: bytes) -> int:
        known = self.known.get(key)
        if known is not None:
            return known
        partition = partition_of(key, self.partitions, self._hasher)
        if len(key) <= _CACHED_KEY_BYTES:
            if len(self.known) >= _CACHED_KEYS:
                # Starting over is cheaper than keeping an order on every hit; hot keys are back at once.
                self.known.clear()
            self.known[key] = partition
        return partition
