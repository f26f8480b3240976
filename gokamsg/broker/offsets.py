"""Committed offsets of consumer groups."""

from typing import Protocol

from gokamsg.broker.clock import Clock
from gokamsg.broker.settings import BrokerSettings


class Unit(Protocol):
    """The part of a write unit that coordinators use: small records, durable all or none."""

    def put(self, space: str, key: str, value: bytes) -> None: ...

    def delete(self, space: str, key: str) -> None: ...


class OffsetStore:
    """Owns every group's committed and pending offsets; runs on the broker's loop."""

    def __init__(self, *, store: object, clock: Clock, settings: BrokerSettings) -> None:
        self._store, self._clock, self._settings = store, clock, settings

    def recover(self) -> None:
        """Reads what is stored; once, before the first request."""

    def topic_deleted(self, unit: Unit, topic: str) -> None:
        """Drops the topic's offsets of every group, as part of `unit`."""
