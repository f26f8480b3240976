import random

import pytest

from gokamsg.engine.hashing import Partitioner, fnv1a32, partition_of

COUNTS = (1, 3, 6, 8, 10, 12)
# key, unsigned sum, partition for each of COUNTS; made with Goka's own formula in Go.
VECTORS = [
    ("", 2166136261, (0, 0, 3, 3, 5, 3)),
    ("Alice", 752715143, (0, 2, 5, 7, 3, 11)),
    ("Bob", 3955990900, (0, 0, 0, 4, 6, 0)),
    ("Charlie", 800651745, (0, 0, 3, 1, 5, 9)),
    ("Dave", 927854591, (0, 2, 5, 7, 1, 11)),
    ("Eve", 3232163429, (0, 2, 5, 3, 7, 11)),
    ("Hello", 4116459851, (0, 2, 5, 5, 5, 5)),
    ("lunch", 3474912799, (0, 0, 3, 1, 7, 9)),
    ("together", 2726452527, (0, 1, 1, 1, 9, 1)),
    ("some-key", 1368613747, (0, 1, 1, 3, 7, 7)),
    ("a", 3826002220, (0, 0, 0, 4, 6, 0)),
    ("zü", 3803008546, (0, 0, 0, 6, 0, 6)),
    ("t°9e+her", 3703678283, (0, 2, 5, 5, 3, 5)),
    ("afjtjzd", 2147483648, (0, 2, 2, 0, 8, 8)),
]


@pytest.mark.parametrize(("key", "total", "partitions"), VECTORS)
@pytest.mark.goka("partitions: Goka's vectors")
def test_partitions_are_those_of_goka(key: str, total: int, partitions: tuple[int, ...]) -> None:
    data = key.encode()
    assert fnv1a32(data) == total
    assert tuple(partition_of(data, n) for n in COUNTS) == partitions
    assert tuple(Partitioner(n)(data) for n in COUNTS) == partitions


@pytest.mark.goka("partitions: the hash without a negative")
def test_the_value_without_a_negative_goes_where_goka_produces_it() -> None:
    assert {fnv1a32(b"afjtjzd"), fnv1a32(b"nyikjtf")} == {0x80000000}
    assert Partitioner(3)(b"nyikjtf") == 2


def test_remembered_partitions_are_the_computed_ones_and_their_number_is_bounded() -> None:
    partitioner = Partitioner(8)
    keys = [b"key-%d" % number for number in range(70_000)]
    first = [partitioner(key) for key in keys]
    sample = random.Random(1).sample(range(len(keys)), 2_000)
    assert all(partitioner(keys[i]) == first[i] == partition_of(keys[i], 8) for i in sample)
    assert len(partitioner.known) <= 1 << 16
    partitioner(b"x" * 10_000)
    assert b"x" * 10_000 not in partitioner.known


@pytest.mark.goka("partitions: sign rule for any hasher")
def test_another_hasher_keeps_goka_s_sign_rule() -> None:
    assert Partitioner(10, lambda _key: 0xFFFFFFFF)(b"any") == 1


def test_no_topic_has_no_partitions() -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        Partitioner(0)
