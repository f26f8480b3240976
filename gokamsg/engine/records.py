"""Record batches, format v2: whole batches in, keys and values out; keys and values in, whole batches out.

Pure: no clients, no threads. This is the hot path: one tight loop per batch, nothing per record but the two slices.

1. RecordBatch.parse checks structure and (unless told not to) CRC-32C; what it accepts is what a broker stored.
2. split() gives offsets, keys and values; timestamps and headers are only found when somebody asks.
3. BatchBuilder's bytes are what the Java client would write: magic 2, deltas from the first record.

A damaged batch raises CorruptBatchError, naming its offset. Formats v0 and v1 (before Kafka 0.11) are refused.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from crc32c import crc32c

from gokamsg.engine.compression import compress, decompress
from gokamsg.errors import CorruptBatchError

Headers = Sequence[tuple[str, bytes | None]]

HEADER_BYTES = 61
_HEADER = struct.Struct(">qiibIhiqqqhii")
_AFTER_LENGTH = 12  # the batch length counts from here
_CRC_FROM = 21  # the checksum covers attributes and everything after
_COMPRESSION = 0x07
_LOG_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20


class RecordBatch:
    """One stored batch, not yet split. `start_offset` hides the records before the position that was asked for."""

    __slots__ = (
        "attributes",
        "base_offset",
        "base_timestamp",
        "count",
        "leader_epoch",
        "max_timestamp",
        "next_offset",
        "producer_id",
        "raw",
        "start_offset",
    )

    base_offset: int
    next_offset: int
    leader_epoch: int
    attributes: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    count: int
    raw: memoryview
    start_offset: int

    @classmethod
    def parse(
        cls, buf: bytes | bytearray | memoryview, pos: int = 0, *, check_crc: bool = True
    ) -> "RecordBatch | None":
        """The batch at `pos`, or None when the buffer ends before it does (a fetch may cut its last batch)."""
        if len(buf) - pos < _AFTER_LENGTH + 5:
            return None
        size = _AFTER_LENGTH + int.from_bytes(buf[pos + 8 : pos + _AFTER_LENGTH], "big", signed=True)
        if size > len(buf) - pos:
            return None
        magic = buf[pos + 16]
        if magic != 2 or size < HEADER_BYTES:
            base = int.from_bytes(buf[pos : pos + 8], "big", signed=True)
            raise CorruptBatchError(
                f"record batch at offset {base} has format v{magic}; only v2 (Kafka 0.11 on) is read"
            )
        self = cls()
        (
            self.base_offset,
            _,
            self.leader_epoch,
            _,
            crc,
            self.attributes,
            last_delta,
            self.base_timestamp,
            self.max_timestamp,
            self.producer_id,
            _,
            _,
            self.count,
        ) = _HEADER.unpack_from(buf, pos)
        self.next_offset = self.base_offset + last_delta + 1
        self.start_offset = self.base_offset
        self.raw = memoryview(buf)[pos : pos + size]
        if check_crc and crc32c(self.raw[_CRC_FROM:]) != crc:
            raise CorruptBatchError(f"record batch at offset {self.base_offset} fails its checksum")
        return self

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)

    def split(self, start_offset: int | None = None) -> "Records":
        """Keys and values from `start_offset` (default: what was asked for when the batch was fetched) on."""
        data = decompress(self.attributes & _COMPRESSION, bytes(self.raw[HEADER_BYTES:]))
        try:
            keys, values, has_headers = _split(data, self.count)
        except (IndexError, ValueError) as error:
            raise CorruptBatchError(f"record batch at offset {self.base_offset} is damaged: {error}") from error
        return Records(self, data, keys, values, has_headers, max(self.start_offset, start_offset or 0))

    def aborts(self) -> bool:
        """Whether this control batch is the marker of an aborted transaction."""
        key = self.split(0).keys[0]
        return key is not None and key[2:4] == b"\x00\x00"


class Records:
    """The records of one batch, by index: parallel sequences of offsets, keys and values."""

    __slots__ = ("_batch", "_data", "_first", "_place", "has_headers", "keys", "offsets", "values")

    def __init__(
        self,
        batch: RecordBatch,
        data: bytes,
        keys: list[bytes | None],
        values: list[bytes | None],
        has_headers: bool,
        start_offset: int,
    ) -> None:
        self._batch = batch
        self._data = data
        self._place = (0, 0)  # the record that was looked at last, and where it is
        self._first = 0  # records before start_offset, left out
        self.has_headers = has_headers
        base = batch.base_offset
        self.offsets: Sequence[int]
        if batch.count == batch.next_offset - base:
            self._first = min(max(0, start_offset - base), batch.count)
            self.offsets = range(base + self._first, batch.next_offset)
        else:  # compaction left holes
            offsets = [base + delta for delta in self._deltas()]
            while self._first < len(offsets) and offsets[self._first] < start_offset:
                self._first += 1
            self.offsets = offsets[self._first :]
        self.keys = keys[self._first :] if self._first else keys
        self.values = values[self._first :] if self._first else values

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def newest_ms(self) -> int:
        """The latest timestamp of the batch, without looking at its records."""
        return self._batch.max_timestamp

    def timestamp(self, index: int) -> int:
        """Milliseconds since the epoch; the broker's time where the topic says so."""
        if self._batch.attributes & _LOG_APPEND_TIME:
            return self._batch.max_timestamp
        delta, _ = _varint(self._data, self._record_start(index + self._first) + 1)
        return self._batch.base_timestamp + delta

    def headers(self, index: int) -> list[tuple[str, bytes | None]]:
        """In the order they were sent; bytes that are not UTF-8 in a name survive as surrogates."""
        if not self.has_headers:
            return []
        data = self._data
        _, pos = _varint(data, self._record_start(index + self._first) + 1)
        _, pos = _varint(data, pos)
        for _ in range(2):
            size, pos = _varint(data, pos)
            pos += max(size, 0)
        count, pos = _varint(data, pos)
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            size, pos = _varint(data, pos)
            name = data[pos : pos + size].decode("utf-8", "surrogateescape")
            size, pos = _varint(data, pos + size)
            headers.append((name, data[pos : pos + size] if size >= 0 else None))
            pos += max(size, 0)
        return headers

    def _record_start(self, number: int) -> int:
        """Where a record's attributes are. Asked in order, what lies before it is walked through once."""
        data = self._data
        known, pos = self._place
        if number < known:
            known = pos = 0
        for _ in range(known, number):
            head = data[pos]  # as in _split()
            if head < 128:
                pos += 1 + (head >> 1)
            elif (tail := data[pos + 1]) < 128:
                pos += 2 + ((head & 127) >> 1 | tail << 6)
            else:
                size, pos = _varint(data, pos)
                pos += size
        self._place = (number, pos)
        return _varint(data, pos)[1]

    def _deltas(self) -> Iterator[int]:
        for number in range(self._batch.count):
            _, pos = _varint(self._data, self._record_start(number) + 1)
            yield _varint(self._data, pos)[0]


