"""What a callback sees of its record, and what it may do: Goka's Context.

1. Valid only inside the callback, on the worker's thread; afterwards every method that acts raises ProcessingError.
2. Nothing a callback does takes effect before it returns: if it raises, its emits and its table write are dropped.
3. value() sees the callback's own earlier writes and every committed write of the partition.

One context object is reused for all records of a partition, so it must not be kept.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.output import Headers, Outputs, OutputTopic, Staged, decode_key, encode_key
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.errors import CodecError, ProcessingError

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


class Handled(Protocol):
    """What a context reads of its batch: records (records.py), or visited rows."""

    @property
    def keys(self) -> Sequence[bytes | None]: ...
    @property
    def values(self) -> Sequence[Any]: ...
    @property
    def offsets(self) -> Sequence[int]: ...
    def headers(self, index: int) -> list[tuple[str, bytes | None]]: ...
    def timestamp(self, index: int) -> int: ...


class Deferral:
    """Counts the deferred commits that are still open. Completed from any thread, awaited by the worker."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = 0
        self._error: BaseException | None = None

    def open(self) -> Callable[[BaseException | None], None]:
        """One more commit to wait for; the returned function completes it, once, with an error or with None."""
        done = False
        with self._condition:
            self._open += 1

        def complete(error: BaseException | None = None) -> None:
            nonlocal done
            with self._condition:
                if done:
                    return
                done = True
                self._open -= 1
                self._error = self._error or error
                self._condition.notify_all()

        return complete

    def wait(self, timeout_s: float) -> bool:
        """True when none is open; raises the error that one was completed with."""
        with self._condition:
            finished = self._condition.wait_for(lambda: self._open == 0 or self._error is not None, timeout_s)
            error, self._error = self._error, None
        if error is not None:
            raise ProcessingError(f"a deferred commit failed: {error}") from error
        return finished

    def reset(self) -> None:
        """Forget what is open (abort); late completions do nothing."""
        with self._condition:
            self._open = 0
            self._error = None


