"""Kafka's framing: request headers in, framed responses out. Pure.

A request is a length, then key, version, correlation id and client id (never compact), tagged fields in flexible
versions, then the body. A response is a length, the correlation id, tagged fields in flexible versions (but never for
ApiVersions), then the body.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

_FIXED = struct.Struct(">hhih")  # key, version, correlation id, length of the client id
_LENGTH_AND_ID = struct.Struct(">ii")
LENGTH = struct.Struct(">i")

API_VERSIONS = 18
MAX_HEADER_TAGS = 64


class WireError(Exception):
    """The bytes are not a request."""


class RequestHeader(NamedTuple):
    """What comes before a request's body; body_at is where that begins, tagged fields of the header not yet skipped."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_at: int


def read_header(frame: memoryview) -> RequestHeader:
    """The header of a frame without its length; raises WireError."""
    if len(frame) < _FIXED.size:
        raise WireError(f"a request of {len(frame)} bytes is too short")
    api_key, api_version, correlation_id, length = _FIXED.unpack_from(frame)
    end = _FIXED.size + max(length, 0)
    if end > len(frame):
        raise WireError(f"a client id of {length} bytes reaches past its request")
    client_id = None if length < 0 else str(frame[_FIXED.size : end], "utf-8", "replace")
    return RequestHeader(api_key, api_version, correlation_id, client_id, end)


def skip_tags(frame: memoryview, position: int) -> int:
    """The position after a header's tagged fields, which this broker has no use for; raises WireError."""
    count, position = _varint(frame, position)
    if count > MAX_HEADER_TAGS:
        raise WireError(f"a request header with {count} tagged fields")
    for _ in range(count):
        _tag, position = _varint(frame, position)
        size, position = _varint(frame, position)
        position += size
    if position > len(frame):
        raise WireError("a request header reaches past its request")
    return position


def _varint(frame: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(frame) or shift > 28:
            raise WireError("a varint without end")
        byte = frame[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def frame_body(correlation_id: int, body: bytes, *, flexible: bool) -> bytes:
    """A whole response around an encoded body."""
    if flexible:
        return b"".join((_LENGTH_AND_ID.pack(len(body) + 5, correlation_id), b"\x00", body))
    return b"".join((_LENGTH_AND_ID.pack(len(body) + 4, correlation_id), body))


def frame_response(correlation_id: int, response: Any) -> bytes:
    """A whole response from a kafka.protocol object that was built with its version."""
    response.with_header(correlation_id)
    return bytes(response.encode(header=True, framed=True))
