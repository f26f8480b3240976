"""Storages: the contract on each, and what only a file can suffer.

Invariants of a file: after kill -9 at any moment its position covers only rows that are in it; a file that may have
lost pages in a power failure, or is damaged or foreign, is empty when opened; what cannot be used is told in one
StateError sentence; no thread outlives its storage.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gokamsg.engine.late_storage import LateStorage
from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.sqlite import SQLiteStorage, boot_id
from gokamsg.engine.storage import Storage, prefix_limit
from gokamsg.errors import StateError
from tests.contracts import OpenStorage, StorageContract

ROWS = {b"%06d" % number: b"value %d" % number for number in range(3_000)}


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def open_storage(self) -> OpenStorage:
        return MemoryStorage


class TestSQLiteStorage(StorageContract):
    @pytest.fixture
    def open_storage(self, tmp_path: Path) -> Iterator[OpenStorage]:
        opened: list[Storage] = []

        def open_it() -> Storage:
            opened.append(SQLiteStorage.open(tmp_path / "state" / "t.0", topic_id="topic", boot_id="boot"))
            return opened[-1]

        yield open_it
        for storage in opened:
            storage.close()

    def test_closed_and_opened_it_holds_the_same(self, open_storage: OpenStorage) -> None:
        for round_number in range(3):
            storage = open_storage()
            assert storage.position() == (round_number or None)
            storage.write({b"round": b"%d" % round_number}, round_number + 1)
            storage.close()
            storage.close()
        assert list(open_storage().iterate()) == [(b"round", b"2")]


class TestLateStorage(StorageContract):
    @pytest.fixture
    def open_storage(self, tmp_path: Path) -> Iterator[OpenStorage]:
        opened: list[Storage] = []

        def open_it() -> Storage:
            opened.append(LateStorage(lambda: SQLiteStorage(tmp_path / "t.0", topic_id="topic", boot_id="boot")))
            return opened[-1]

        yield open_it
        for storage in opened:
            storage.close()

    def test_there_is_no_file_before_the_first_row(self, tmp_path: Path, open_storage: OpenStorage) -> None:
        PartitionTable(open_storage(), topic="t", partition=0).close()
        assert list(tmp_path.iterdir()) == []
        table = PartitionTable(open_storage(), topic="t", partition=0)
        table.put(b"key", b"value")
        table.commit(1)
        assert list(tmp_path.iterdir()) == []
        table.close()
        assert what_it_holds(tmp_path / "t.0") == (1, 1)

    def test_rows_of_another_changelog_are_not_found(self, tmp_path: Path, open_storage: OpenStorage) -> None:
        filled(tmp_path / "t.0", clean=True)
        storage = open_storage()
        assert (storage.position(), len(storage), storage.get(b"000001")) == (None, 0, None)
        storage.write({b"new": b"1"}, 1)
        assert list(storage.iterate()) == [(b"new", b"1")]

    def test_why_the_file_cannot_be_made_is_told_by_the_first_write(
        self, tmp_path: Path, open_storage: OpenStorage
    ) -> None:
        storage = open_storage()
        (tmp_path / "t.0").mkdir()
        with pytest.raises(StateError, match=r"t\.0'"):
            storage.write({b"key": b"value"}, 1)


def open_file(path: Path, *, topic_id: str = "topic", boot: str | None = "boot") -> SQLiteStorage:
    return SQLiteStorage(path, topic_id=topic_id, boot_id=boot)


def filled(path: Path, *, clean: bool, boot: str | None = "boot") -> None:
    storage = open_file(path, boot=boot)
    storage.write(dict(ROWS), 3_000)
    storage.close(clean=clean)


def what_it_holds(path: Path, *, topic_id: str = "topic", boot: str | None = "boot") -> tuple[int | None, int]:
    storage = open_file(path, topic_id=topic_id, boot=boot)
    try:
        return storage.position(), len(storage)
    finally:
        storage.close(clean=False)


KEPT, REBUILT = (3_000, 3_000), (None, 0)


@pytest.mark.parametrize(
    ("clean", "boot", "next_boot", "wanted"),
    [
        (True, "boot", "boot", KEPT),
        (True, "boot", "another", KEPT),
        (True, None, None, KEPT),
        (False, "boot", "boot", KEPT),
        (False, "boot", "another", REBUILT),
        (False, "boot", None, REBUILT),
        (False, None, None, REBUILT),
        (False, None, "boot", REBUILT),
    ],
)
def test_an_unclean_file_is_trusted_only_within_its_boot(
    tmp_path: Path, clean: bool, boot: str | None, next_boot: str | None, wanted: tuple[int | None, int]
) -> None:
    filled(tmp_path / "t.0", clean=clean, boot=boot)
    assert what_it_holds(tmp_path / "t.0", boot=next_boot) == wanted


def test_the_first_write_takes_the_mark_of_a_clean_file_away(tmp_path: Path) -> None:
    path = tmp_path / "t.0"
    filled(path, clean=True)
    assert what_it_holds(path, boot="second") == KEPT
    # Only read so far: still clean for a third boot.
    storage = open_file(path, boot="third")
    storage.write({b"more": b"1"}, 3_001)
    storage.close(clean=False)
    assert what_it_holds(path, boot="third") == (3_001, 3_001)
    assert what_it_holds(path, boot="fourth") == REBUILT


def test_this_machine_names_its_boot() -> None:
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        pytest.skip("not Linux")
    assert boot_id() == boot_id() != None  # noqa: E711


def test_a_file_of_another_topic_starts_empty(tmp_path: Path) -> None:
    filled(tmp_path / "t.0", clean=True)
    assert what_it_holds(tmp_path / "t.0", topic_id="made anew") == REBUILT


@pytest.mark.parametrize("number", [0, 99, "1", None])
def test_a_file_of_another_format_starts_empty_and_says_so(
    tmp_path: Path, number: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.0"
    filled(path, clean=True)
    assert caplog.messages == []
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (number,))
    connection.commit()
    connection.close()
    assert what_it_holds(path) == REBUILT
    assert caplog.messages == [
        f"local table {str(path)!r} is filled again from Kafka: it has another format than this version writes"
    ]


@pytest.mark.parametrize("was_clean", [True, False])
def test_after_a_power_failure_no_torn_or_old_page_is_believed(tmp_path: Path, was_clean: bool, seed: int) -> None:
    """Pages, log and marks as a disk may hold them that got some writes and missed others: with the mark of a clean
    file gone, whatever mixture of old, new and torn pages there is, the file is filled again under the next boot."""
    rng = Random(seed)
    path = tmp_path / "t.0"
    filled(path, clean=was_clean)
    old = path.read_bytes()
    storage = open_file(path)
    storage.write({key: b"later " + value for key, value in ROWS.items()}, 6_000)
    storage.write({b"more %d" % number: b"x" * 300 for number in range(2_000)}, 8_000)
    new, log = path.read_bytes(), path.with_name("t.0-wal").read_bytes()
    assert not (tmp_path / "t.0.clean").exists()
    storage.close(clean=False)
    for _ in range(20):
        pages = []
        for at in range(0, max(len(old), len(new)), 8192):
            page = rng.choice((old, new))[at : at + 8192] or new[at : at + 8192]
            torn = rng.randrange(0, 8192, 512)
            pages.append(page if rng.random() < 0.9 else new[at : at + torn] + page[torn:])
        path.write_bytes(b"".join(pages))
        path.with_name("t.0-wal").write_bytes(log[: rng.randrange(len(log) + 1)])
        path.with_name("t.0-shm").unlink(missing_ok=True)
        assert what_it_holds(path, boot="after the failure") == REBUILT
        path.unlink()


def test_somebody_else_s_database_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.0"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
    connection.close()
    assert what_it_holds(path) == REBUILT


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("damage", ["empty", "half", "a page less", "garbage", "garbage at the head", "one byte"])
@pytest.mark.goka("table: rebuilt when it is lost, damaged or ahead")
def test_a_damaged_file_starts_empty(tmp_path: Path, damage: str, clean: bool) -> None:
    path = tmp_path / "t.0"
    filled(path, clean=clean)
    whole = path.read_bytes()
    noise = Random(1).randbytes(len(whole))
    path.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "a page less": whole[:-8192],
            "garbage": noise,
            "garbage at the head": noise[:8192] + whole[8192:],
            "one byte": b"x",
        }[damage]
    )
    assert what_it_holds(path) == REBUILT
    filled(path, clean=True)
    assert what_it_holds(path) == KEPT


def test_damage_that_shows_later_is_told_and_the_file_is_removed(tmp_path: Path) -> None:
    """A page is only found bad when it is read: nothing hangs, and the next start fills the file again."""
    path = tmp_path / "t.0"
    filled(path, clean=True)
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] + Random(2).randbytes(len(whole) - half))
    storage = open_file(path)
    with pytest.raises(StateError, match=r"t\.0' cannot be read: it is damaged .*filled again from Kafka"):
        list(storage.iterate())
    with pytest.raises(StateError, match="is closed"):
        storage.write({b"a": b"b"}, 1)
    storage.close()
    assert list(tmp_path.iterdir()) == []
    assert what_it_holds(path) == REBUILT


def test_a_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.0"
    storage = open_file(path)
    storage.write({b"a": b"1"}, 1)
    script = (
        "import sys; from gokamsg.engine.sqlite import SQLiteStorage; "
        "SQLiteStorage(sys.argv[1], topic_id='topic', boot_id='boot')"
    )
    other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "StateError: local table" in other.stderr
    assert "another process uses it; stop that process, or use another --state-dir" in other.stderr
    with pytest.raises(StateError, match="another process uses it"):
        open_file(path, topic_id="not even to empty it")
    storage.write({b"b": b"2"}, 2)
    storage.close()
    assert what_it_holds(path) == (2, 2)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"t\.0' cannot be opened: .*use another --state-dir"):
        open_file(tmp_path / "file" / "t.0")
    (tmp_path / "t.1").mkdir()
    with pytest.raises(StateError, match=r"t\.1' cannot be opened"):
        open_file(tmp_path / "t.1")


@pytest.fixture
def _not_root() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.usefixtures("_not_root")
def test_a_place_without_permission_is_told() -> None:
    with pytest.raises(StateError, match=r"cannot be opened: .*[Pp]ermission.*use another --state-dir"):
        open_file(Path("/not-ours/t.0"))


def test_a_read_only_file_is_told_and_left_as_it_is() -> None:
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is root's alone
        path = Path(directory, "t.0")
        os.chmod(directory, 0o777)
        try:
            if root:
                os.seteuid(65_534)
            filled(path, clean=True)
            path.chmod(0o400)
            before = path.read_bytes()
            with pytest.raises(StateError, match=r"t\.0' cannot be opened: .*denied.*use another --state-dir"):
                open_file(path)
            assert path.read_bytes() == before
        finally:
            if root:
                os.seteuid(0)


def test_a_full_disk_is_told_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "t.0"
    storage = open_file(path)
    storage.write({b"a": b"1"}, 1)
    storage._run("PRAGMA max_page_count=20")
    with pytest.raises(StateError, match=r"cannot be written: the disk is full; make room"):
        storage.write({b"%d" % number: b"x" * 1_000 for number in range(1_000)}, 2)
    storage.close()
    assert what_it_holds(path) == REBUILT


LIMITED = """
import resource, signal, sys
from gokamsg.engine.sqlite import SQLiteStorage
from gokamsg.errors import StateError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage = SQLiteStorage(sys.argv[1], topic_id="topic", boot_id="boot")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    for position in range(100):
        storage.write({b"%d-%d" % (position, n): b"x" * 300 for n in range(1000)}, position)
