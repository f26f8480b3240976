"""Record batches of format v2 as bytes: validate, place at an offset, build control batches. Pure.

Base offset (bytes 0-8) and leader epoch (12-16) lie outside the checksum, so placing a batch costs nothing. Only
log-append time changes what the checksum covers.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

from gokamsg.broker.codes import Code
from gokamsg.broker.compression import MAX_OUTPUT

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size  # 61
_LENGTH_OVERHEAD = 12  # base offset and length are not counted in the length
_PLACE = struct.Struct(">qiib")
_CRC_AT = 17
_CRC_FROM = 21
_U32 = struct.Struct(">I")
_I16 = struct.Struct(">h")
_I64 = struct.Struct(">q")
_ATTRIBUTES_AT = 21
_MAX_TIMESTAMP_AT = 35

COMPRESSION_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
ZSTD = 4
LEAST_RECORD = 7  # bytes of a record with neither key nor value nor headers

ABORT_MARKER = 0
COMMIT_MARKER = 1


class BatchError(Exception):
    """A batch that is refused: the protocol's code, and a sentence for the producer's log."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BatchHeader(NamedTuple):
    """The 61 bytes before the records."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def compression(self) -> int:
        return self.attributes & COMPRESSION_MASK

    @property
    def transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def append_time(self) -> bool:
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def control(self) -> bool:
        return bool(self.attributes & CONTROL)


def read_header(batch: bytes | memoryview) -> BatchHeader:
    """The header of a batch that is known to be whole."""
    return BatchHeader._make(HEADER.unpack_from(batch))


def validate(records: bytes | memoryview | None, *, max_bytes: int) -> BatchHeader:
    """The header of the one batch in records; raises BatchError when a producer must not send it."""
    size = 0 if records is None else len(records)
    if records is None or size < HEADER_BYTES:
        raise BatchError(Code.CORRUPT_MESSAGE, f"{size} bytes are too few for a record batch")
    header = BatchHeader._make(HEADER.unpack_from(records))
    if header.magic != 2:
        raise BatchError(
            Code.UNSUPPORTED_FOR_MESSAGE_FORMAT, f"message format v{header.magic} is not supported, only v2 is"
        )
    if size > max_bytes:
        raise BatchError(Code.MESSAGE_TOO_LARGE, f"{size} bytes are more than max.message.bytes {max_bytes}")
    if header.length + _LENGTH_OVERHEAD != size:
        if HEADER_BYTES <= header.length + _LENGTH_OVERHEAD < size:
            raise BatchError(Code.INVALID_RECORD, "a produce request holds exactly one batch per partition")
        raise BatchError(Code.CORRUPT_MESSAGE, f"a batch of {size} bytes says that it has {header.length + 12}")
    if header.crc != crc32c(memoryview(records)[_CRC_FROM:]):
        raise BatchError(Code.CORRUPT_MESSAGE, "the batch does not match its checksum")
    _validate_fields(header, size - HEADER_BYTES)
    return header


def _validate_fields(header: BatchHeader, body_bytes: int) -> None:
    if header.attributes & CONTROL:
        raise BatchError(Code.INVALID_RECORD, "clients must not write control batches")
    if header.record_count <= 0 or header.last_offset_delta != header.record_count - 1:
        raise BatchError(
            Code.INVALID_RECORD,
            f"{header.record_count} records do not match last offset delta {header.last_offset_delta}",
        )
    room = MAX_OUTPUT if header.compression else body_bytes
    if header.record_count * LEAST_RECORD > room:  # a made-up count would use up the partition's offsets
        raise BatchError(Code.INVALID_RECORD, f"{header.record_count} records cannot be in {body_bytes} bytes")
    if header.attributes & COMPRESSION_MASK > ZSTD:
        raise BatchError(Code.UNSUPPORTED_COMPRESSION_TYPE, f"unknown compression {header.compression}")
    if header.producer_id >= 0:
        if header.producer_epoch < 0 or header.base_sequence < 0:
            raise BatchError(Code.INVALID_RECORD, "a batch with a producer id needs an epoch and a sequence")
    elif header.attributes & TRANSACTIONAL:
        raise BatchError(Code.INVALID_RECORD, "a transactional batch needs a producer id")


def place(records: bytes | memoryview, header: BatchHeader, base_offset: int) -> bytes:
    """The batch at its offset, leader epoch 0; the checksum stays true."""
    return b"".join((_PLACE.pack(base_offset, header.length, 0, 2), memoryview(records)[_PLACE.size :]))


def place_at_append_time(
    records: bytes | memoryview, header: BatchHeader, base_offset: int, now_ms: int
) -> tuple[bytes, BatchHeader]:
    """Like place(), with the broker's time as the time of every record; the checksum is computed anew."""
    placed = bytearray(records)
    _PLACE.pack_into(placed, 0, base_offset, header.length, 0, 2)
    attributes = header.attributes | LOG_APPEND_TIME
    _I16.pack_into(placed, _ATTRIBUTES_AT, attributes)
    _I64.pack_into(placed, _MAX_TIMESTAMP_AT, now_ms)
    _U32.pack_into(placed, _CRC_AT, crc32c(memoryview(placed)[_CRC_FROM:]))
    return bytes(placed), header._replace(attributes=attributes, max_timestamp=now_ms)


def seal(header: BatchHeader, body: bytes) -> bytes:
    """A batch from a header and its (compressed) records; length and checksum are filled in."""
    sealed = bytearray(HEADER_BYTES + len(body))
    length = HEADER_BYTES - _LENGTH_OVERHEAD + len(body)
    HEADER.pack_into(sealed, 0, *header._replace(length=length, crc=0))
    sealed[HEADER_BYTES:] = body
    _U32.pack_into(sealed, _CRC_AT, crc32c(memoryview(sealed)[_CRC_FROM:]))
    return bytes(sealed)


_MARKER_KEY = struct.Struct(">hh")  # version, type
_MARKER_VALUE = struct.Struct(">hi")  # version, coordinator epoch


def marker(
    *, base_offset: int, now_ms: int, producer_id: int, producer_epoch: int, commit: bool, coordinator_epoch: int
) -> bytes:
    """The control batch that ends a transaction in a partition."""
    key = _MARKER_KEY.pack(0, COMMIT_MARKER if commit else ABORT_MARKER)
    value = _MARKER_VALUE.pack(0, coordinator_epoch)
    # attributes, timestamp delta, offset delta, key length 4, key, value length 6, value, no headers
    record = b"\x00\x00\x00\x08" + key + b"\x0c" + value + b"\x00"
    body = bytes((len(record) << 1,)) + record
    return seal(
        BatchHeader(
            base_offset, 0, 0, 2, 0, TRANSACTIONAL | CONTROL, 0, now_ms, now_ms, producer_id, producer_epoch, -1, 1
        ),
        body,
    )


def marker_commits(batch: bytes | memoryview) -> bool:
    """Whether a control batch is a COMMIT marker (else an ABORT)."""
    # the record starts with its length (one byte), attributes, two deltas and the key's length, one byte each
    _version, kind = _MARKER_KEY.unpack_from(batch, HEADER_BYTES + 5)
    return bool(kind == COMMIT_MARKER)