def parse_batches(buf: bytes | bytearray | memoryview, *, check_crc: bool = True) -> Iterator[RecordBatch]:
    """The complete batches of a fetched buffer, in order."""
    pos = 0
    while (batch := RecordBatch.parse(buf, pos, check_crc=check_crc)) is not None:
        yield batch
        pos += len(batch.raw)


def _split(data: bytes, count: int) -> tuple[list[bytes | None], list[bytes | None], bool]:
    # Lengths of one and two bytes are decoded in place: a call per varint would double the cost of the loop.
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    add_key, add_value = keys.append, values.append
    has_headers = False
    pos = 0
    for _ in range(count):
        head = data[pos]
        if head < 128:
            pos += 1
            end = pos + (head >> 1)
        elif (tail := data[pos + 1]) < 128:
            pos += 2
            end = pos + ((head & 127) >> 1 | tail << 6)
        else:
            size, pos = _varint(data, pos)
            end = pos + size
        pos += 1  # attributes, unused in v2
        while data[pos] > 127:  # timestamp delta
            pos += 1
        pos += 1
        while data[pos] > 127:  # offset delta
            pos += 1
        head = data[pos + 1]
        if head < 128 and not head & 1:
            start = pos + 2
            pos = start + (head >> 1)
            add_key(data[start:pos])
        else:
            size, pos = _varint(data, pos + 1)
            add_key(data[pos : pos + size] if size >= 0 else None)
            pos += max(size, 0)
        head = data[pos]
        if head < 128 and not head & 1:
            start = pos + 1
            pos = start + (head >> 1)
            add_value(data[start:pos])
        elif head > 127 and (tail := data[pos + 1]) < 128 and not head & 1:
            start = pos + 2
            pos = start + ((head & 127) >> 1 | tail << 6)
            add_value(data[start:pos])
        else:
            size, pos = _varint(data, pos)
            add_value(data[pos : pos + size] if size >= 0 else None)
            pos += max(size, 0)
        if pos + 1 != end:
            if pos >= end:
                raise ValueError("a record is longer than its length says")
            has_headers = True
        pos = end
    if pos != len(data):
        raise ValueError(f"{len(data) - pos} bytes do not belong to its {count} records")
    return keys, values, has_headers


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """The zigzag number at `pos`, and the position after it."""
    shift = result = 0
    while True:
        byte = data[pos]
        pos += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return (result >> 1) ^ -(result & 1), pos
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than ten bytes")


