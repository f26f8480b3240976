"""The quarantine of one partition: bad records, and behind each the later records of its key, in order.

1. While a key has parked records, every later record of it is parked too, whichever input or loop it comes by: so the
   key's records are handled in their order or not at all. Other keys go on.
2. Rows are written in the worker's transaction, as the group's table is, and are restored with the partition before it
   runs: what is parked stays parked over restarts and rebalances.
3. A retry handles the key's records one after another; each leaves the quarantine in the transaction that handled it.
   The first one that fails again stays, with those behind it.
4. Its size is bounded: beyond `limit` records the worker stops and says so.

Owned by the worker's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from gokamsg.engine.context import Handled
from gokamsg.engine.output import OutputTopic
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.quarantine.commands import DROP, EDIT, RETRY, Command, Inbox
from gokamsg.engine.quarantine.reason import traceback_of, words_of
from gokamsg.engine.quarantine.record import ParkedRecord
from gokamsg.errors import CodecError, ProcessingError

log = logging.getLogger(__name__)

Retry = Callable[[ParkedRecord], Exception | None]
"""Handles a record as if it had just been read; the error, or None when it was handled."""


def done_key(partition: int) -> bytes:
    """The row that says how far the partition's commands are done; no record's, for no topic begins so."""
    return b"\x00done/%d" % partition


class Quarantine:
    """See the module. `parked` maps each key with parked records to their row keys, in order."""

    def __init__(
        self,
        group: str,
        partition: int,
        commands: str,
        table: PartitionTable,
        *,
        limit: int,
    ) -> None:
        """`commands` is the topic of the commands."""
        self.parked: dict[bytes, list[bytes]] = {}
        self.records = 0
        self._group = group
        self._partition = partition
        self._commands = commands
        self._table = table
        self._limit = limit
        self._sequence = 0
        self._changed = False
        self._inbox: Inbox | None = None
        self._obeyed: list[bytes] = []

    # --- what is parked -----------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the index from the table, which is restored."""
        self.parked.clear()
        self.records = 0
        rows = [ParkedRecord.decode(row) for key, row in self._table.iterate() if not key.startswith(b"\x00")]
        self.records = len(rows)
        for row in sorted(rows, key=lambda record: record.sequence):
            self.parked.setdefault(row.key or b"", []).append(row.row_key)
            self._sequence = row.sequence + 1

    def park(self, topic: str, records: Handled, index: int, now_ms: int, error: Exception | None) -> None:
        """Take a record in: the bad one with its error, one that stands behind it without."""
        if self.records >= self._limit:
            raise ProcessingError(
                f"the quarantine of group {self._group!r} holds {self.records:,} records in partition"
                f" {self._partition}, and takes no more; retry or drop them: gokamsg quarantine list"
            )
        key = records.keys[index]
        record = ParkedRecord(
            sequence=self._sequence,
            topic=topic,
            partition=self._partition,
            offset=records.offsets[index],
            key=key,
            value=records.values[index],
            headers=tuple(records.headers(index)),
            timestamp_ms=records.timestamp(index),
            parked_ms=now_ms,
            error="" if error is None else words_of(error),
            traceback="" if error is None else traceback_of(error),
            tries=0 if error is None else 1,
        )
        self._sequence += 1
        self.records += 1
        name = record.row_key
        self.parked.setdefault(key or b"", []).append(name)
        self._put(name, record.encode())

    # --- with the worker's transaction --------------------------------------------------------------------------

    def write_changelog(self, output: OutputTopic) -> None:
        """Append the uncommitted rows to the changelog."""
        for key, value in self._table.overlay.items():
            output.append_to(self._partition, key, value)

    def committed(self, position: int | None) -> None:
        """The transaction is committed; `position` is the changelog's next offset after its writes."""
        if self._changed:
            self._table.commit(position)
        self._changed = False
        self._obeyed = []

    def rollback(self) -> None:
        """The transaction is gone."""
        if self._changed:
            self._table.rollback()
            self.load()
        self._changed = False
        if self._inbox is not None:
            self._inbox.waiting[:0] = self._obeyed
        self._obeyed = []

    # --- commands -----------------------------------------------------------------------------------------------

    @property
    def inbox(self) -> Inbox | None:
        """Where commands arrive while something is parked, None while nothing is."""
        if not self.parked:
            self._inbox = None
        elif self._inbox is None:
            self._inbox = Inbox(self._commands, self._partition, int(self._table.get(done_key(self._partition)) or 0))
        return self._inbox

    @property
    def has_commands(self) -> bool:
        """Whether something is to be done."""
        return self._inbox is not None and bool(self._inbox.waiting)

    def obey(self, retry: Retry, go_on: Callable[[], bool]) -> None:
        """Do what the commands say, in the open transaction; what `go_on` leaves no time for, at the next call.

        One record is retried at least."""
        inbox = self._inbox
        assert inbox is not None
        self._obeyed += inbox.waiting
        commands, inbox.waiting = inbox.waiting, []
        first = iter((True,))
        has_time = lambda: next(first, False) or go_on()  # noqa: E731
        for data in commands:
            try:
                command = Command.decode(data)
            except CodecError as error:
                log.warning("passed over: %s", error)
                continue
            if command.verb == RETRY:
                if not self._retry(command.key or b"", retry, has_time):
                    inbox.waiting.append(data)
            else:
                self._change(command)
        if not inbox.waiting:
            self._put(done_key(self._partition), b"%d" % inbox.position)

    def _change(self, command: Command) -> None:
        name = command.name.encode()
        row = self._table.get(name)
        if row is None:
            return  # it left meanwhile
        record = ParkedRecord.decode(row)
        if command.verb == DROP:
            self._remove(record)
        elif command.verb == EDIT:
            self._put(name, replace(record, value=command.value, is_edited=True).encode())

    def _retry(self, key: bytes, retry: Retry, has_time: Callable[[], bool]) -> bool:
        """Whether it is over: none is left, or one failed."""
        # The key is free while its records are handled: they are at the front, nothing stands before them.
        waiting = self.parked.pop(key, [])
        over = True
        while waiting:
            if not has_time():
                over = False
                break
            row = self._table.get(waiting[0])
            assert row is not None
            record = ParkedRecord.decode(row)
            error = retry(record)
            if error is not None:
                failed = replace(record, error=words_of(error), traceback=traceback_of(error), tries=record.tries + 1)
                self._put(record.row_key, failed.encode())
                break
            self._put(waiting.pop(0), None)
            self.records -= 1
        if waiting:
            self.parked[key] = waiting
        return over

    def _remove(self, record: ParkedRecord) -> None:
        key = record.key or b""
        left = [name for name in self.parked.get(key, []) if name != record.row_key]
        if left:
            self.parked[key] = left
        else:
            self.parked.pop(key, None)
        self.records -= 1
        self._put(record.row_key, None)

    def _put(self, key: bytes, value: bytes | None) -> None:
        self._changed = True
        if value is None:
            self._table.delete(key)
        else:
            self._table.put(key, value)
