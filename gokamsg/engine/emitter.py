"""Writes records into one topic from anywhere: web requests, commands, programs of one's own.

1. emit() answers at once with a Promise; it is kept when the brokers have acknowledged the record, and broken with the
   reason otherwise. Nothing is sent twice by the emitter itself; the idempotent producer below it removes its own
   retries. A promise broken by a timeout means: unknown, the record may be written.
2. Records of one partition keep the order of their emit() calls.
3. A record is sent at once when nothing of its partition is under way; what comes meanwhile travels together after it.
   So one record is not delayed, and many are not slow.
4. Memory is bounded: emit() waits while too much is under way, and fails when that does not end.

Any thread may call.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

from gokamsg.engine.clients import BATCH_BYTES, ClientConfig
from gokamsg.engine.cluster import Cluster, Sent
from gokamsg.engine.codec import Codec
from gokamsg.engine.hashing import Hasher, Partitioner, fnv1a32
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.records import BatchBuilder
from gokamsg.errors import BrokerUnavailableError, GokamsgError

T = TypeVar("T")

UNDER_WAY_BYTES = 32 << 20
EMIT_TIMEOUT_S = 10.0


class RecordPosition(Struct, frozen=True):
    """Where a record lies. The offset is -1 when a retry hid it."""

    topic: str
    partition: int
    offset: int


class Promise:
    """What becomes of one record."""

    __slots__ = ("_callbacks", "_done", "_error", "_event", "_position")

    _lock = threading.Lock()  # one for all: an event of its own is made only for a promise that somebody waits for

    def __init__(self) -> None:
        self._done = False
        self._event: threading.Event | None = None
        self._position: RecordPosition | None = None
        self._error: Exception | None = None
        self._callbacks: tuple[Callable[[Exception | None], None], ...] = ()

    @property
    def done(self) -> bool:
        """Whether it is kept or broken."""
        return self._done

    def wait(self, timeout_s: float) -> bool:
        """Whether it is kept or broken within the time."""
        if self._done:
            return True
        with self._lock:
            event = self._event = self._event or threading.Event()
            if self._position is not None or self._error is not None:  # settled since we looked
                event.set()
        return event.wait(timeout_s)

    def result(self, timeout_s: float = EMIT_TIMEOUT_S) -> RecordPosition:
        """Waits for the acknowledgement; raises why there is none. BrokerUnavailableError when the time passes."""
        if not self.wait(timeout_s):
            raise BrokerUnavailableError(
                f"the brokers have not acknowledged the record within {timeout_s:g} s; it may be written or not"
            )
        if self._error is not None:
            raise self._error
        assert self._position is not None
        return self._position

    def then(self, callback: Callable[[Exception | None], None]) -> "Promise":
        """Calls back with the error or None: at once when it is done, else on the sender's thread (be quick)."""
        with self._lock:
            done = self._done
            if not done:
                self._callbacks += (callback,)
        if done:
            callback(self._error)
        return self

    def then_with_message(self, callback: Callable[[RecordPosition | None, Exception | None], None]) -> "Promise":
        """As then(), with where the record lies, or None with the error."""
        return self.then(lambda error: callback(self._position, error))

    def settle(self, position: RecordPosition | None, error: Exception | None = None) -> None:
        """For the emitter, once."""
        with self._lock:
            self._position, self._error = position, error
            self._done = True
        if self._event is not None:
            self._event.set()
        for callback in self._callbacks:
            callback(error)