class Context:
    """See the module. Made by the partition processor; `_`-attributes are its business."""

    __slots__ = (
        "_active",
        "_decode_value",
        "_default_headers",
        "_deferral",
        "_emit_headers",
        "_encode_value",
        "_graph",
        "_index",
        "_joined",
        "_joins",
        "_limit",
        "_looked_up",
        "_lookups",
        "_loop",
        "_outputs",
        "_partition",
        "_records",
        "_staged",
        "_stopping",
        "_table",
        "_topic",
        "_write",
        "_write_headers",
        "_wrote",
    )

    def __init__(
        self,
        graph: GroupGraph,
        partition: int,
        *,
        table: PartitionTable | None,
        joins: Mapping[str, LookupTable],
        lookups: Mapping[str, LookupTable],
        outputs: Outputs,
        deferral: Deferral,
        max_message_bytes: int,
        default_headers: Mapping[str, bytes | None] | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self._stopping = stopping or threading.Event()
        self._default_headers = dict(default_headers or {})
        self._emit_headers: Headers = tuple(self._default_headers.items())
        self._graph = graph
        self._partition = partition
        self._table = table
        self._joins = joins
        self._lookups = lookups
        self._joined = {name: table.remembered for name, table in joins.items()}
        self._looked_up = {name: table.remembered for name, table in lookups.items()}
        self._deferral = deferral
        self._limit = max_message_bytes
        persist = graph.group_table
        self._encode_value: Encode | None = persist.codec.encode if persist else None
        self._decode_value: Decode | None = persist.codec.decode if persist else None
        self._outputs: dict[str, tuple[OutputTopic, Encode]] = {
            edge.topic: (outputs.topic(edge.topic), edge.codec.encode) for edge in graph.output_streams
        }
        loop = graph.loop_stream
        self._loop = (outputs.topic(loop.topic), loop.codec.encode) if loop else None
        self._active = False
        self._topic = ""
        self._index = 0
        self._records: Handled
        self._staged: list[Staged] = []
        self._wrote = False
        self._write: bytes | None = None
        self._write_headers: Headers = ()

    # --- the record ---------------------------------------------------------------------------------------------

    def topic(self) -> str:
        """The topic that the record came from."""
        return self._topic

    def key(self) -> str:
        """The record's key; "" for a null key."""
        key = self._records.keys[self._index]
        try:
            return key.decode()  # type: ignore[union-attr]
        except (AttributeError, UnicodeDecodeError):
            return decode_key(key)

    def partition(self) -> int:
        """The partition that the record came from."""
        return self._partition

    def offset(self) -> int:
        """The record's offset."""
        return self._records.offsets[self._index]

    def group(self) -> str:
        """The name of the processor's group."""
        return self._graph.group

    def headers(self) -> dict[str, bytes | None]:
        """The record's headers; of headers with the same name the last one counts."""
        return dict(self._records.headers(self._index))

    def timestamp(self) -> dt.datetime:
        """The record's timestamp in UTC; 1970 for a record without one."""
        return dt.datetime.fromtimestamp(max(self._records.timestamp(self._index), 0) / 1000, dt.UTC)

    # --- the group's table --------------------------------------------------------------------------------------

    def value(self) -> Any:
        """The table's value of the record's key, None if there is none. Raises ProcessingError without Persist."""
        if self._decode_value is None or self._table is None:
            raise ProcessingError(f"group {self._graph.group!r} has no table; add Persist(codec) to its graph")
        raw = self._write if self._wrote else self._table.get(self._records.keys[self._index] or b"")
        return None if raw is None else self._decode_value(raw)

    def set_value(self, value: Any, headers: Mapping[str, bytes | None] | None = None) -> None:
        """Store `value` under the record's key. Raises ProcessingError for None (use delete()) and without Persist."""
        if self._encode_value is None:
            raise ProcessingError(f"group {self._graph.group!r} has no table; add Persist(codec) to its graph")
        if value is None:
            raise ProcessingError("set_value(None) is not allowed; delete() removes the key")
        self._stage_write(self._checked(self._encode_value(value), "the table"), headers)

    def delete(self, headers: Mapping[str, bytes | None] | None = None) -> None:
        """Remove the record's key from the table. Raises ProcessingError without Persist."""
        if self._encode_value is None:
            raise ProcessingError(f"group {self._graph.group!r} has no table; add Persist(codec) to its graph")
        self._stage_write(None, headers)

    def _stage_write(self, value: bytes | None, headers: Mapping[str, bytes | None] | None) -> None:
        self._require_active()
        self._wrote = True
        self._write = value
        self._write_headers = tuple(headers.items()) if headers else ()

    # --- other tables -------------------------------------------------------------------------------------------

    def join(self, table: str) -> Any:
        """The joined table's value of the record's key, None if there is none. Raises ProcessingError if not joined."""
        key = self._records.keys[self._index] or b""
        try:
            return self._joined[table][self._partition, key]
        except KeyError:
            pass  # not remembered
        try:
            joined = self._joins[table]
        except KeyError:
            raise ProcessingError(
                f"table {table!r} is not joined by group {self._graph.group!r}; add Join({table!r}, codec) to its graph"
            ) from None
        return joined.get_in(self._partition, key)

    def lookup(self, table: str, key: str) -> Any:
        """The lookup table's value of any key, None if there is none. Raises ProcessingError if it is no Lookup."""
        try:
            return self._looked_up[table][key]
        except KeyError:
            pass  # not remembered
        try:
            found = self._lookups[table]
        except KeyError:
            raise ProcessingError(
                f"table {table!r} is not a lookup of group {self._graph.group!r};"
                f" add Lookup({table!r}, codec) to its graph"
            ) from None
        return found.get(key)

    # --- emitting -----------------------------------------------------------------------------------------------

    def emit(self, topic: str, key: str, value: Any, headers: Mapping[str, bytes | None] | None = None) -> None:
        """Send `value` to `topic` in this record's transaction; None sends a null value. Raises ProcessingError
        unless the graph has Output(topic, …), CodecError if the value cannot be encoded."""
        try:
            output, encode = self._outputs[topic]
        except KeyError:
            self._refuse_emit(topic)
        if not self._active:
            self._require_active()
        data = None if value is None else encode(value)
        if data is not None and len(data) > self._limit:
            self._checked(data, f"topic {topic!r}")
        try:
            raw_key = key.encode() if key.__class__ is str else encode_key(key)
        except UnicodeEncodeError:
            raw_key = encode_key(key)
        self._staged.append((output, raw_key, data, self._merged(headers) if headers else self._emit_headers))

    def loopback(self, key: str, value: Any, headers: Mapping[str, bytes | None] | None = None) -> None:
        """Send `value` to the group's own loop. Raises ProcessingError unless the graph has Loop(…)."""
        if self._loop is None:
            raise ProcessingError(f"group {self._graph.group!r} has no loop; add Loop(codec, callback) to its graph")
        self._require_active()
        output, encode = self._loop
        data = self._checked(encode(value), "the loop")
        self._staged.append((output, encode_key(key), data, self._merged(headers) if headers else self._emit_headers))

    # --- outcome ------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException | str) -> NoReturn:
        """Give up on this record: it goes the way of a bad record (option on_error)."""
        if isinstance(error, BaseException):
            raise ProcessingError(str(error)) from error
        raise ProcessingError(error)

    def context(self) -> threading.Event:
        """Is set when the processor stops or has failed: for threads of a callback's own, which may keep it."""
        return self._stopping

    def defer_commit(self) -> Callable[[BaseException | None], None]:
        """Hold the transaction of this record until the returned function is called, from any thread, with None
        (done) or an error (stops the processor)."""
        self._require_active()
        return self._deferral.open()

    # --- helpers ------------------------------------------------------------------------------------------------

    def _require_active(self) -> None:
        if not self._active:
            raise ProcessingError("a context acts only inside its callback; it must not be kept for later")

    def _merged(self, headers: Mapping[str, bytes | None]) -> Headers:
        return tuple({**self._default_headers, **headers}.items())

    def _checked(self, data: bytes, where: str) -> bytes:
        if len(data) > self._limit:
            raise CodecError(
                f"a value of {len(data):,} bytes is too large for {where}, which takes {self._limit:,};"
                " shorten it, or raise max.message.bytes there and the processor's max_message_bytes"
            )
        return data

    def _refuse_emit(self, topic: str) -> NoReturn:
        group = self._graph.group
        loop, table = self._graph.loop_stream, self._graph.group_table
        if not topic:
            raise ProcessingError(f"group {group!r} emitted to an empty topic name")
        if loop is not None and topic == loop.topic:
            raise ProcessingError(f"topic {topic!r} is the loop of group {group!r}; use loopback()")
        if table is not None and topic == table.topic:
            raise ProcessingError(f"topic {topic!r} is the table of group {group!r}; use set_value()")
        raise ProcessingError(
            f"topic {topic!r} is not an output of group {group!r}; add Output({topic!r}, codec) to its graph"
        )
