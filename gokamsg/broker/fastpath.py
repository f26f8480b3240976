"""The two responses that are sent for every batch, encoded by hand: Produce 0-11 and Fetch 4-17. Pure.

kafka.protocol can encode them too (a test compares the bytes), but it builds an object per partition and copies the
records twice; this is four to eight times faster over a hundred partitions.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from gokamsg.broker.log import Aborted

_I32 = struct.Struct(">i")
_I16 = struct.Struct(">h")
_THROTTLE = _I32.pack(0)

_PRODUCE_V0 = struct.Struct(">ihq")  # index, error, base offset
_PRODUCE_V2 = struct.Struct(">ihqq")  # + append time
_PRODUCE_V5 = struct.Struct(">ihqqq")  # + log start offset
_FETCH_V4 = struct.Struct(">ihqq")  # index, error, high watermark, last stable offset
_FETCH_V5 = struct.Struct(">ihqqq")  # + log start offset
_ABORTED = struct.Struct(">qq")
_SESSION = struct.Struct(">ihi")  # throttle, error, session id


class Produced(NamedTuple):
    """What became of one partition's batch."""

    partition: int
    error: int
    base_offset: int = -1
    append_time_ms: int = -1
    log_start_offset: int = -1
    message: str | None = None


class Fetched(NamedTuple):
    """What one partition has for a reader."""

    partition: int
    error: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: Sequence[Aborted] | None
    batches: Sequence[bytes]


def uvarint(value: int) -> bytes:
    """An unsigned varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _I16.pack(len(raw)) + raw


def _compact_string(text: str) -> bytes:
    raw = text.encode()
    return uvarint(len(raw) + 1) + raw


def encode_produce(version: int, topics: Sequence[tuple[str, Sequence[Produced]]]) -> bytes:
    """The body of a Produce response."""
    if version >= 9:
        return _encode_produce_flexible(topics)
    parts = [_I32.pack(len(topics))]
    for name, partitions in topics:
        parts.append(_string(name))
        parts.append(_I32.pack(len(partitions)))
        for it in partitions:
            if version >= 5:
                parts.append(
                    _PRODUCE_V5.pack(it.partition, it.error, it.base_offset, it.append_time_ms, it.log_start_offset)
                )
            elif version >= 2:
                parts.append(_PRODUCE_V2.pack(it.partition, it.error, it.base_offset, it.append_time_ms))
            else:
                parts.append(_PRODUCE_V0.pack(it.partition, it.error, it.base_offset))
            if version >= 8:  # no record errors; the message or null
                parts.append(_THROTTLE)
                parts.append(b"\xff\xff" if it.message is None else _string(it.message))
    if version >= 1:
        parts.append(_THROTTLE)
    return b"".join(parts)


def _produced_fixed(it: Produced) -> bytes:
    return _PRODUCE_V5.pack(it.partition, it.error, it.base_offset, it.append_time_ms, it.log_start_offset)


def _encode_produce_flexible(topics: Sequence[tuple[str, Sequence[Produced]]]) -> bytes:
    parts = [uvarint(len(topics) + 1)]
    for name, partitions in topics:
        parts.append(_compact_string(name))
        parts.append(uvarint(len(partitions) + 1))
        for it in partitions:
            parts.append(_produced_fixed(it))
            if it.message is None:
                parts.append(b"\x01\x00\x00")  # no record errors, null message, no tags
            else:
                parts.append(b"\x01" + _compact_string(it.message) + b"\x00")
        parts.append(b"\x00")
    parts.append(_THROTTLE + b"\x00")
    return b"".join(parts)


def encode_fetch(
    version: int, topics: Sequence[tuple[str, uuid.UUID | None, Sequence[Fetched]]], *, error: int = 0
) -> bytes:
    """The body of a Fetch response; session id 0 always."""
    if version >= 12:
        return _encode_fetch_flexible(version, topics, error)
    parts = [_SESSION.pack(0, error, 0) if version >= 7 else _THROTTLE, _I32.pack(len(topics))]
    for name, _topic_id, partitions in topics:
        parts.append(_string(name))
        parts.append(_I32.pack(len(partitions)))
        for it in partitions:
            parts.append(_fetch_fixed(version, it))
            if it.aborted is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                parts.append(_I32.pack(len(it.aborted)))
                parts.extend(_ABORTED.pack(entry.producer_id, entry.first_offset) for entry in it.aborted)
            if version >= 11:
                parts.append(b"\xff\xff\xff\xff")  # no preferred read replica
            parts.append(_I32.pack(sum(map(len, it.batches))))
            parts.extend(it.batches)
    return b"".join(parts)


def _fetch_fixed(version: int, it: Fetched) -> bytes:
    if version >= 5:
        return _FETCH_V5.pack(it.partition, it.error, it.high_watermark, it.last_stable_offset, it.log_start_offset)
    return _FETCH_V4.pack(it.partition, it.error, it.high_watermark, it.last_stable_offset)


def _encode_fetch_flexible(
    version: int, topics: Sequence[tuple[str, uuid.UUID | None, Sequence[Fetched]]], error: int
) -> bytes:
    parts = [_SESSION.pack(0, error, 0), uvarint(len(topics) + 1)]
    for name, topic_id, partitions in topics:
        if version >= 13:
            parts.append(topic_id.bytes if topic_id is not None else bytes(16))
        else:
            parts.append(_compact_string(name))
        parts.append(uvarint(len(partitions) + 1))
        for it in partitions:
            parts.append(_fetch_fixed(version, it))
            if it.aborted is None:
                parts.append(b"\x00")
            else:
                parts.append(uvarint(len(it.aborted) + 1))
                parts.extend(_ABORTED.pack(entry.producer_id, entry.first_offset) + b"\x00" for entry in it.aborted)
            parts.append(b"\xff\xff\xff\xff")  # no preferred read replica
            parts.append(uvarint(sum(map(len, it.batches)) + 1))
            parts.extend(it.batches)
            parts.append(b"\x00")
        parts.append(b"\x00")
    parts.append(b"\x00")
    return b"".join(parts)
