"""A table partition on its storages.

Invariants: a read sees the overlay, else the last committed value, wherever that row is kept at the moment; the storage
never holds anything uncommitted; its position never covers a row that it lacks; memory stays within its bounds.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random

import pytest

from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.sqlite import SQLiteStorage
from gokamsg.engine.storage import Storage
from gokamsg.errors import StateError
from tests.helpers import eventually

MakeTable = Callable[..., PartitionTable]


class Watched(SQLiteStorage):
    """Counts the reads that reach the file."""

    reads = 0

    def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return super().get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        self.reads += 1
        return super().get_many(keys)


def on_file(path: Path) -> Watched:
    return Watched(path / "t.0", topic_id="topic", boot_id="boot")


def table_on(storage: Storage, cache_bytes: int = 1 << 20) -> PartitionTable:
    return PartitionTable(storage, topic="t", partition=0, cache_bytes=cache_bytes)


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage = MemoryStorage() if request.param == "memory" else on_file(tmp_path)
    yield made
    made.close()


def numbered(first: int, last: int, value: bytes = b"value") -> dict[bytes, bytes | None]:
    return {b"key-%06d" % number: value for number in range(first, last)}


def test_a_transaction_sees_its_own_writes_and_nobody_else_does(storage: Storage) -> None:
    table = table_on(storage)
    table.apply({b"a": b"1", b"b": b"1"}, 2)
    table.put(b"a", b"2")
    table.delete(b"b")
    table.put(b"c", b"2")
    assert (table.get(b"a"), table.get(b"b"), table.get(b"c")) == (b"2", None, b"2")
    assert (table.committed(b"a"), table.committed(b"b"), table.committed(b"c")) == (b"1", b"1", None)
    assert (table.has(b"b"), table.has(b"c"), len(table)) == (False, True, 2)
    assert table.overlay == {b"a": b"2", b"b": None, b"c": b"2"}
    assert list(table.iterate()) == [(b"a", b"2"), (b"c", b"2")]
    table.flush()
    assert dict(storage.iterate()) == {b"a": b"1", b"b": b"1"}


def test_rolled_back_writes_never_happened(storage: Storage) -> None:
    table = table_on(storage)
    table.apply({b"a": b"1"}, 1)
    table.put(b"a", b"2")
    table.put(b"b", b"2")
    table.rollback()
    assert (table.get(b"a"), table.get(b"b"), table.overlay) == (b"1", None, {})
    table.close()
    assert storage.position() == 1


def test_committed_writes_reach_the_file_with_the_next_flush(tmp_path: Path) -> None:
    storage = on_file(tmp_path)
    table = table_on(storage)
    table.apply({b"a": b"1"}, 5)
    table.flush()
    table.put(b"a", b"2")
    table.commit()
    assert (table.get(b"a"), table.committed(b"a"), table.dirty_rows) == (b"2", b"2", 1)
    assert (storage.get(b"a"), table.overlay) == (b"1", {})
    table.flush()
    assert (storage.get(b"a"), storage.position(), table.dirty_rows) == (b"2", 5, 0)
    storage.close()


def test_a_position_is_stored_only_with_all_rows_below_it(storage: Storage) -> None:
    table = table_on(storage)
    table.put(b"a", b"1")
    table.commit(3)
    assert (table.position, storage.position()) == (3, None)
    table.put(b"b", b"1")
    table.commit()
    table.flush()
    assert (storage.position(), storage.get(b"b")) == (3, b"1")
    table.flush(9)
    assert (table.position, storage.position()) == (9, 9)
    table.flush(4)
    table.commit(2)
    assert (table.position, storage.position()) == (9, 9)
    table.apply({}, 12)
    table.flush()
    assert (table.position, storage.position()) == (12, 12)


@pytest.mark.goka("table: goes on from the stored position")
def test_a_table_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    table = table_on(on_file(tmp_path))
    assert table.position == 0
    table.apply(numbered(0, 100), 100)
    table.put(b"late", b"1")
    table.commit()
    table.put(b"uncommitted", b"1")
    table.close()
    again = table_on(on_file(tmp_path))
    assert (again.position, len(again), again.get(b"late"), again.get(b"uncommitted")) == (100, 101, b"1", None)
    again.close()


def test_applying_records_again_ends_in_the_same_table(storage: Storage) -> None:
    table = table_on(storage)
    table.apply({b"a": b"1"}, 1)
    table.apply({b"a": b"2", b"b": b"1"}, 3)
    table.apply({b"b": None}, 4)
    wanted = list(table.iterate())
    for changes, position in (({b"a": b"1"}, 1), ({b"a": b"2", b"b": b"1"}, 3), ({b"b": None}, 4)):
        table.apply(changes, position)
        table.flush()
    assert list(table.iterate()) == wanted == [(b"a", b"2")]


def test_iteration_merges_what_is_stored_and_what_is_not(storage: Storage) -> None:
    seed = 11
    chance, wanted = Random(seed), dict[bytes, bytes]()
    table = table_on(storage, cache_bytes=4_000)
    for step in range(60):
        changes: dict[bytes, bytes | None] = {
            b"%03d" % chance.randrange(300): chance.choice([None, b"%d" % step]) for _ in range(20)
        }
        for key, value in changes.items():
            wanted.pop(key, None)
            if value is not None:
                wanted[key] = value
        if step % 3 == 0:
            table.apply(changes, step)
        else:
            for key, value in changes.items():
                table.delete(key) if value is None else table.put(key, value)
            if step % 3 == 1 and step != 58:
                table.commit()
        if step % 5 == 0:
            table.flush()
        assert dict(table.iterate()) == {**wanted}, f"seed {seed}"
        table.commit()
    assert list(table.iterate(b"050", b"2")) == sorted(row for row in wanted.items() if b"050" <= row[0] < b"2")
    assert len(table) == len(wanted)
    assert all(table.get(b"%03d" % n) == table.committed(b"%03d" % n) == wanted.get(b"%03d" % n) for n in range(300))


def test_a_table_that_fits_the_cache_is_not_read_for_missing_keys(tmp_path: Path) -> None:
    storage = on_file(tmp_path)
    table = table_on(storage)
    table.apply(numbered(0, 1_000), 1_000)
    table.flush()
    table.prefetch([b"missing", b"key-000001"])
    assert [table.get(key) for key in (b"missing", b"key-000001", b"another")] == [None, b"value", None]
    table.close()
    assert storage.reads == 0

    storage = on_file(tmp_path)
    table = table_on(storage)
    assert table.get(b"missing") is None
    table.prefetch([b"other", b"key-000002"])
    assert (table.get(b"key-000999"), table.get(b"other"), storage.reads) == (b"value", None, 0)
    table.apply({b"key-000002": None, b"new": b"1"}, 1_002)
    table.flush()
    assert (table.get(b"key-000002"), table.get(b"new"), storage.reads) == (None, b"1", 0)
    table.close()


def test_a_batch_of_keys_is_read_at_once_even_if_they_do_not_exist(tmp_path: Path) -> None:
    table = table_on(on_file(tmp_path), cache_bytes=100_000)
    table.apply(numbered(0, 5_000, b"v" * 100), 5_000)
    table.close()
    storage = on_file(tmp_path)
    table = table_on(storage, cache_bytes=100_000)
    keys = [b"key-%06d" % number for number in range(0, 5_000, 100)] + [b"missing-%d" % number for number in range(20)]
    table.prefetch(keys)
    assert storage.reads == 1
    assert sum(table.get(key) is not None for key in keys) == 50
    assert storage.reads == 1
    assert table.get(b"key-000001") == b"v" * 100
    assert storage.reads == 2
    table.close()


def cached_bytes(table: PartitionTable) -> int:
    rows = [*table._cache.young.items(), *table._cache.old.items()]
    return sum(len(key) + len(value or b"") + 200 for key, value in rows)


def test_the_cache_is_bounded_and_what_is_not_stored_stays_in_memory(tmp_path: Path) -> None:
    seed = 3
    chance, limit = Random(seed), 50_000
    storage = on_file(tmp_path)
    table = table_on(storage, cache_bytes=limit)
    wanted: dict[bytes, bytes | None] = {}
    for step in range(200):
        changes = {b"k%d" % chance.randrange(2_000): chance.randbytes(chance.randrange(200)) for _ in range(30)}
        for key, value in changes.items():
            table.put(key, value)
        table.commit()
        wanted.update(changes)
        if step % 10 == 9:
            table.flush()
        for key in chance.sample(sorted(wanted), 20):
            assert table.get(key) == wanted[key] == table.committed(key), f"seed {seed}"
        assert table.get(b"never-%d" % step) is None
        assert cached_bytes(table) <= limit + 500, f"seed {seed}"
    assert storage.reads > 0
    assert dict(table.iterate()) == wanted
    table.close()


def test_rows_not_yet_stored_are_bounded_too(tmp_path: Path) -> None:
    storage = on_file(tmp_path)
    table = PartitionTable(storage, topic="t", partition=0, dirty_bytes=100_000)
    table.apply({}, 7)
    for number in range(2_000):
        table.put(b"%d" % number, b"x" * 100)
        table.commit()
        assert table.dirty_rows < 400
    assert (storage.position(), table.position) == (7, 7)
    assert len(storage) > 1_500
    table.close()


def test_discarded_a_table_is_empty_and_can_be_filled_again(storage: Storage) -> None:
    table = table_on(storage)
    table.apply(numbered(0, 10), 10)
    table.flush()
    table.apply({b"dirty": b"1"}, 11)
    table.put(b"open", b"1")
    table.discard()
    assert (table.position, len(table), table.get(b"dirty"), table.get(b"key-000001")) == (0, 0, None, None)
    table.apply({b"new": b"1"}, 40)
    table.flush()
    assert (storage.position(), list(storage.iterate())) == (40, [(b"new", b"1")])


class Refusing(MemoryStorage):
    """Fails to write, as a full disk does."""

    closed_clean: bool | None = None

    def write(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        raise StateError("local table 'x' cannot be written: the disk is full")

    def close(self, *, clean: bool = True) -> None:
        self.closed_clean = clean


def test_a_write_that_fails_is_told_and_nothing_is_vouched_for() -> None:
    storage = Refusing()
    table = table_on(storage)
    table.apply({b"a": b"1"}, 1)
    with pytest.raises(StateError, match="disk is full"):
        table.flush()
    assert (table.get(b"a"), table.dirty_rows, storage.position()) == (b"1", 1, None)
    with pytest.raises(StateError, match="disk is full"):
        table.close()
    assert storage.closed_clean is False


def test_a_write_that_fails_behind_its_owner_is_told_at_the_next_one(tmp_path: Path) -> None:
    for then in (PartitionTable.flush, PartitionTable.close, PartitionTable.discard):
        storage = SQLiteStorage(tmp_path / then.__name__, topic_id="topic", boot_id="boot")
        table = table_on(storage)
        storage._run("PRAGMA max_page_count=20")
        table.apply({b"%d" % number: b"x" * 1_000 for number in range(500)}, 500)
        table.flush()
        assert table.dirty_rows == 0
        table._position = 501  # something to flush; a commit would notice the failure, or not, as time goes
        with pytest.raises(StateError, match="disk is full"):
            then(table)
        storage.close(clean=False)


def test_a_write_that_fails_is_told_when_nothing_else_is_written(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "table", topic_id="topic", boot_id="boot")
    table = table_on(storage)
    storage._run("PRAGMA max_page_count=20")
    table.apply({b"%d" % number: b"x" * 1_000 for number in range(500)}, 500)
    table.flush()
    write = table._write
    assert write is not None
    eventually("the write has ended", lambda: write.done)
    with pytest.raises(StateError, match="disk is full"):
        table.check_write()
    storage.close(clean=False)


def test_other_threads_read_committed_values_while_the_owner_writes(tmp_path: Path) -> None:
    """Each reader sees a key's values only ever grow, whether the row is dirty, cached, evicted or stored."""
    seed = 5
    chance = Random(seed)
    table = table_on(on_file(tmp_path), cache_bytes=20_000)
    keys = [b"k%d" % number for number in range(60)]
    table.apply(dict.fromkeys(keys, b"0"), 1)
    done = threading.Event()
    wrong: list[tuple[bytes, int, int]] = []

    def read() -> None:
        last = dict.fromkeys(keys, 0)
        while not done.is_set():
            for key in keys:
                now = int(table.committed(key) or -1)
                if now < last[key]:
                    wrong.append((key, last[key], now))
                last[key] = now

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(1, 400):
        for key in chance.sample(keys, 10):
            table.put(key, b"%d" % step)
            table.get(chance.choice(keys))
        table.commit()
        table.apply({b"filler%d" % chance.randrange(500): b"x" * 300 for _ in range(5)}, step)
        if step % 7 == 0:
            table.flush()
    done.set()
    for reader in readers:
        reader.join()
    table.close()
    assert wrong == [], f"seed {seed}"