def _encode(number: int) -> bytes:
    zigzag = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while zigzag > 127:
        out.append(zigzag & 127 | 128)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


_SHORT = tuple(_encode(number) for number in range(8192))  # the numbers of one and two bytes


class BatchBuilder:
    """An open batch for one partition. append() any number of times, then build() once."""

    __slots__ = ("_body", "_prefix", "_timestamp", "base_timestamp", "count", "max_timestamp", "size")

    def __init__(self) -> None:
        self._body = bytearray(HEADER_BYTES)
        self._timestamp: int | None = None
        self._prefix = b""
        self.base_timestamp = -1
        self.max_timestamp = -1
        self.count = 0
        self.size = HEADER_BYTES  # bytes of the batch so far, uncompressed

    def append(self, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers = ()) -> int:
        """Adds a record; returns the batch's size in bytes, so that the caller can decide to send it."""
        if timestamp_ms != self._timestamp:
            self._set_timestamp(timestamp_ms)
        body = self._body
        count = self.count
        try:
            if headers or key is None or value is None:
                raise IndexError
            record = b"".join(
                (self._prefix, _SHORT[count], _SHORT[len(key)], key, _SHORT[len(value)], value, b"\x00"),
            )
            body += _SHORT[len(record)]
        except IndexError:  # nulls, headers, or a number of three bytes
            record = b"".join(
                (self._prefix, _encode(count), *_nullable(key), *_nullable(value), *_headers(headers)),
            )
            body += _encode(len(record))
        body += record
        self.count = count + 1
        self.size = size = len(body)
        return size

    def build(
        self,
        *,
        producer_id: int = -1,
        producer_epoch: int = -1,
        base_sequence: int = -1,
        transactional: bool = False,
        compression: int = 0,
    ) -> bytearray:
        """The finished batch; the builder must not be used again."""
        batch = self._body
        if compression:
            packed = compress(compression, memoryview(batch)[HEADER_BYTES:])
            batch = bytearray(HEADER_BYTES)
            batch += packed
        attributes = compression | (_TRANSACTIONAL if transactional else 0)
        fields = (self.count - 1, self.base_timestamp, self.max_timestamp)
        producer = (producer_id, producer_epoch, base_sequence, self.count)
        _HEADER.pack_into(batch, 0, 0, len(batch) - _AFTER_LENGTH, -1, 2, 0, attributes, *fields, *producer)
        with memoryview(batch) as view:
            struct.pack_into(">I", batch, 17, crc32c(view[_CRC_FROM:]))
        return batch

    def _set_timestamp(self, timestamp_ms: int) -> None:
        if not self.count:
            self.base_timestamp = timestamp_ms
        self._timestamp = timestamp_ms
        self.max_timestamp = max(self.max_timestamp, timestamp_ms)
        self._prefix = b"\x00" + _encode(timestamp_ms - self.base_timestamp)


def _nullable(data: bytes | None) -> tuple[bytes, bytes]:
    return (b"\x01", b"") if data is None else (_encode(len(data)), data)


def _headers(headers: Iterable[tuple[str, bytes | None]]) -> Iterator[bytes]:
    headers = tuple(headers)
    yield _encode(len(headers))
    for name, value in headers:
        encoded = name.encode("utf-8", "surrogateescape")
        yield _encode(len(encoded))
        yield encoded
        yield from _nullable(value)