class Emitter(Generic[T]):
    """See the module."""

    def __init__(
        self,
        config: ClientConfig | Cluster,
        topic: str,
        codec: Codec[T],
        *,
        default_headers: Mapping[str, bytes | None] | None = None,
        hasher: Hasher = fnv1a32,
        room_timeout_s: float = EMIT_TIMEOUT_S,
    ) -> None:
        """BrokerUnavailableError and TopicError when it cannot work.

        `default_headers` go with every record, below those of its emit(). `hasher` is FNV-1a as Goka's; a processor
        whose table lives by these keys needs the same one. `room_timeout_s`: so long emit() waits while too much is
        under way; 0 for a caller that must not wait.
        """
        self._topic = topic
        self._codec = codec
        self._default_headers = dict(default_headers or {})
        self._headers = tuple(self._default_headers.items())
        cluster = connect(config)
        self._clock = cluster.clock
        self._room_timeout_s = room_timeout_s
        self._sender = cluster.sender()
        try:
            count = self._sender.partition_count(topic)
        except GokamsgError:
            self._sender.shut(0.0)
            raise
        self._partition_of = Partitioner(count, hasher)
        self._lanes = [_Lane() for _ in range(count)]
        self._changed = threading.Condition()
        self._bytes = 0
        self._finished = False

    def emit(self, key: str, value: T | None, headers: Mapping[str, bytes | None] | None = None) -> Promise:
        """Hands the record over; None writes a null value. CodecError when the value cannot be encoded."""
        data = None if value is None else self._codec.encode(value)
        encoded = key.encode("utf-8", "surrogateescape")
        partition = self._partition_of(encoded)
        merged = tuple({**self._default_headers, **(headers or {})}.items()) if headers else self._headers
        promise = Promise()
        size = len(encoded) + len(data or b"") + 64
        with self._changed:
            if self._finished:
                raise GokamsgError(f"the emitter for topic {self._topic!r} is finished; make a new one")
            if self._bytes + size > UNDER_WAY_BYTES:
                self._wait_for_room(size)
            self._bytes += size
            lane = self._lanes[partition]
            filled = lane.builder.append(encoded, data, self._clock.now_ms(), merged)
            lane.promises.append(promise)
            lane.bytes += size
            if not lane.under_way or filled >= BATCH_BYTES:
                self._send(partition)
        return promise

    def emit_sync(
        self,
        key: str,
        value: T | None,
        headers: Mapping[str, bytes | None] | None = None,
        *,
        timeout_s: float = EMIT_TIMEOUT_S,
    ) -> RecordPosition:
        """Waits for the acknowledgement. BrokerUnavailableError: not acknowledged, the outcome is unknown."""
        return self.emit(key, value, headers).result(timeout_s)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Whether nothing is under way any more, within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._bytes == 0, timeout_s)

    def finish(self, timeout_s: float = 30.0) -> None:
        """Takes no more, waits for what is under way, closes. BrokerUnavailableError when something is left."""
        with self._changed:
            self._finished = True
        done = self.flush(timeout_s)
        self._sender.shut(1.0 if done else 0.0)
        if not done:
            raise BrokerUnavailableError(f"some records for topic {self._topic!r} were not acknowledged")

    def connected(self) -> bool:
        """Whether any connection to a broker stands right now."""
        return self._sender.connected()

    # --- batches: every method here is called with the lock held, except the sender's answer ---------------------

    def _wait_for_room(self, size: int) -> None:
        if not self._changed.wait_for(lambda: self._has_room(size), self._room_timeout_s):
            raise BrokerUnavailableError(
                f"topic {self._topic!r} takes no more records: {self._bytes} bytes wait for acknowledgement"
            )

    def _has_room(self, size: int) -> bool:
        return not self._bytes or self._bytes + size <= UNDER_WAY_BYTES

    def _send(self, partition: int) -> None:
        lane = self._lanes[partition]
        builder, promises, size = lane.take()
        try:
            sent = self._sender.put(self._topic, partition, builder)
        except GokamsgError as error:
            self._settled(size)
            for promise in promises:
                promise.settle(None, error)
            return
        lane.under_way += 1
        sent.on_done(lambda: self._answered(sent, promises, size))

    def _answered(self, sent: Sent, promises: list[Promise], size: int) -> None:
        """On the sender's thread."""
        lane = self._lanes[sent.partition]
        with self._changed:
            lane.under_way -= 1
            if lane.promises and not lane.under_way:
                self._send(sent.partition)
        error = sent.error()
        broken = None if error is None else _broken(self._topic, sent.partition, error)
        first = -1 if broken else sent.base_offset()
        for index, promise in enumerate(promises):
            if broken is not None:
                promise.settle(None, broken)
            else:
                offset = first + index if first >= 0 else -1
                promise.settle(RecordPosition(self._topic, sent.partition, offset))
        with self._changed:
            self._settled(size)

    def _settled(self, size: int) -> None:
        self._bytes -= size
        self._changed.notify_all()


class _Lane:
    """The records of one partition that wait for those before them."""

    __slots__ = ("builder", "bytes", "promises", "under_way")

    def __init__(self) -> None:
        self.builder = BatchBuilder()
        self.promises: list[Promise] = []
        self.bytes = 0
        self.under_way = 0

    def take(self) -> tuple[BatchBuilder, list[Promise], int]:
        """What has gathered; the lane begins anew."""
        taken = (self.builder, self.promises, self.bytes)
        self.builder, self.promises, self.bytes = BatchBuilder(), [], 0
        return taken


def _broken(topic: str, partition: int, error: Exception) -> BrokerUnavailableError:
    reason = str(error) or type(error).__name__
    return BrokerUnavailableError(
        f"the record for topic {topic!r} partition {partition} was not acknowledged: {reason}"
    )
