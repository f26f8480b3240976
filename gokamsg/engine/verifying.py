"""Compares the tables in a state directory with their changelogs, and removes the copies that differ.

1. A changelog partition is read once, committed records only, up to its end as of now, into a temporary file; then each
   local copy of it is compared with that, both in key order. Memory is bounded whatever the size of the table.
2. A copy may lag behind: what its next start reads anyway is no difference. So a key that the changelog has a record of
   at or after the copy's position is not compared, and the rest must be equal, row for row.
3. A copy that differs, or that its next start would not trust, is removed: the next start fills it again. Nothing else
   is ever changed.
4. Slots of running processes are left alone, and named. The others stay locked while this runs.

Not for tables with an update callback, nor for views that evict rows: theirs are not the changelog's values.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from msgspec import Struct

from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.cluster import Cluster, TableClient
from gokamsg.engine.identity import acquire, lock_existing
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.sqlite import SQLiteStorage, boot_id, distrust, remove_file
from gokamsg.errors import StateError

T = TypeVar("T")

_OWN_SLOT: Final = ".verify"
_WRITE_ROWS: Final = 20_000
_LOOK_UP_KEYS: Final = 2_000
_PATIENCE_S: Final = 30.0

TopicPartition = tuple[str, int]


class TableCheck(Struct, frozen=True, kw_only=True):
    """One local copy of a table partition. `finding` is empty if it agrees, else says what is wrong."""

    group: str
    slot: int
    topic: str
    partition: int
    outcome: Literal["agrees", "removed", "left"]
    finding: str = ""
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    position: int | None = None
    end: int = 0


class LockedSlot(Struct, frozen=True, kw_only=True):
    """A slot that could not be looked at: a running process has it."""

    group: str
    slot: int


class _Copy(Struct, frozen=True):
    group: str
    slot: int
    topic: str
    partition: int
    path: Path


class _Changelog(Struct, frozen=True):
    topic: str
    partition: int
    topic_id: str
    start: int
    end: int


def verify_tables(
    config: ClientConfig | Cluster,
    state_dir: Path,
    groups: Collection[str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generator[TableCheck | LockedSlot]:
    """Checks every table of these groups (VIEWS: of views), and yields what was found of each.

    `on_progress` is called with the changelog offsets read and to be read. Raises BrokerUnavailableError, and
    StateError when the directory cannot be used. Close it if it is not read to its end: it holds locks.
    """
    cluster = connect(config)
    cluster_id = cluster.check().cluster_id
    with ExitStack() as stack:
        copies: dict[TopicPartition, list[_Copy]] = {}
        for group in groups:
            for slot, directory, lock in lock_existing(state_dir, cluster_id, group):
                if lock is None:
                    yield LockedSlot(group=group, slot=slot)
                    continue
                stack.callback(lock.close)
                for path in sorted(directory.iterdir()):
                    topic, _, number = path.name.rpartition(".")
                    if topic and number.isdigit():
                        copy = _Copy(group, slot, topic, int(number), path)
                        copies.setdefault((copy.topic, copy.partition), []).append(copy)
        if not copies:
            return
        # Only now, with the slots locked: nothing is written to the copies from here on.
        changelogs = _changelogs(cluster, copies)
        directory = stack.enter_context(_own_directory(state_dir, cluster_id))
        consumer = stack.enter_context(closing(cluster.table_consumer()))
        verifier = _Verifier(cluster, consumer, directory, changelogs, on_progress)
        for key in sorted(copies):
            yield from verifier.check(changelogs.get(key), copies[key])


@contextmanager
def _own_directory(state_dir: Path, cluster_id: str) -> Iterator[Path]:
    """For temporary files: a slot like a worker's, so that what a killed run has left there is found by the next."""
    identity = acquire(state_dir, cluster_id, _OWN_SLOT)
    try:
        yield identity.directory
    finally:
        shutil.rmtree(identity.directory, ignore_errors=True)
        identity.release()
        with suppress(OSError):  # another run is at work
            identity.directory.parent.rmdir()


