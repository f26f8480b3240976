"""Whether the keys of an input lie where the group's partitioner (Goka's) puts them, and if not, whose fits.

A key in another partition is handled like any other, but what is stored for it stays in that partition: joins, lookups
and views look for it elsewhere. So a worker looks at the first keys that it reads of each input, and says once what it
found. The partitioners and judge() are pure; KeyPlacement is owned by the worker's thread.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct

from gokamsg.engine.hashing import Hasher, fnv1a32, partition_of

log = logging.getLogger(__name__)

MOST_KEYS = 100
MOST_RECORDS = 10_000
FEWEST_PER_PARTITION = 5

Placed = tuple[bytes, int]
"""A key and the partition that it was found in."""


def murmur2(data: bytes) -> int:
    """MurmurHash2 (Austin Appleby) with the seed 0x9747b28c, as Apache Kafka's Utils.murmur2; unsigned."""
    size = len(data)
    rest = size % 4
    value = 0x9747B28C ^ size
    for at in range(0, size - rest, 4):
        word = int.from_bytes(data[at : at + 4], "little") * 0x5BD1E995 & 0xFFFFFFFF
        word = (word ^ word >> 24) * 0x5BD1E995 & 0xFFFFFFFF
        value = value * 0x5BD1E995 & 0xFFFFFFFF ^ word
    if rest:
        value = (value ^ int.from_bytes(data[size - rest :], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return value ^ value >> 15


def murmur2_partition(key: bytes, partitions: int) -> int:
    """Apache Kafka's BuiltInPartitioner: the hash without its sign bit."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def crc32_partition(key: bytes, partitions: int) -> int:
    """librdkafka's `consistent` and `consistent_random`: zlib's CRC32, unsigned."""
    return zlib.crc32(key) % partitions


def unsigned_fnv1a_partition(key: bytes, partitions: int) -> int:
    """sarama's hash partitioner with unsigned sums (WithHashUnsigned)."""
    return fnv1a32(key) % partitions


def masked_fnv1a_partition(key: bytes, partitions: int) -> int:
    """sarama's and kafka-go's reference hash partitioners: FNV-1a without its sign bit."""
    return (fnv1a32(key) & 0x7FFFFFFF) % partitions


GOKAS = "Goka's partitioner (FNV-1a)"
OTHERS: Mapping[str, Callable[[bytes, int], int]] = {
    "murmur2 (the default of Java's clients)": murmur2_partition,
    "CRC32 (the default of librdkafka and what is built on it)": crc32_partition,
    "unsigned FNV-1a": unsigned_fnv1a_partition,
    "FNV-1a without its sign bit (the reference hash partitioner of Go's clients)": masked_fnv1a_partition,
}


class Misplaced(Struct, frozen=True):
    """Keys that do not lie in their partitions. `fitting` names the partitioners that put all of those there."""

    keys: int
    looked_at: int
    example: Placed
    expected: int
    fitting: tuple[str, ...]

    def sentence(self, topic: str, ours: str = GOKAS) -> str:
        key, partition = self.example
        text = key.decode("utf-8", "backslashreplace")
        text = text if len(text) <= 60 else f"{text[:57]}..."
        if self.fitting:
            whose = f"they lie where {' or '.join(self.fitting)} puts them"
        else:
            whose = (
                "no other known partitioner puts all of them there (several may have written them, or the topic's"
                " number of partitions was raised)"
            )
        return (
            f"keys of {topic!r} do not lie where {ours} puts them ({self.keys} of {self.looked_at} looked at),"
            f" for example {text!r} in partition {partition} and not {self.expected}; {whose}."
            f" What is stored for such a key is not found by joins, lookups and views: write the topic with {ours}"
        )


def judge(placed: Collection[Placed], partitions: int, hasher: Hasher = fnv1a32) -> Misplaced | None:
    """What is wrong with the places of these keys in a topic of so many partitions; None if nothing is."""
    wrong = [(key, partition) for key, partition in placed if partition_of(key, partitions, hasher) != partition]
    if not wrong:
        return None
    others = OTHERS if hasher is fnv1a32 else {GOKAS: partition_of, **OTHERS}
    fitting = tuple(
        name for name, other in others.items() if all(other(key, partitions) == partition for key, partition in wrong)
    )
    return Misplaced(len(wrong), len(placed), wrong[0], partition_of(wrong[0][0], partitions, hasher), fitting)


class KeyPlacement:
    """Looks at each input's first MOST_RECORDS records, for MOST_KEYS different keys spread over its partitions."""

    def __init__(
        self, partitions: Mapping[str, int], hasher: Hasher = fnv1a32, *, tell: Callable[[str], None] = log.warning
    ) -> None:
        self._hasher = hasher
        self._partitions = dict(partitions)
        self._seen: dict[str, dict[Placed, None]] = {topic: {} for topic in partitions}
        self._left = dict.fromkeys(partitions, MOST_RECORDS)
        self._tell = tell
        self._new = False

    def look(self, topic: str, partition: int, keys: Sequence[bytes | None]) -> None:
        """These keys were read; costs nothing once enough were."""
        seen = self._seen.get(topic)
        if seen is None:
            return
        room = max(FEWEST_PER_PARTITION, -(-MOST_KEYS // self._partitions[topic]))
        room -= sum(1 for _, place in seen if place == partition)
        left = self._left[topic]
        self._left[topic] -= len(keys)
        for key in keys[:left]:
            if room <= 0 or len(seen) >= MOST_KEYS:
                break
            if key is not None and (key, partition) not in seen:
                seen[key, partition] = None
                self._new = True
                room -= 1
        if len(seen) >= MOST_KEYS or len(keys) >= left:
            self._conclude(topic)
            self._seen.pop(topic, None)

    def drained(self) -> None:
        """No more records for now: what was seen so far is all there is to judge by."""
        if self._new:
            self._new = False
            for topic in list(self._seen):
                self._conclude(topic)

    def _conclude(self, topic: str) -> None:
        found = judge(self._seen[topic], self._partitions[topic], self._hasher)
        if found is not None:
            del self._seen[topic]
            self._tell(found.sentence(topic, GOKAS if self._hasher is fnv1a32 else "this group's own partitioner"))
