"""Contracts written once and run on every implementation. A test class inherits one and says how to make the thing."""

from collections.abc import Callable
from random import Random

import pytest

from gokamsg.engine.storage import Storage, prefix_limit

OpenStorage = Callable[[], Storage]


class StorageContract:
    """What engine/storage.py promises of every storage. `open_storage` opens one and the same place each time."""

    @pytest.fixture
    def open_storage(self) -> OpenStorage:
        raise AssertionError("the class under test provides open_storage")

    @pytest.fixture
    def storage(self, open_storage: OpenStorage) -> Storage:
        return open_storage()

    def test_a_new_storage_is_empty_and_has_no_position(self, storage: Storage) -> None:
        assert storage.position() is None
        assert len(storage) == 0
        assert list(storage.iterate()) == []
        assert storage.get(b"any") is None
        assert not storage.has(b"any")
        assert storage.get_many([b"any"]) == {}

    @pytest.mark.goka("storage: value and position together")
    def test_rows_and_position_are_written_together(self, storage: Storage) -> None:
        storage.write({b"a": b"1", b"b": b"2", b"never": None}, 7)
        assert (storage.get(b"a"), storage.get(b"b"), storage.get(b"never")) == (b"1", b"2", None)
        assert storage.has(b"a")
        assert storage.position() == 7
        storage.write({b"a": None, b"b": b"3"}, 9)
        assert (storage.get(b"a"), storage.get(b"b"), storage.position(), len(storage)) == (None, b"3", 9, 1)
        assert not storage.has(b"a")
        storage.write({}, 11)
        assert (storage.position(), len(storage)) == (11, 1)

    def test_any_bytes_are_keys_and_values(self, storage: Storage) -> None:
        rows = {key: bytes(reversed(key)) for key in (b"", b"\x00", b"a\x00b", b"\xff", b"\xff\xff", b"'\"%?", b"key")}
        rows[b"big"] = b"\x00\xff" * 500_000
        storage.write(rows, 1)
        assert storage.get_many([*rows, b"missing"]) == rows
        assert dict(storage.iterate()) == rows
        assert storage.get(b"") == b""

    @pytest.mark.goka("storage: half-open ranges in byte order")
    def test_rows_come_in_byte_order_within_half_open_bounds(self, storage: Storage) -> None:
        keys = [b"", b"A", b"B", b"a", b"a\x00", b"aa", b"ab", b"b", "ü".encode(), b"\xff", b"\xff\xff"]
        storage.write(dict.fromkeys(reversed(keys), b"v"), 1)
        assert [key for key, _ in storage.iterate()] == keys
        assert [key for key, _ in storage.iterate(b"a", b"ab")] == [b"a", b"a\x00", b"aa"]
        assert [key for key, _ in storage.iterate(start=b"b")] == keys[7:]
        assert [key for key, _ in storage.iterate(limit=b"B")] == [b"", b"A"]
        assert list(storage.iterate(b"b", b"b")) == list(storage.iterate(b"z", b"a")) == []
        assert [key for key, _ in storage.iterate(b"a", prefix_limit(b"a"))] == [b"a", b"a\x00", b"aa", b"ab"]
        assert [key for key, _ in storage.iterate(b"\xff", prefix_limit(b"\xff"))] == [b"\xff", b"\xff\xff"]

    def test_rows_may_be_written_while_they_are_read(self, storage: Storage) -> None:
        storage.write({b"%05d" % number: b"old" for number in range(5_000)}, 1)
        seen: list[bytes] = []
        for number, (key, _value) in enumerate(storage.iterate()):
            seen.append(key)
            if number % 500 == 0:
                storage.write(
                    {b"%05d" % (number + 400): None, b"%05d" % number: b"new", b"x%05d" % number: b""}, number
                )
        assert seen == sorted(set(seen))
        assert {b"%05d" % number for number in range(5_000) if number % 500 != 400} <= set(seen)

    def test_many_rows_of_random_changes_are_what_a_dictionary_holds(self, storage: Storage) -> None:
        seed = 20
        chance, wanted = Random(seed), dict[bytes, bytes]()
        for position in range(1, 25):
            changes: dict[bytes, bytes | None] = {}
            for _ in range(chance.choice([0, 1, 3, 1_000, 9_000])):
                key = b"key-%d" % chance.randrange(12_000)
                changes[key] = None if chance.random() < 0.3 else chance.randbytes(chance.randrange(40))
            storage.write(changes, position)
            for key, value in changes.items():
                if value is None:
                    wanted.pop(key, None)
                else:
                    wanted[key] = value
        assert list(storage.iterate()) == sorted(wanted.items()), f"seed {seed}"
        assert len(storage) == len(wanted)
        sample = [b"key-%d" % number for number in range(0, 12_000, 3)]
        assert storage.get_many(sample) == {key: wanted[key] for key in sample if key in wanted}
        assert storage.get_many(iter(sample[:5])) == {key: wanted[key] for key in sample[:5] if key in wanted}
        assert storage.size_bytes() >= sum(len(key) + len(value) for key, value in wanted.items())

    def test_cleared_it_is_as_new(self, storage: Storage) -> None:
        storage.write({b"a": b"1"}, 5)
        storage.clear()
        assert (storage.get(b"a"), storage.position(), len(storage)) == (None, None, 0)
        storage.write({b"b": b"2"}, 1)
        assert list(storage.iterate()) == [(b"b", b"2")]

    def test_discarded_it_is_gone(self, open_storage: OpenStorage) -> None:
        storage = open_storage()
        storage.write({b"a": b"1"}, 5)
        storage.discard()
        again = open_storage()
        assert (again.position(), len(again)) == (None, 0)