def _changelogs(cluster: Cluster, wanted: Collection[TopicPartition]) -> dict[TopicPartition, _Changelog]:
    """Those that exist, as they are now."""
    with closing(cluster.admin()) as admin:
        topics = admin.describe_topics(sorted({topic for topic, _ in wanted}))
        there = [(name, number) for name, number in wanted if name in topics and number < topics[name].partitions]
        starts, ends = admin.log_starts(there), admin.high_watermarks(there)
    return {key: _Changelog(*key, topics[key[0]].topic_id, starts[key], ends[key]) for key in there}


class _Verifier:
    def __init__(
        self,
        cluster: Cluster,
        consumer: TableClient,
        directory: Path,
        changelogs: Mapping[TopicPartition, _Changelog],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._directory = directory
        self._boot = boot_id()
        self._on_progress = on_progress
        self._read = 0
        self._to_read = sum(changelog.end - changelog.start for changelog in changelogs.values())

    def check(self, changelog: _Changelog | None, copies: list[_Copy]) -> Iterator[TableCheck]:
        """All copies of one changelog partition."""
        if changelog is None:
            for copy in copies:
                finding = "its topic, or that partition of it, does not exist; delete the file if it is gone for good"
                yield _result(copy, "left", finding)
            return
        with ExitStack() as stack:
            opened: list[tuple[_Copy, SQLiteStorage]] = []
            for copy in copies:
                why = distrust(copy.path, topic_id=changelog.topic_id, boot_id=self._boot)
                if why is not None:
                    remove_file(copy.path)
                    yield _result(copy, "removed", why, end=changelog.end)
                    continue
                storage = SQLiteStorage(copy.path, topic_id=changelog.topic_id, boot_id=self._boot)
                stack.callback(storage.close)
                opened.append((copy, storage))
            since = min((storage.position() or 0 for _, storage in opened), default=changelog.end)
            rebuilt, recent = (self._temporary(name, changelog, stack) for name in ("rebuilt", "recent"))
            is_complete = self._rebuild(changelog, rebuilt, recent, since) if opened else True
            for copy, storage in opened:
                if is_complete:
                    yield _compared(copy, storage, changelog, rebuilt, recent)
                else:
                    yield _result(
                        copy, "left", "a transaction on its changelog does not end; run gokamsg verify again later"
                    )

    def _temporary(self, name: str, changelog: _Changelog, stack: ExitStack) -> SQLiteStorage:
        path = self._directory / name
        remove_file(path)
        storage = SQLiteStorage(path, topic_id=changelog.topic_id, boot_id=self._boot)
        stack.callback(storage.discard)
        return storage

    def _rebuild(self, changelog: _Changelog, rebuilt: SQLiteStorage, recent: SQLiteStorage, since: int) -> bool:
        """Fills `rebuilt` with the table, and `recent` with the last offset of each key that has one from `since` on.

        False when the end cannot be reached: somebody's transaction stays open.
        """
        key = (changelog.topic, changelog.partition)
        rows: dict[bytes, bytes | None] = {}
        touched: dict[bytes, bytes | None] = {}
        position, moved_at = changelog.start, self._cluster.clock.monotonic()
        self._consumer.set_partitions({})
        self._consumer.set_partitions({key: changelog.start})
        while position < changelog.end:
            for batch in self._consumer.poll(0.5).get(key, ()):
                records = batch.split()
                for name, value, offset in zip(records.keys, records.values, records.offsets, strict=True):
                    rows[name or b""] = value
                    if offset >= since:
                        touched[name or b""] = offset.to_bytes(8, "big")
            before, position = position, self._consumer.position(*key)
            now = self._cluster.clock.monotonic()
            if position > before:
                moved_at = now
                self._progress(min(position, changelog.end) - before)
            elif now - moved_at > _PATIENCE_S:
                self._cluster.check()
                return False
            if len(rows) >= _WRITE_ROWS:
                _store(rows, rebuilt, position)
                _store(touched, recent, position)
        _store(rows, rebuilt, position)
        _store(touched, recent, position)
        return True

    def _progress(self, offsets: int) -> None:
        self._read += offsets
        if self._on_progress is not None:
            self._on_progress(self._read, self._to_read)


def _store(rows: dict[bytes, bytes | None], storage: SQLiteStorage, position: int) -> None:
    if rows:
        storage.write(rows, position)
        rows.clear()


def _compared(
    copy: _Copy, storage: SQLiteStorage, changelog: _Changelog, rebuilt: SQLiteStorage, recent: SQLiteStorage
) -> TableCheck:
    """The copy beside the table; removed if it differs."""
    position = storage.position()
    found = {"missing": 0, "extra": 0, "different": 0}
    rows = 0
    try:
        if position is not None and not changelog.start <= position <= changelog.end:
            finding = f"it is at position {position}, and its changelog has {changelog.start} to {changelog.end}"
        else:
            rows = _count(storage)
            for differences in _batched(_differences(storage, rebuilt, rows), _LOOK_UP_KEYS):
                later = recent.get_many(key for key, _ in differences if key is not None)
                for key, kind in differences:
                    last = later.get(key) if key is not None else None
                    if last is None or int.from_bytes(last, "big") < (position or 0):
                        found[kind] += 1
            finding = ", ".join(f"{count} {kind}" for kind, count in found.items() if count)
            finding = f"rows that differ from its changelog: {finding}" if finding else ""
    except _DamagedError as error:
        finding = str(error)
    if finding:
        storage.discard()
    outcome: Literal["agrees", "removed"] = "removed" if finding else "agrees"
    return TableCheck(
        group=copy.group,
        slot=copy.slot,
        topic=copy.topic,
        partition=copy.partition,
        outcome=outcome,
        finding=finding,
        rows=rows,
        position=position,
        end=changelog.end,
        **found,
    )


def _differences(copy: SQLiteStorage, rebuilt: SQLiteStorage, rows: int) -> Iterator[tuple[bytes | None, str]]:
    """Key and kind of each difference; the key is None for rows that no worker has written."""
    seen = 0
    ours = _rows(copy)
    theirs = iter(rebuilt.iterate())
    mine, other = next(ours, None), next(theirs, None)
    while mine is not None or other is not None:
        # Numbers and text sort before bytes, and can only come from another hand.
        if mine is not None and not isinstance(mine[0], bytes):
            yield None, "extra"
        elif other is None or (mine is not None and mine[0] < other[0]):
            assert mine is not None
            yield mine[0], "extra"
        elif mine is None or other[0] < mine[0]:
            yield other[0], "missing"
            other = next(theirs, None)
            continue
        else:
            if mine[1] != other[1]:
                yield mine[0], "different"
            other = next(theirs, None)
        seen += 1
        mine = next(ours, None)
    for _ in range(rows - seen):  # keys that no order reaches
        yield None, "extra"


class _DamagedError(Exception):
    """The copy, and not the rebuilt table beside it, cannot be read."""


def _count(copy: SQLiteStorage) -> int:
    try:
        return len(copy)
    except StateError as error:
        raise _DamagedError("it is damaged") from error


def _rows(copy: SQLiteStorage) -> Iterator[tuple[Any, Any]]:
    try:
        yield from copy.iterate()
    except StateError as error:
        raise _DamagedError("it is damaged") from error


def _batched(items: Iterator[T], count: int) -> Iterator[list[T]]:
    while batch := list(islice(items, count)):
        yield batch


def _result(copy: _Copy, outcome: Literal["removed", "left"], finding: str, *, end: int = 0) -> TableCheck:
    return TableCheck(
        group=copy.group,
        slot=copy.slot,
        topic=copy.topic,
        partition=copy.partition,
        outcome=outcome,
        finding=finding,
        end=end,
    )
