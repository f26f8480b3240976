"""Committed offsets of consumer groups, and the offsets that open transactions will commit.

1. An offset is visible only after it is durable; fetch() never answers with one that a crash could take back.
2. Offsets of a transaction become the group's in the same write unit as the transaction's markers, or vanish in it.
3. The offsets of a group without members expire when `offsets_retention_ms` have passed since it was left (or since the
   commit, for a group that never had members); an offset that a transaction is about to replace does not.

Not here: who may commit (groups, transactions). Runs on the broker's loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import msgspec
from msgspec import Struct

from gokamsg.broker.clock import Clock
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.store import Store, WriteUnit

SPACE = "offset"  # key: group, topic, partition
PENDING_SPACE = "transaction_offset"  # key: producer id, group, topic, partition
MAX_METADATA_BYTES = 4096

TopicPartition = tuple[str, int]


class CommittedOffset(msgspec.Struct, frozen=True):
    """A group's position in one partition."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""
    commit_ms: int = 0


Offsets = Mapping[TopicPartition, CommittedOffset]


class Effect(Struct, frozen=True):
    """What becomes visible once its write unit is durable."""

    apply: Callable[[], None]


def commit_unheard(store: Store, unit: WriteUnit) -> None:
    """Commit what nobody waits for; a failure stops the broker in any case."""
    store.commit(unit).add_done_callback(lambda future: None if future.cancelled() else future.exception())


def _key(*parts: str | int) -> str:
    return "\0".join(str(part) for part in parts)


class OffsetStore:
    """Owns every group's committed and pending offsets."""

    def __init__(self, *, store: Store, clock: Clock, settings: BrokerSettings) -> None:
        self._store = store
        self._clock = clock
        self._retention_ms = settings.offsets_retention_ms
        self._committed: dict[str, dict[TopicPartition, CommittedOffset]] = {}
        self._pending: dict[str, dict[int, dict[TopicPartition, CommittedOffset]]] = {}

    def recover(self) -> None:
        """Read what is stored; once, before the first request."""
        for key, value in self._store.scan(SPACE):
            group, topic, partition = key.rsplit("\0", 2)
            offset = msgspec.msgpack.decode(value, type=CommittedOffset)
            self._committed.setdefault(group, {})[topic, int(partition)] = offset
        for key, value in self._store.scan(PENDING_SPACE):
            producer, rest = key.split("\0", 1)
            group, topic, partition = rest.rsplit("\0", 2)
            offset = msgspec.msgpack.decode(value, type=CommittedOffset)
            self._pending_of(group, int(producer))[topic, int(partition)] = offset

    def groups(self) -> set[str]:
        """The groups that have offsets, committed or pending."""
        return self._committed.keys() | self._pending.keys()

    # ---- commits

    def commit(self, group: str, offsets: Offsets) -> Awaitable[None]:
        """Commit at once, outside a transaction; resolves when durable and visible."""
        unit = self._store.unit()
        self.stage_commit(unit, group, offsets)
        return self._store.commit(unit)

    def stage_commit(self, unit: WriteUnit, group: str, offsets: Offsets) -> None:
        """The offsets become the group's with `unit`."""
        for (topic, partition), offset in offsets.items():
            unit.put(SPACE, _key(group, topic, partition), msgspec.msgpack.encode(offset))
        unit.then(Effect(lambda: self._committed.setdefault(group, {}).update(offsets)))

    def stage_pending(self, unit: WriteUnit, group: str, producer_id: int, offsets: Offsets) -> None:
        """The offsets wait for the end of the producer's transaction; from now on they count as unstable."""
        for (topic, partition), offset in offsets.items():
            unit.put(PENDING_SPACE, _key(producer_id, group, topic, partition), msgspec.msgpack.encode(offset))
        # At once: a reader that requires stable offsets must not slip in between, and a crash drops them with the unit.
        self._pending_of(group, producer_id).update(offsets)

    def stage_end(self, unit: WriteUnit, producer_id: int, groups: Iterable[str], *, commit: bool) -> None:
        """The producer's transaction ends with `unit`: its pending offsets are committed, or dropped."""
        for group in groups:
            offsets = dict(self._pending.get(group, {}).get(producer_id, {}))
            for topic, partition in offsets:
                unit.delete(PENDING_SPACE, _key(producer_id, group, topic, partition))
            if commit and offsets:
                self.stage_commit(unit, group, offsets)
            unit.then(Effect(partial(self._drop_pending, group, producer_id)))

    # ---- reads

    def fetch(self, group: str, partition: TopicPartition) -> CommittedOffset | None:
        """The committed offset; None when the group has none here."""
        return self._committed.get(group, {}).get(partition)

    def partitions(self, group: str) -> list[TopicPartition]:
        """Where the group has a committed or pending offset."""
        pending = {tp for offsets in self._pending.get(group, {}).values() for tp in offsets}
        return sorted(self._committed.get(group, {}).keys() | pending)

    def is_unstable(self, group: str, partition: TopicPartition) -> bool:
        """True while an open transaction may replace the offset."""
        return any(partition in offsets for offsets in self._pending.get(group, {}).values())

    # ---- removal

    def stage_delete(self, unit: WriteUnit, group: str, partitions: Iterable[TopicPartition]) -> None:
        """Delete committed and pending offsets with `unit`."""
        gone = list(partitions)
        producers = list(self._pending.get(group, {}))
        for topic, partition in gone:
            unit.delete(SPACE, _key(group, topic, partition))
            for producer_id in producers:
                unit.delete(PENDING_SPACE, _key(producer_id, group, topic, partition))
        unit.then(Effect(partial(self._forget, group, gone)))

    def stage_delete_group(self, unit: WriteUnit, group: str) -> None:
        """Delete everything the group has."""
        self.stage_delete(unit, group, self.partitions(group))

    def topic_deleted(self, unit: WriteUnit, topic: str) -> None:
        """Delete the topic's offsets in every group, as part of `unit`."""
        for group in self.groups():
            partitions = [tp for tp in self.partitions(group) if tp[0] == topic]
            if partitions:
                self.stage_delete(unit, group, partitions)

    def stage_expired(self, unit: WriteUnit, group: str, empty_since_ms: int | None) -> None:
        """Delete what has expired of a group without members (since when; None: it never had any)."""
        limit_ms = self._clock.wall_ms() - self._retention_ms
        expired = [
            partition
            for partition, offset in self._committed.get(group, {}).items()
            if max(offset.commit_ms, empty_since_ms or 0) <= limit_ms and not self.is_unstable(group, partition)
        ]
        if expired:
            self.stage_delete(unit, group, expired)

    # ---- state

    def _pending_of(self, group: str, producer_id: int) -> dict[TopicPartition, CommittedOffset]:
        return self._pending.setdefault(group, {}).setdefault(producer_id, {})

    def _drop_pending(self, group: str, producer_id: int) -> None:
        producers = self._pending.get(group, {})
        producers.pop(producer_id, None)
        if not producers:
            self._pending.pop(group, None)

    def _forget(self, group: str, partitions: Iterable[TopicPartition]) -> None:
        committed = self._committed.get(group, {})
        for partition in partitions:
            committed.pop(partition, None)
            for offsets in self._pending.get(group, {}).values():
                offsets.pop(partition, None)
        if not committed:
            self._committed.pop(group, None)
        for producer_id in [p for p, offsets in self._pending.get(group, {}).items() if not offsets]:
            self._drop_pending(group, producer_id)
