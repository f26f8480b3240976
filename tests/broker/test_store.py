"""The data file: atomic units, group commit, refusal of files that are not ours."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gokamsg.broker import schema
from gokamsg.broker.store import Store, StoreError
from gokamsg.errors import StateError


def with_store(path: Path, work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        store = Store.open(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_unit_is_there_after_reopening(tmp_path: Path) -> None:
    async def write(store: Store) -> None:
        unit = store.unit()
        unit.put("a", "k1", b"1")
        unit.put("a", "k2", b"2")
        unit.put("b", "k1", b"other space")
        await store.commit(unit)
        unit = store.unit()
        unit.delete("a", "k1")
        unit.put("a", "k2", b"two")
        await store.commit(unit)

    async def read(store: Store) -> list[tuple[str, bytes]]:
        return list(store.scan("a"))

    with_store(tmp_path / "db", write)
    assert with_store(tmp_path / "db", read) == [("k2", b"two")]


def test_units_are_applied_in_the_order_of_commits(tmp_path: Path) -> None:
    seen: list[int] = []

    class Note:
        def __init__(self, number: int) -> None:
            self.number = number

        def apply(self) -> None:
            seen.append(self.number)

    async def work(store: Store) -> None:
        futures = []
        for number in range(200):
            unit = store.unit()
            unit.put("n", str(number), b"")
            unit.then(Note(number))
            futures.append(store.commit(unit))
        assert seen == []  # nothing is visible before it is durable
        await futures[-1]
        assert seen == list(range(200))
        assert all(future.done() for future in futures)

    with_store(tmp_path / "db", work)


def test_unit_that_cannot_be_written_leaves_nothing_and_stops_the_store(tmp_path: Path) -> None:
    """All or nothing; and after a failed write nothing more is accepted."""
    failures: list[StoreError] = []

    async def work(store: Store) -> None:
        store.on_failure = failures.append
        unit = store.unit()
        unit.put("a", "k", b"1")
        unit.ops.append(("INSERT INTO no_such_table VALUES (1)", ()))
        later = store.unit()
        later.put("a", "later", b"2")
        first, second = store.commit(unit), store.commit(later)
        with pytest.raises(StoreError, match=r"cannot write .*no_such_table"):
            await first
        with pytest.raises(StoreError):
            await second
        with pytest.raises(StoreError):
            await store.commit(store.unit())

    async def read(store: Store) -> list[tuple[str, bytes]]:
        return list(store.scan("a"))

    with_store(tmp_path / "db", work)
    assert len(failures) == 1
    assert with_store(tmp_path / "db", read) == []


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for number in range(50):
            unit = store.unit()
            unit.put("n", f"{number:03d}", b"")
            store.commit(unit)

    async def read(store: Store) -> int:
        return len(list(store.scan("n")))

    with_store(tmp_path / "db", work)
    assert with_store(tmp_path / "db", read) == 50


def test_write_ahead_log_stays_bounded(tmp_path: Path) -> None:
    async def work(store: Store) -> int:
        for number in range(60):
            unit = store.unit()
            unit.put("n", str(number), bytes(1 << 20))
            unit.rows.append((number, number, 0, 0, -1, -1, -1, 0, bytes(1 << 20)))
            await store.commit(unit)
        return (tmp_path / "db-wal").stat().st_size

    assert with_store(tmp_path / "db", work) < 64 << 20


def test_the_log_stays_small_while_there_is_always_a_reader(tmp_path: Path) -> None:
    """Under a reader the log cannot be begun anew; it grew until a moment without one happened to come."""
    path, stop = tmp_path / "db", threading.Event()

    def read(store: Store) -> None:
        with closing(store.reader()) as one, closing(store.reader()) as other:
            one.execute("BEGIN")
            one.execute("SELECT count(*) FROM records").fetchone()
            while not stop.wait(0.004):  # so long does one read what was there before the last writes
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM records").fetchone()
                one.execute("COMMIT")
                one, other = other, one

    async def run() -> int:
        store = Store.open(path, wal_checkpoint_bytes=4 << 20)
        reader = threading.Thread(target=read, args=(store,))
        largest = 0
        try:
            reader.start()
            for number in range(240):
                unit = store.unit()
                unit.rows.append((number, number, 0, 0, -1, -1, -1, 0, bytes(256 << 10)))
                await store.commit(unit)
                largest = max(largest, path.with_name("db-wal").stat().st_size)
        finally:
            stop.set()
            reader.join()
            await store.close()
        return largest

    assert asyncio.run(run()) < 20 << 20  # of 60 MB


@pytest.mark.parametrize("content", [b"not a database at all " * 100, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_damaged_file_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "db"
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        schema.open_writer(path, fsync=True)
    assert path.read_bytes() == content


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StateError, match="belongs to another program"):
        schema.open_writer(path, fsync=True)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    schema.open_writer(path, fsync=True).close()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StateError, match="format 99, written by a newer gokamsg"):
        schema.open_writer(path, fsync=True)


@pytest.mark.parametrize(("fsync", "level"), [(True, 2), (False, 1)])
def test_every_commit_is_synced_unless_told_otherwise(tmp_path: Path, fsync: bool, level: int) -> None:
    connection = schema.open_writer(tmp_path / "db", fsync=fsync)
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == level
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    connection.close()
