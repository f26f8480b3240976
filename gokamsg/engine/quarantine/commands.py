"""What a person tells a quarantine: records of a small stream of the group, read by the partition's owner.

The stream is read only while something is parked, from where the table says that its commands are done, so that each is
done once: what it does and how far the stream is read are committed together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from msgspec import Struct

from gokamsg.engine.quarantine.record import bytes_to_text, text_to_bytes
from gokamsg.errors import CodecError

RETRY, DROP, EDIT = "retry", "drop", "edit"


class Command(Struct, frozen=True):
    """retry a key's records; drop or edit one record (its `name` is topic/partition/offset)."""

    verb: str
    key: bytes | None = None
    name: str = ""
    value: bytes | None = None

    def encode(self) -> bytes:
        """The command as a record's value."""
        told = {
            "verb": self.verb,
            "key": bytes_to_text(self.key),
            "name": self.name,
            "value": bytes_to_text(self.value),
        }
        return json.dumps(told).encode()

    @classmethod
    def decode(cls, data: bytes) -> Command:
        """CodecError when it is no command."""
        try:
            told = json.loads(data)
            return cls(str(told["verb"]), text_to_bytes(told["key"]), str(told["name"]), text_to_bytes(told["value"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CodecError(f"not a command of a quarantine: {error}") from error


class Inbox:
    """The commands of one partition that are read and not done; a table reader fills it as it would a table."""

    dirty_rows = 0

    def __init__(self, topic: str, partition: int, position: int) -> None:
        self.topic = topic
        self.partition = partition
        self.position = position
        self.waiting: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        """Nothing is kept."""
        return None

    def apply(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        """Commands below `position`, in order: each has a key of its own."""
        self.waiting += [value for value in changes.values() if value is not None]
        self.position = position

    def discard(self) -> None:
        """The stream is read from its start; what was done already finds nothing to do."""
        self.waiting.clear()
        self.position = 0

    def flush(self) -> None:
        """Nothing is kept."""
