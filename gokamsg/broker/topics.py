"""Topics: names, ids, partitions and configs; created, grown, altered and deleted in one write unit each.

1. A change is visible only once it is durable; two clients that create one name at once get one topic and one refusal.
2. Topic ids are random and never zero. A partition's number in the data file is never used again, so a topic that is
   created anew under an old name shares nothing with it.
3. The rows of deleted partitions are left to the cleaner ("doomed"); nobody can read them any more.

Threads: the broker's loop only.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping

import msgspec
from msgspec import Struct

from gokamsg.broker.cache import CacheBudget
from gokamsg.broker.clock import Clock
from gokamsg.broker.codes import Code
from gokamsg.broker.configs import TopicConfig
from gokamsg.broker.log import ABORTED_SPACE, LOG_SPACE, PartitionLog
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.store import Store, WriteUnit

TOPIC_SPACE = "topic"
DOOMED_SPACE = "doomed"
META_SPACE = "meta"
_NEXT_NUMBER = "next-partition-number"
_LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")


class TopicError(Exception):
    """A change that is refused: the protocol's code and a sentence for the client."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class TopicRecord(msgspec.Struct, array_like=True):
    """A topic as it is stored."""

    id: bytes
    numbers: list[int]  # of its partitions, in their order
    configs: dict[str, str]


class Topic(Struct):
    """One topic."""

    name: str
    id: uuid.UUID
    partitions: list[PartitionLog]
    configs: dict[str, str]
    config: TopicConfig

    def record(self) -> bytes:
        numbers = [log.number for log in self.partitions]
        return msgspec.msgpack.encode(TopicRecord(self.id.bytes, numbers, self.configs))


