import random

import pytest
from kafka.partitioner import default as kafka_python

from gokamsg.engine.hashing import partition_of
from gokamsg.engine.partitioning import (
    MOST_KEYS,
    MOST_RECORDS,
    OTHERS,
    KeyPlacement,
    crc32_partition,
    judge,
    masked_fnv1a_partition,
    murmur2,
    murmur2_partition,
    unsigned_fnv1a_partition,
)

KEYS = [f"user {number}".encode() for number in range(1000)]


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"abc", 479470107),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_murmur2_is_the_one_of_apache_kafka(key: bytes, signed: int) -> None:
    """The values that Apache Kafka's own tests expect."""
    assert murmur2(key) == signed % 2**32


def test_murmur2_partitions_are_those_of_kafka_python(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        key, partitions = rng.randbytes(rng.randrange(20)), rng.randrange(1, 50)
        assert murmur2_partition(key, partitions) == (kafka_python.murmur2(key) & 0x7FFFFFFF) % partitions


def test_crc32_and_fnv1a_partitions() -> None:
    """CRC32's check value; the FNV-1a rows are the document's example of three rules that differ."""
    assert crc32_partition(b"123456789", 2**32) == 0xCBF43926
    rules = (partition_of, unsigned_fnv1a_partition, masked_fnv1a_partition)
    assert [rule(b"Hello", 8) for rule in rules] == [5, 3, 3]
    assert [rule(b"Bob", 6) for rule in rules] == [0, 4, 2]


def test_keys_in_gokas_partitions_are_no_finding() -> None:
    assert judge([(key, partition_of(key, 8)) for key in KEYS], 8) is None
    assert judge([(key, 0) for key in KEYS], 1) is None
    assert judge([], 8) is None


@pytest.mark.parametrize("name", OTHERS)
def test_the_partitioner_that_fits_is_named(name: str) -> None:
    # Of six partitions: with eight, a power of two, unsigned and masked sums give the same.
    placed = [(key, OTHERS[name](key, 6)) for key in KEYS[:60]]
    found = judge(placed, 6)
    assert found is not None
    assert found.fitting == (name,)
    assert found.keys == sum(partition_of(key, 6) != partition for key, partition in placed)
    assert f"({found.keys} of 60 looked at)" in found.sentence("events")
    assert name in found.sentence("events")


def test_a_few_keys_of_another_writer_are_found_among_gokas() -> None:
    placed = [(key, partition_of(key, 8)) for key in KEYS[:80]]
    placed += [(key, murmur2_partition(key, 8)) for key in KEYS[80:100]]
    found = judge(placed, 8)
    assert found is not None
    assert [name.split(" ")[0] for name in found.fitting] == ["murmur2"]
    assert found.keys <= 20


def test_places_that_nobody_gives_are_said_to_be_nobodys() -> None:
    found = judge([(key, (partition_of(key, 8) + 1) % 8) for key in KEYS[:50]], 8)
    assert found is not None
    assert found.fitting == ()
    assert "no other known partitioner" in found.sentence("events")


def _watch(partitions: int = 8) -> tuple[KeyPlacement, list[str]]:
    said: list[str] = []
    return KeyPlacement({"events": partitions}, tell=said.append), said


def _by_partition(keys: list[bytes], partitions: int) -> dict[int, list[bytes | None]]:
    found: dict[int, list[bytes | None]] = {}
    for key in keys:
        found.setdefault(murmur2_partition(key, partitions), []).append(key)
    return found


def test_a_warning_comes_once_per_topic_when_enough_was_seen() -> None:
    watch, said = _watch()
    for _ in range(3):
        for partition, keys in _by_partition(KEYS, 8).items():
            watch.look("events", partition, keys)
            watch.look("loop", partition, keys)  # not an input: nobody asks
    assert len(said) == 1
    assert f"of {MOST_KEYS} looked at" in said[0]
    watch.drained()
    assert len(said) == 1


def test_of_a_small_topic_the_warning_comes_when_it_is_read() -> None:
    watch, said = _watch()
    watch.look("events", murmur2_partition(b"Bob", 8), [None, b"Bob", b"Bob"])
    assert said == []
    watch.drained()
    (sentence,) = said
    assert "(1 of 1 looked at)" in sentence
    assert f"'Bob' in partition {murmur2_partition(b'Bob', 8)} and not 4" in sentence
    watch.drained()
    assert len(said) == 1


def test_one_partition_does_not_use_up_the_sample() -> None:
    """The wrong keys come last, after more than enough good ones in partition 0."""
    watch, said = _watch()
    watch.look("events", 0, [key for key in KEYS if partition_of(key, 8) == 0])
    watch.look("events", 3, [key for key in KEYS if partition_of(key, 8) == 5][:7])
    watch.drained()
    assert len(said) == 1
    assert "(7 of " in said[0]


def test_a_group_with_another_hasher_is_told_of_gokas_keys() -> None:
    said: list[str] = []
    watch = KeyPlacement({"events": 8}, lambda key: murmur2(key) & 0x7FFFFFFF, tell=said.append)
    watch.look("events", murmur2_partition(b"Bob", 8), [b"Bob"])
    watch.drained()
    assert said == []
    for key in KEYS[:50]:
        watch.look("events", partition_of(key, 8), [key])
    watch.drained()
    assert len(said) == 1
    assert "do not lie where this group's own partitioner puts them" in said[0]
    assert "they lie where Goka's partitioner (FNV-1a) puts them" in said[0]


def test_a_topic_of_few_keys_is_not_looked_at_for_ever() -> None:
    watch, said = _watch()
    for _ in range(MOST_RECORDS // 100):
        watch.look("events", 4, [b"Bob"] * 100)
    watch.look("events", 0, [b"Bob"])
    watch.drained()
    assert said == []


def test_good_keys_are_looked_at_until_enough_were_seen() -> None:
    watch, said = _watch()
    for key in KEYS[:50]:
        watch.look("events", partition_of(key, 8), [key])
        watch.drained()
    watch.look("events", 0, [b"Bob"])
    watch.drained()
    assert len(said) == 1
    assert "(1 of 51 looked at)" in said[0]
