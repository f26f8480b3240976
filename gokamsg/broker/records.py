"""The records inside a batch, as far as the broker looks at them: keys, tombstones, timestamps. Pure; any thread.

A record is its length, then attributes, timestamp delta, offset delta, key length, key, value length, value, headers.
Records are never built anew: whoever drops some slices the rest out of the body as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gokamsg.broker import compression
from gokamsg.broker.batch import HEADER_BYTES, LEAST_RECORD, BatchError, BatchHeader, read_header
from gokamsg.broker.codes import Code
from gokamsg.broker.configs import TopicConfig


class Record(NamedTuple):
    """Where one record lies in the body, and what the broker needs of it."""

    start: int
    end: int
    offset_delta: int
    timestamp_delta: int
    key: bytes | None
    tombstone: bool


def body_of(batch: bytes, header: BatchHeader) -> bytes:
    """The records of a batch, decompressed; raises CompressionError."""
    return compression.decompress(header.compression, batch[HEADER_BYTES:])


def walk(body: bytes, count: int) -> Iterator[Record]:
    """The records of a decompressed body; raises BatchError when they do not fit it."""
    position = 0
    try:
        for _ in range(count):
            start = position
            length, position = _varint(body, position)
            end = position + length
            timestamp_delta, position = _varint(body, position + 1)
            offset_delta, position = _varint(body, position)
            key_length, position = _varint(body, position)
            key = None
            if key_length >= 0:
                key = body[position : position + key_length]
                position += key_length
            value_length, position = _varint(body, position)
            if length < 0 or position + max(value_length, 0) > end or end > len(body):
                raise IndexError
            yield Record(start, end, offset_delta, timestamp_delta, key, value_length < 0)
            position = end
    except IndexError:
        raise BatchError(Code.CORRUPT_MESSAGE, "the records do not fit their batch") from None


def _varint(body: bytes, position: int) -> tuple[int, int]:
    byte = body[position]
    if byte < 0x80:  # nearly always: one byte
        return (byte >> 1) ^ -(byte & 1), position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = body[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position + 1
        shift += 7
        if shift > 63:
            raise IndexError


def check_keys(header: BatchHeader, batch: bytes) -> None:
    """Raise BatchError when a record has no key: a compacted topic keeps one record per key."""
    try:
        body = body_of(batch, header)
    except compression.CompressionError as error:
        raise BatchError(Code.CORRUPT_MESSAGE, str(error)) from error
    position = 0
    try:
        for index in range(header.record_count):  # written for speed: producers wait for it
            byte = body[position]
            if byte < 0x80:
                length, position = (byte >> 1) ^ -(byte & 1), position + 1
            else:
                length, position = _varint(body, position)
            if length < LEAST_RECORD - 1:
                raise IndexError
            end = position + length
            position += 1  # attributes
            while body[position] >= 0x80:  # timestamp delta
                position += 1
            position += 1
            while body[position] >= 0x80:  # offset delta
                position += 1
            if body[position + 1] == 1:  # the varint of -1, a null key
                raise BatchError(
                    Code.INVALID_RECORD, f"record {index} of the batch has no key, which a compacted topic needs"
                )
            position = end
        if position > len(body):
            raise IndexError
    except IndexError:
        raise BatchError(Code.CORRUPT_MESSAGE, "the records do not fit their batch") from None


def check_timestamps(header: BatchHeader, config: TopicConfig, now_ms: int) -> None:
    """Raise BatchError when the batch's time is further from now than its topic allows."""
    if header.max_timestamp - now_ms > config.timestamp_after_max_ms:
        raise BatchError(Code.INVALID_TIMESTAMP, f"timestamp {header.max_timestamp} is too far in the future")
    if now_ms - header.base_timestamp > config.timestamp_before_max_ms:
        raise BatchError(Code.INVALID_TIMESTAMP, f"timestamp {header.base_timestamp} is too far in the past")


def first_at(batch: bytes, timestamp: int, start_offset: int = 0) -> tuple[int, int] | None:
    """Offset and time of the first record from start_offset on that is at or after a time, or None."""
    header = read_header(batch)
    if header.append_time:
        found = (max(header.base_offset, start_offset), header.max_timestamp)
        return found if header.max_timestamp >= timestamp else None
    for record in walk(body_of(batch, header), header.record_count):
        at = header.base_timestamp + record.timestamp_delta
        offset = header.base_offset + record.offset_delta
        if at >= timestamp and offset >= start_offset:
            return offset, at
    return None
