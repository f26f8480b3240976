"""How records of a changelog become rows of a local table, where somebody wants it otherwise: Goka's UpdateCallback.

Without a callback a value is the row and a null value removes it. A callback is called for each record instead, in
order, during restores and for what is followed afterwards (joins, lookups, views); it is not called for what the
processor's own callbacks write. It must give the same rows for the same records, for they are read again after a crash.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from msgspec import Struct

from gokamsg.engine.output import decode_key, encode_key
from gokamsg.engine.records import RecordBatch


class UpdateContext(Struct, frozen=True):
    """Where a changelog record comes from."""

    topic: str
    partition: int
    offset: int
    headers: dict[str, bytes | None]
    timestamp: dt.datetime


class Followed(Protocol):
    """What a table reader fills: the partition of a table, or whatever takes records as one does."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def dirty_rows(self) -> int: ...
    def get(self, key: bytes) -> bytes | None: ...
    def apply(self, changes: Mapping[bytes, bytes | None], position: int) -> None: ...
    def discard(self) -> None: ...
    def flush(self) -> None: ...


class Rows:
    """The rows of one table partition while a batch is applied to it."""

    def __init__(self, table: Followed) -> None:
        self._table = table
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        """The encoded value of the key, None if it has none."""
        raw = encode_key(key)
        return self.changes[raw] if raw in self.changes else self._table.get(raw)

    def set(self, key: str, value: bytes) -> None:
        """Store the encoded value."""
        self.changes[encode_key(key)] = value

    def delete(self, key: str) -> None:
        """Remove the key."""
        self.changes[encode_key(key)] = None


UpdateCallback: TypeAlias = Callable[[UpdateContext, Rows, str, bytes | None], None]
"""(context, rows, key, encoded value or None): changes `rows` as the record says. An error stops the processor."""


def default_update(context: UpdateContext, rows: Rows, key: str, value: bytes | None) -> None:
    """What is done without a callback."""
    if value is None:
        rows.delete(key)
    else:
        rows.set(key, value)


def changes_of(batch: RecordBatch, table: Followed, callback: UpdateCallback | None) -> dict[bytes, bytes | None]:
    """The last value of each key that the batch changes."""
    records = batch.split()
    if callback is None:
        changes = dict(zip(records.keys, records.values, strict=True))
        if None in changes:
            changes = {key or b"": value for key, value in zip(records.keys, records.values, strict=True)}
        return changes  # type: ignore[return-value]  # no key is None now
    rows = Rows(table)
    for index, value in enumerate(records.values):
        at = dt.datetime.fromtimestamp(max(records.timestamp(index), 0) / 1000, dt.UTC)
        headers = dict(records.headers(index))
        context = UpdateContext(table.topic, table.partition, records.offsets[index], headers, at)
        callback(context, rows, decode_key(records.keys[index]), value)
    return rows.changes