except StateError as error:
    print("told:", error)
storage.close()
"""


def test_writes_that_the_system_refuses_are_told(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "t.0")], capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    assert run.stdout.startswith("told: local table")
    assert run.returncode == 0
    assert what_it_holds(tmp_path / "t.0") == REBUILT


WRITER = """
import sys
from gokamsg.engine.sqlite import SQLiteStorage
storage = SQLiteStorage(sys.argv[1], topic_id="topic", boot_id="boot")
position = storage.position() or 0
print("open", flush=True)
while True:
    # Offset n sets key n and, to have removals too, takes key n - 5 away if n is a multiple of seven.
    changes = {}
    for offset in range(position, position + 3000):
        changes[b"%09d" % offset] = b"%d" % offset + b"x" * 300
        if offset % 7 == 0:
            changes[b"%09d" % (offset - 5)] = None
    position += 3000
    storage.write(changes, position)
    print(position, flush=True)
"""


def test_killed_while_it_writes_a_file_never_claims_rows_that_it_lacks(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    chance = Random(seed)
    path = tmp_path / "t.0"
    known = 0
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randrange(1, 8)):
                line = writer.stdout.readline()
            killer = threading.Timer(chance.random() * 0.03, writer.send_signal, [signal.SIGKILL])
            killer.start()
            lines = [line, *writer.stdout]
            killer.join()
        told = max((int(line) for line in lines if line.strip().isdigit()), default=0)
        storage = open_file(path)
        position = storage.position() or 0
        gone = {offset - 5 for offset in range(position) if offset % 7 == 0}
        wanted = [b"%09d" % offset for offset in range(position) if offset not in gone]
        assert [key for key, _ in storage.iterate(limit=b"%09d" % position)] == wanted, f"seed {seed}"
        assert position >= max(told, known), f"seed {seed}"
        known = position
        storage.close(clean=False)
    assert known > 0


def test_other_threads_may_read_while_the_owner_writes(tmp_path: Path) -> None:
    storage = open_file(tmp_path / "t.0")
    storage.write({b"fixed": b"value", b"moving": b"0"}, 0)
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        before = 0
        while not done.is_set():
            now = int(storage.get(b"moving") or -1)
            if storage.get(b"fixed") != b"value" or now < before:
                wrong.append((before, now))
            before = now

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for position in range(1, 60):
        changes: dict[bytes, bytes | None] = {b"%d" % number: b"x" * 100 for number in range(500)}
        storage.write({**changes, b"moving": b"%d" % position}, position)
    done.set()
    for reader in readers:
        reader.join()
    storage.close()
    assert wrong == []


def test_a_failed_write_is_told_to_its_writer_whoever_else_reads(tmp_path: Path) -> None:
    """sqlitedict hands an error to the next caller of any thread; a writer who missed it would believe in its rows."""
    for number in range(15):
        storage = open_file(tmp_path / f"t.{number}")
        done = threading.Event()

        def read(storage: SQLiteStorage = storage, done: threading.Event = done) -> None:
            with contextlib.suppress(StateError):
                while not done.is_set():
                    storage.get(b"a")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        storage._run("PRAGMA max_page_count=20")
        with pytest.raises(StateError, match="the disk is full"):
            storage.write({b"%d" % key: b"x" * 1_000 for key in range(500)}, 1)
        done.set()
        for reader in readers:
            reader.join()
        storage.close()


def test_reads_come_after_a_write_that_goes_on_by_itself(tmp_path: Path) -> None:
    storage = open_file(tmp_path / "t.0")
    for number in range(1, 6):
        rows: dict[bytes, bytes | None] = dict.fromkeys(ROWS, b"%d" % number)
        rows[b"000000"] = None if number % 2 else b"even"
        write = storage.begin_write(rows, number)
        assert (storage.get(b"002999"), storage.get(b"000000")) == (b"%d" % number, rows[b"000000"])
        assert len(storage.get_many(ROWS)) == len(storage) == len(ROWS) - number % 2
        assert (write.done, storage.position()) == (True, number)
        write.wait()
    storage.close()
    assert what_it_holds(tmp_path / "t.0") == (5, len(ROWS) - 1)


def test_what_is_read_after_a_failed_write_is_not_taken_for_what_was_written(tmp_path: Path) -> None:
    storage = open_file(tmp_path / "t.0")
    storage.write({b"a": b"old"}, 1)
    storage._run("PRAGMA max_page_count=20")
    write = storage.begin_write({b"a": b"new", **{b"%d" % key: b"x" * 1_000 for key in range(500)}}, 2)
    with pytest.raises(StateError, match="cannot be written: the disk is full"):
        storage.get(b"a")
    with pytest.raises(StateError, match="cannot be written: the disk is full"):
        write.wait()
    storage.close()
    assert what_it_holds(tmp_path / "t.0") == REBUILT


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Threads and descriptors return to what they were, and a closed file is alone with its mark."""
    descriptors = Path("/proc/self/fd")
    before = threading.active_count(), len(os.listdir(descriptors)) if descriptors.exists() else 0
    for number in range(20):
        storage = open_file(tmp_path / "t.0")
        storage.write({b"%d" % number: b"x"}, number)
        storage.close(clean=number % 2 == 1)
        (tmp_path / "bad").write_bytes(b"no database")
        open_file(tmp_path / "bad").discard()
    after = threading.active_count(), len(os.listdir(descriptors)) if descriptors.exists() else 0
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.0", "t.0.clean"]
    assert (tmp_path / "t.0").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "t.0.clean").stat().st_mode & 0o777 == 0o600


def test_a_closed_storage_says_so(tmp_path: Path) -> None:
    storage = open_file(tmp_path / "t.0")
    storage.close()
    with pytest.raises(StateError, match="it is closed"):
        storage.get(b"a")


@pytest.mark.parametrize(
    ("prefix", "limit"), [(b"a", b"b"), (b"a\xff", b"b"), (b"", None), (b"\xff\xff", None), (b"ab", b"ac")]
)
@pytest.mark.goka("storage: prefix")
def test_the_limit_of_a_prefix(prefix: bytes, limit: bytes | None) -> None:
    assert prefix_limit(prefix) == limit