class Topics:
    """All topics, by name and by id."""

    def __init__(
        self,
        *,
        store: Store,
        settings: BrokerSettings,
        budget: CacheBudget,
        clock: Clock,
        topic_deleted: Callable[[WriteUnit, str], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._budget = budget
        self._clock = clock
        self._topic_deleted = topic_deleted  # the committed offsets of a topic go with it
        self._by_name: dict[str, Topic] = {}
        self._by_id: dict[uuid.UUID, Topic] = {}
        self._changing: set[str] = set()
        self._next_number = 1
        self.doomed: set[int] = set()  # numbers of deleted partitions whose rows are still there

    # ---- looking up

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Topic | None:
        return self._by_name.get(name)

    def by_id(self, topic_id: uuid.UUID | None) -> Topic | None:
        return None if topic_id is None else self._by_id.get(topic_id)

    def log(self, name: str, partition: int) -> PartitionLog | None:
        topic = self._by_name.get(name)
        if topic is None or not 0 <= partition < len(topic.partitions):
            return None
        return topic.partitions[partition]

    def logs(self) -> Iterator[tuple[Topic, PartitionLog]]:
        """Every partition of every topic; a copy, so that topics may come and go meanwhile."""
        return iter([(topic, log) for topic in self._by_name.values() for log in topic.partitions])

    # ---- changing

    def check_new(self, name: str, partitions: int) -> None:
        """Raise TopicError unless such a topic could be created now."""
        if name in (".", "..") or not _LEGAL_NAME.match(name or ""):
            raise TopicError(
                Code.INVALID_TOPIC_EXCEPTION,
                f"the topic name {name!r} is illegal: 1-249 characters out of a-z, A-Z, 0-9, '.', '_' and '-'",
            )
        if name in self._by_name or name in self._changing:
            raise TopicError(Code.TOPIC_ALREADY_EXISTS, f"topic {name!r} already exists")
        folded = name.replace(".", "_")
        for other in (*self._by_name, *self._changing):
            if other.replace(".", "_") == folded:
                raise TopicError(
                    Code.INVALID_TOPIC_EXCEPTION, f"topic {name!r} differs from {other!r} only in '.' and '_'"
                )
        if partitions < 1:
            raise TopicError(Code.INVALID_PARTITIONS, f"topic {name!r} needs at least 1 partition, not {partitions}")
        self._check_room(name, partitions)

    def _check_room(self, name: str, more: int) -> None:
        used = sum(len(topic.partitions) for topic in self)
        if used + more > self._settings.max_partitions:
            raise TopicError(
                Code.POLICY_VIOLATION,
                f"no {more} more partitions for topic {name!r}: {used} of {self._settings.max_partitions} are used",
            )

    async def create(self, name: str, partitions: int, configs: Mapping[str, str]) -> Topic:
        """Create a topic whose configs have been checked; raises TopicError."""
        self.check_new(name, partitions)
        unit = self._store.unit()
        logs = self._new_logs(unit, name, 0, partitions)
        topic = Topic(name, uuid.uuid4(), logs, dict(configs), TopicConfig.of(configs, self._settings))
        unit.put(TOPIC_SPACE, name, topic.record())
        self._changing.add(name)
        try:
            await self._store.commit(unit)
        finally:
            self._changing.discard(name)
        self._add(topic)
        return topic

    def check_growth(self, topic: Topic, partitions: int) -> None:
        """Raise TopicError unless the topic could have so many partitions."""
        have = len(topic.partitions)
        if partitions <= have:
            raise TopicError(
                Code.INVALID_PARTITIONS,
                f"topic {topic.name!r} has {have} partitions and can only grow, not to {partitions}",
            )
        self._check_room(topic.name, partitions - have)

    async def grow(self, topic: Topic, partitions: int) -> None:
        """Give the topic so many partitions in all; raises TopicError."""
        self.check_growth(topic, partitions)
        have = len(topic.partitions)
        self._begin(topic.name)
        try:
            unit = self._store.unit()
            logs = self._new_logs(unit, topic.name, have, partitions - have)
            grown = Topic(topic.name, topic.id, topic.partitions + logs, topic.configs, topic.config)
            unit.put(TOPIC_SPACE, topic.name, grown.record())
            await self._store.commit(unit)
            topic.partitions.extend(logs)
        finally:
            self._changing.discard(topic.name)

    async def configure(self, topic: Topic, configs: Mapping[str, str]) -> None:
        """Replace the topic's configs by these, which have been checked."""
        self._begin(topic.name)
        try:
            unit = self._store.unit()
            changed = Topic(topic.name, topic.id, topic.partitions, dict(configs), topic.config)
            unit.put(TOPIC_SPACE, topic.name, changed.record())
            await self._store.commit(unit)
            topic.configs = changed.configs
            topic.config = TopicConfig.of(configs, self._settings)
        finally:
            self._changing.discard(topic.name)

    async def delete(self, topic: Topic) -> None:
        """Delete the topic, its committed offsets included; raises TopicError."""
        self._begin(topic.name)
        try:
            unit = self._store.unit()
            unit.delete(TOPIC_SPACE, topic.name)
            for log in topic.partitions:
                unit.delete(LOG_SPACE, str(log.number))
                unit.put(DOOMED_SPACE, str(log.number), b"")
                for entry in log.aborted:
                    unit.delete(ABORTED_SPACE, log.aborted_key(entry.marker_offset))
            self._topic_deleted(unit, topic.name)
            await self._store.commit(unit)
        finally:
            self._changing.discard(topic.name)
        del self._by_name[topic.name]
        del self._by_id[topic.id]
        for log in topic.partitions:
            self.doomed.add(log.number)
            log.remove()

    def _begin(self, name: str) -> None:
        if name in self._changing:
            raise TopicError(Code.INVALID_REQUEST, f"topic {name!r} is being changed by another request; try again")
        self._changing.add(name)

    def _new_logs(self, unit: WriteUnit, name: str, first: int, count: int) -> list[PartitionLog]:
        logs = [self._log(name, first + index, self._next_number + index) for index in range(count)]
        self._next_number += count
        unit.put(META_SPACE, _NEXT_NUMBER, str(self._next_number).encode())
        return logs

    def _log(self, name: str, partition: int, number: int) -> PartitionLog:
        return PartitionLog(name, partition, number=number, budget=self._budget, clock=self._clock)

    def _add(self, topic: Topic) -> None:
        self._by_name[topic.name] = topic
        self._by_id[topic.id] = topic

    # ---- start-up

    def restore(self) -> None:
        """Read the topics from the store; their logs are empty until recovery.recover_logs() fills them."""
        for key, value in self._store.scan(META_SPACE):
            if key == _NEXT_NUMBER:
                self._next_number = int(value)
        self.doomed = {int(key) for key, _ in self._store.scan(DOOMED_SPACE)}
        for name, value in self._store.scan(TOPIC_SPACE):
            record = msgspec.msgpack.decode(value, type=TopicRecord)
            logs = [self._log(name, partition, number) for partition, number in enumerate(record.numbers)]
            config = TopicConfig.of(record.configs, self._settings)
            self._add(Topic(name, uuid.UUID(bytes=record.id), logs, record.configs, config))


TOPIC_RESOURCE = 2  # the resource type of topics in the config APIs
