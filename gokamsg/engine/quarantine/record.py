"""A record in quarantine, and how it lies in the table: as it was, with what is known about it before it.

A row is keyed by where the record came from, b"topic/partition/offset". Its value is four bytes with the length of the
description (big-endian), the description as JSON, and the record's value untouched, so that a row is little larger than
its record.
"""

from __future__ import annotations

import base64
import datetime as dt
import json

import msgspec

from gokamsg.engine.output import decode_key
from gokamsg.errors import CodecError

_LENGTH = 4
TRACEBACK_CHARS = 8_000


class ParkedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be handled (`error` says why), or that stands behind such a one of its key ("")."""

    sequence: int  # its place among the parked records of its partition
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int
    parked_ms: int
    error: str = ""
    traceback: str = ""
    tries: int = 0  # how often it was handled in vain
    is_edited: bool = False

    @property
    def name(self) -> str:
        """topic/partition/offset, as commands take it."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def row_key(self) -> bytes:
        """Its key in the table."""
        return self.name.encode()

    @property
    def key_text(self) -> str:
        """The key as callbacks see it."""
        return decode_key(self.key)

    @property
    def parked_at(self) -> dt.datetime:
        """When it was parked, in UTC."""
        return dt.datetime.fromtimestamp(self.parked_ms / 1000, dt.UTC)

    def encode(self) -> bytes:
        """The row's value."""
        told = {
            "sequence": self.sequence,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "key": self.key,
            "headers": self.headers,
            "timestamp_ms": self.timestamp_ms,
            "parked_ms": self.parked_ms,
            "error": self.error,
            "traceback": self.traceback[-TRACEBACK_CHARS:],
            "tries": self.tries,
            "is_edited": self.is_edited,
            "is_null": self.value is None,
        }
        try:
            description = _encoder.encode(told)
        except UnicodeEncodeError:  # text that holds other bytes than UTF-8, as surrogates
            description = json.dumps(told, default=bytes_to_text).encode()
        return len(description).to_bytes(_LENGTH, "big") + description + (self.value or b"")

    @classmethod
    def decode(cls, row: bytes) -> ParkedRecord:
        """The record of a row's value. CodecError when it is none."""
        end = _LENGTH + int.from_bytes(row[:_LENGTH], "big")
        try:
            told = json.loads(row[_LENGTH:end])
            value = None if told.pop("is_null") else row[end:]
            told["key"] = text_to_bytes(told["key"])
            told["headers"] = tuple((name, text_to_bytes(text)) for name, text in told["headers"])
            return cls(value=value, **told)
        except (ValueError, TypeError, KeyError) as error:
            raise CodecError(f"a row of the quarantine cannot be read: {error}") from error


_encoder = msgspec.json.Encoder()  # it writes bytes in base64


class OneRecord:
    """A parked record where a partition processor expects the records of a batch."""

    def __init__(self, record: ParkedRecord) -> None:
        self._record = record
        self.keys = [record.key]
        self.values = [record.value]
        self.offsets = [record.offset]

    def headers(self, index: int) -> list[tuple[str, bytes | None]]:
        """As it came with them."""
        return list(self._record.headers)

    def timestamp(self, index: int) -> int:
        """Milliseconds since the epoch, as it came with it."""
        return self._record.timestamp_ms


def bytes_to_text(data: bytes | None) -> str | None:
    """Bytes in JSON: base64."""
    return None if data is None else base64.b64encode(data).decode()


def text_to_bytes(text: str | None) -> bytes | None:
    """The other way; ValueError or TypeError when it is not base64."""
    return None if text is None else base64.b64decode(text)
