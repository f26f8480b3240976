"""A group's quarantine seen from outside: what lies in it, and telling the group what to do with that.

The table is followed in memory, and has the group's processors as its only writers: a command goes to them through a
stream, to the partition where its record lies, and is done when the table says so.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.cluster import Cluster
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.names import quarantine_commands_of, quarantine_of
from gokamsg.engine.output import encode_key
from gokamsg.engine.quarantine.commands import DROP, EDIT, RETRY, Command
from gokamsg.engine.quarantine.partition import done_key
from gokamsg.engine.quarantine.record import ParkedRecord
from gokamsg.engine.records import BatchBuilder
from gokamsg.engine.view import View
from gokamsg.errors import BrokerUnavailableError, CodecError

SENT_WITHIN_S = 10.0


class QuarantineClient:
    """See the module. A context manager: open in its block. Owned by one thread."""

    def __init__(self, config: ClientConfig | Cluster, group: str) -> None:
        self.group = group
        self._cluster = connect(config)
        self._view: View[ParkedRecord | int] = View(self._cluster, quarantine_of(group), _Rows())
        self._commands = quarantine_commands_of(group)

    def __enter__(self) -> QuarantineClient:
        """Raises TopicError when the group has no quarantine, BrokerUnavailableError when no broker answers."""
        self._view.start()
        try:
            if not self._view.wait_running(30.0):
                raise BrokerUnavailableError(f"the quarantine of group {self.group!r} could not be read within 30 s")
        except BaseException:
            self._view.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()

    def records(self, key: str | None = None) -> list[ParkedRecord]:
        """All of them, or those of one key: in order within each partition."""
        found = [row for _, row in self._view.iterator() if isinstance(row, ParkedRecord)]
        found = [record for record in found if key is None or record.key_text == key]
        return sorted(found, key=lambda record: (record.partition, record.sequence))

    def record(self, name: str) -> ParkedRecord | None:
        """The record that came from topic/partition/offset, None if it is not here."""
        row = self._view.iterator_with_range(name, name + "\x00")
        return next((record for _, record in row if isinstance(record, ParkedRecord)), None)

    def retry(self, record: ParkedRecord, timeout_s: float) -> bool:
        """Have all records of the record's key handled, in order. As for the others: whether it was done in time."""
        free = lambda: not self.records(record.key_text)  # noqa: E731
        return self._tell(record.partition, Command(RETRY, key=record.key), free, timeout_s)

    def drop(self, record: ParkedRecord, timeout_s: float) -> bool:
        """Have one record removed for good."""
        gone = lambda: self.record(record.name) is None  # noqa: E731
        return self._tell(record.partition, Command(DROP, name=record.name), gone, timeout_s)

    def edit(self, record: ParkedRecord, value: bytes | None, timeout_s: float) -> bool:
        """Have one record's value replaced."""
        gone = lambda: self.record(record.name) is None  # noqa: E731
        return self._tell(record.partition, Command(EDIT, name=record.name, value=value), gone, timeout_s)

    def _tell(self, partition: int, command: Command, moot: Callable[[], bool], timeout_s: float) -> bool:
        """Commands are not looked at where nothing is parked any more, so one that is `moot` is done as well."""
        offset = self._send(partition, command)
        return self._wait(lambda: self._done(partition) > offset or moot(), timeout_s)

    def _done(self, partition: int) -> int:
        name = done_key(partition).decode()
        row = next((row for _, row in self._view.iterator_with_range(name, name + "\x00")), 0)
        return row if isinstance(row, int) else 0

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        changed = threading.Condition()

        def notify(_key: str) -> None:
            with changed:
                changed.notify_all()

        unsubscribe = self._view.subscribe(notify)
        try:
            with changed:
                return changed.wait_for(condition, timeout_s)
        finally:
            unsubscribe()

    def _send(self, partition: int, command: Command) -> int:
        """The command's offset, once the brokers have it. BrokerUnavailableError when they do not say so in time."""
        sender = self._cluster.sender()
        try:
            builder = BatchBuilder()
            now_ms = int(self._cluster.clock.time() * 1000)
            builder.append(encode_key(str(uuid.uuid4())), command.encode(), now_ms, ())
            done = threading.Event()
            sent = sender.put(self._commands, partition, builder)
            sent.on_done(done.set)
            if not done.wait(SENT_WITHIN_S):
                raise BrokerUnavailableError(f"the brokers did not take the command within {SENT_WITHIN_S:g} s")
            if (error := sent.error()) is not None:
                raise BrokerUnavailableError(f"the brokers did not take the command: {error}") from error
            return sent.base_offset()
        finally:
            sender.shut(1.0)


class _Rows:
    """Parked records; and, as numbers, how far commands are done."""

    name = "quarantine"

    def encode(self, value: Any) -> bytes:
        raise CodecError("only the group's processors write its quarantine")

    def decode(self, data: bytes) -> ParkedRecord | int:
        return int(data) if data[:1].isdigit() else ParkedRecord.decode(data)
