"""One partition of one group: decodes its records, calls back, keeps what the callback did until it returned.

1. Records of one partition are handled one at a time across all inputs and the loop; of one topic, in offset order.
2. A record that cannot be decoded, or whose callback raises, leaves no trace: its emits and its write are dropped,
   and it is handed to the one error path, `on_bad`, which raises to stop, or tells whether it goes into quarantine.
3. A record whose key has records in quarantine goes there too.
4. Table writes go to the table's overlay, emits to the open batches; both belong to the worker's transaction.

Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import compress
from time import monotonic
from typing import Any

from msgspec import Struct

from gokamsg.engine.codec import Codec
from gokamsg.engine.context import Context, Handled
from gokamsg.engine.counts import InputCount
from gokamsg.engine.options import NilHandling
from gokamsg.engine.output import Headers, Outputs, OutputTopic, decode_key
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.quarantine.partition import Quarantine
from gokamsg.engine.quarantine.record import OneRecord, ParkedRecord
from gokamsg.engine.records import Records
from gokamsg.errors import CodecError, ProcessingError


class Source(Struct, frozen=True):
    """One topic that a group reads: an input or its loop; or (`is_visit`) the rows of its table, for a visitor."""

    topic: str
    codec: Codec[Any]
    callback: Callable[[Context, Any], None]
    is_visit: bool = False


class BadRecord(Struct, frozen=True):
    """A record that could not be handled, and why."""

    topic: str
    partition: int
    offset: int
    key: str
    error: Exception
    decoded: bool = True  # False: it never came to a callback

    def __str__(self) -> str:
        what = "failed in its callback" if self.decoded else "cannot be decoded"
        key = self.key if len(self.key) <= 60 else f"{self.key[:57]}..."
        return (
            f"record {self.topic}/{self.partition}@{self.offset} (key {key!r}) {what}:"
            f" {type(self.error).__name__}: {self.error}"
        )


class Pace:
    """When the open transaction is to be committed, between two records; set by the worker, read after each record."""

    __slots__ = ("cut_at", "now")

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.now = now
        self.cut_at = float("inf")


class _Unusable:
    """Stands for a value that could not be decoded (error), or is null and ignored (None)."""

    __slots__ = ("error",)

    def __init__(self, error: Exception | None) -> None:
        self.error = error


_FEW = 8  # values, that are decoded one by one to find a bad one

_HELD = _Unusable(None)
"""Stands for the value of a record whose key is parked."""

_NULLS: dict[str, Any] = {"ignore": _Unusable(None), "process": None, "decode": b""}
"""What stands for a null value: nothing to do, None for the callback, or bytes for the codec."""


class PartitionProcessor:
    """See the module."""

    def __init__(
        self,
        context: Context,
        outputs: Outputs,
        *,
        table: PartitionTable | None,
        pace: Pace,
        on_bad: Callable[[BadRecord], bool],
        nil_handling: NilHandling = "ignore",
        wrapper: Callable[[Context], Context] | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.quarantine = quarantine
        self.partition = context.partition()
        self.table = table
        self._context = context
        self._outputs = outputs
        self._pace = pace
        self._on_bad = on_bad
        self.inputs: dict[str, InputCount] = {}
        self.writes = self.written_bytes = 0
        self._null = _NULLS[nil_handling]
        self._fresh: set[bytes] = set()  # the keys that have a record in quarantine since the batch began
        self._wrapper = wrapper
        self._headers: dict[bytes, Headers] = {}  # of the writes in the overlay, where a callback gave any

    def process(self, source: Source, records: Handled) -> int:
        """Handle `records` of `source` in order: all of them, or so many as the pace has time for; returns how many."""
        keys = records.keys
        values, aside = self._values(source, records)
        if self.table is not None:
            self.table.prefetch(keys)
        context, outputs, pace, callback = self._context, self._outputs, self._pace, source.callback
        if self._wrapper is not None:
            callback = _wrapped(callback, self._wrapper)
        staged, now = context._staged, pace.now
        fresh = self._fresh
        fresh.clear()
        context._topic = source.topic
        context._records = records
        context._active = True
        at, end = 0, len(values)
        following = iter(aside)
        stop = next(following, end)
        try:
            while at < end:
                index = at
                if at == stop:
                    self._put_aside(source, records, at, values[at])
                    stop = next(following, end)
                elif fresh and (keys[at] or b"") in fresh:
                    self._park_behind(source, records, at)
                else:
                    # A run of values for the callback; once a key has failed, the next one may stand behind it.
                    for index in range(at, at + 1 if fresh else stop):
                        context._index = index
                        try:
                            callback(context, values[index])
                        except Exception as error:
                            staged.clear()
                            context._wrote = False
                            self._bad(source, records, index, error)
                            break
                        if context._wrote:
                            self._write(keys[index] or b"")
                        if staged:
                            outputs.accept(staged)
                            staged.clear()
                        if now() >= pace.cut_at:
                            return index + 1
                at = index + 1
                if now() >= pace.cut_at:  # after one that came to no callback, or failed
                    return at
            return end
        finally:
            context._active = False
            context._wrote = False
            staged.clear()

    def _values(self, source: Source, records: Handled) -> tuple[Sequence[Any], Sequence[int]]:
        """The decoded values, and where one stands that is not for the callback: an _Unusable, which is _HELD, not
        decoded, where the key is parked."""
        raw, codec = records.values, source.codec
        parked = self.quarantine.parked if self.quarantine is not None and not source.is_visit else None
        if not parked:
            return _decode(codec, raw, self._null)
        keys = records.keys if b"" not in parked else [key or b"" for key in records.keys]
        held = list(compress(range(len(keys)), map(parked.__contains__, keys)))
        if self._null.__class__ is _Unusable:  # a null value that is passed over is not parked either
            held = [index for index in held if raw[index] is not None]
        if not held:
            return _decode(codec, raw, self._null)
        # Bad records are mostly of keys that are parked. With others in their place, the rest is decoded in one call.
        there = set(held)
        other = next((data for index, data in enumerate(raw) if data is not None and index not in there), None)
        filled = list(raw)
        for index in held:
            filled[index] = other
        decoded, aside = _decode(codec, filled, self._null)
        values = list(decoded)
        for index in held:
            values[index] = _HELD
        return values, sorted(there.union(aside))

    def touch_table(self) -> None:
        """Write one row as it is once more; of a table without rows, delete one that is not there."""
        table = self.table
        if table is None or table.position == 0:
            return  # nothing was ever written to its changelog
        key, value = next(table.iterate(), (b"", None))
        if value is None:
            table.delete(key)
        else:
            table.put(key, value)

    def retry(self, source: Source, record: OneRecord) -> Exception | None:
        """Handle a record out of the quarantine; why it failed again, or None."""
        values, _ = _decode(source.codec, record.values, self._null)
        if values[0].__class__ is _Unusable:
            return values[0].error
        context, callback = self._context, source.callback
        if self._wrapper is not None:
            callback = _wrapped(callback, self._wrapper)
        context._topic, context._records, context._index, context._active = source.topic, record, 0, True
        try:
            callback(context, values[0])
            if context._wrote:
                self._write(record.keys[0] or b"")
            self._outputs.accept(context._staged)
        except Exception as error:
            return error
        finally:
            context._active = context._wrote = False
            context._staged.clear()
        return None

    def obey(self, sources: Mapping[str, Source]) -> None:
        """Do what people told the quarantine."""

        def retry(record: ParkedRecord) -> Exception | None:
            source = sources.get(record.topic)
            if source is None:
                return ProcessingError(f"the group has no input {record.topic!r} any more")
            return self.retry(source, OneRecord(record))

        assert self.quarantine is not None
        self.quarantine.obey(retry, go_on=lambda: self._pace.now() < self._pace.cut_at)

    def write_changelog(self, output: OutputTopic) -> int:
        """Append the overlay to the table's changelog, the last value per key; returns how many records."""
        if self.table is None:
            return 0
        overlay, headers = self.table.overlay, self._headers
        for key, value in overlay.items():
            output.append_to(self.partition, key, value, headers.get(key, ()) if headers else ())
        self.writes += len(overlay)
        self.written_bytes += sum(map(len, filter(None, overlay.values())))
        return len(overlay)

    def count(self, topic: str, records: Records, handled: int, now_ms: int) -> None:
        """For the stats: so many of these were handled."""
        count = self.inputs.setdefault(topic, InputCount())
        if handled:
            delay_s = (now_ms - records.newest_ms) / 1000
            count.add(records.values[:handled], handled, records.offsets[handled - 1], delay_s)

    def committed(self, position: int | None, quarantine_position: int | None) -> None:
        """The transaction is committed; the positions are the changelogs' next offsets after what was written there."""
        self._headers.clear()
        if self.quarantine is not None:
            self.quarantine.committed(quarantine_position)
        if self.table is not None:
            self.table.commit(position)

    def rollback(self) -> None:
        """The transaction with the overlay is gone."""
        self._headers.clear()
        if self.quarantine is not None:
            self.quarantine.rollback()
        if self.table is not None:
            self.table.rollback()

    def _write(self, key: bytes) -> None:
        context, table = self._context, self.table
        context._wrote = False
        if table is None:
            return
        if context._write is None:
            table.delete(key)
        else:
            table.put(key, context._write)
        if context._write_headers or self._headers:
            self._headers[key] = context._write_headers

    def _bad(self, source: Source, records: Handled, index: int, error: Exception, *, decoded: bool = True) -> None:
        key = decode_key(records.keys[index])
        if self._on_bad(BadRecord(source.topic, self.partition, records.offsets[index], key, error, decoded)):
            assert self.quarantine is not None
            self.quarantine.park(source.topic, records, index, self._outputs.now_ms, error)
            self._fresh.add(records.keys[index] or b"")

    def _put_aside(self, source: Source, records: Handled, index: int, value: _Unusable) -> None:
        """A value that is not for the callback."""
        if value is _HELD:
            self._park_behind(source, records, index)
        elif value.error is None:
            return  # a null value that is passed over
        elif (records.keys[index] or b"") in self._fresh:
            self._park_behind(source, records, index)
        else:
            self._bad(source, records, index, value.error, decoded=False)

    def _park_behind(self, source: Source, records: Handled, index: int) -> None:
        assert self.quarantine is not None
        self.quarantine.park(source.topic, records, index, self._outputs.now_ms, None)


def _wrapped(
    callback: Callable[[Context, Any], None], wrapper: Callable[[Context], Context]
) -> Callable[[Context, Any], None]:
    return lambda context, value: callback(wrapper(context), value)


def _decode(codec: Codec[Any], raw: Sequence[bytes | None], null: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """The decoded values, in one call where the codec can, and where those stand that are _Unusable."""
    decode_many = getattr(codec, "decode_many", None)
    if decode_many is not None and None not in raw:
        with suppress(CodecError):
            return decode_many(raw), ()
        if len(raw) > _FEW:  # one of them is bad; the half without it is still decoded in one call
            half = len(raw) // 2
            (left, aside), (right, more) = _decode(codec, raw[:half], null), _decode(codec, raw[half:], null)
            return [*left, *right], [*aside, *(half + index for index in more)]
    values: list[Any] = []
    aside = []
    decode = codec.decode
    for index, data in enumerate(raw):
        if data is None and not isinstance(null, bytes):
            values.append(null)
            if null is not None:
                aside.append(index)
            continue
        try:
            values.append(decode(null if data is None else data))
        except Exception as error:
            values.append(_Unusable(error))
            aside.append(index)
    return values, aside
