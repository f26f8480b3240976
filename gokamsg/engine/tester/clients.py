"""The clients of engine/cluster.py on logs in memory. They raise what the real ones raise; nothing here waits."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from gokamsg.engine.clients import (
    Assigned,
    Batches,
    ClusterInfo,
    Event,
    Membership,
    NewTopic,
    Place,
    Revoked,
    Topic,
    TopicPart,
)
from gokamsg.engine.records import BatchBuilder
from gokamsg.engine.tester.broker import GroupMember, MemoryBroker, MemoryGroup
from gokamsg.engine.tester.log import MemoryTransaction
from gokamsg.errors import (
    BrokerUnavailableError,
    FencedError,
    IdentityError,
    OutcomeUnknownError,
    PositionLostError,
    TransactionAbortedError,
)

MOST_BATCHES = 3
"""A poll hands out 1 to so many batches of a partition, by the tester's dice."""

GATHERS = 0.5
"""How often a worker that has more to read is told so, and gathers it into its transaction."""


class Life(Protocol):
    """What a client knows of its session."""

    alive: bool
    broker: MemoryBroker

    def step(self) -> None: ...
    def refused(self) -> bool: ...
    def unanswered(self) -> bool: ...


class _Reader:
    def __init__(self, life: Life) -> None:
        self._life = life
        self._broker = life.broker
        self._positions: dict[TopicPart, int] = {}
        self._paused: set[TopicPart] = set()
        self._closed = False

    def position(self, topic: str, partition: int) -> int:
        return self._positions[topic, partition]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._positions[topic, partition] = offset

    def assignment(self) -> set[TopicPart]:
        return set(self._positions)

    def partitions(self, topic: str) -> int:
        return len(self._broker.topic(topic).logs)

    def lags(self) -> dict[TopicPart, int | None]:
        return {part: self._broker.log(part).end - position for part, position in self._positions.items()}

    def connected(self) -> bool:
        return True

    def leaderless(self) -> Collection[TopicPart]:
        return ()

    def close(self) -> None:
        self._closed = True

    def _answered(self) -> None:
        if self._life.unanswered():
            raise BrokerUnavailableError("no broker answers, by the tester's dice")

    def _fetch(self) -> Batches:
        fetched: Batches = {}
        parts = sorted(self._positions.keys() - self._paused)
        self._broker.random.shuffle(parts)
        for part in parts:
            position, log = self._positions[part], self._broker.log(part)
            if position > log.end:
                raise PositionLostError(f"{part[0]}/{part[1]} has no offset {position}", {part: position})
            batches, self._positions[part] = log.read(position, self._broker.random.randint(1, MOST_BATCHES))
            if batches:
                fetched[part] = batches
        return fetched


class MemoryGroupConsumer(_Reader):
    """The input consumer of a worker."""

    def __init__(self, life: Life, group: str, topics: Sequence[str]) -> None:
        super().__init__(life)
        self._name = group
        self._topics = topics
        self._joined: GroupMember | None = None
        self._generation = -1
        self._events: list[Event] = []

    def join_as(self, instance_id: str) -> None:
        self._life.step()
        self._joined = self._broker.join(self._name, instance_id, self._topics)

    def join_until(self, done: Callable[[float], bool]) -> None:
        """Nothing takes time here, so that what happens is in the dice alone."""

    def poll(self, timeout_s: float) -> Batches:
        self.attend()
        return {} if self._events else self._fetch()

    def attend(self) -> None:
        self._life.step()
        fatal = self.fatal()
        if fatal is not None:
            raise fatal
        if self._is_outdated:
            if self._positions:
                self._events.append(Revoked(frozenset(self._positions)))
            self._generation = self._group.generation
            self._positions = dict.fromkeys(self._member.partitions, 0)
            self._paused = set(self._positions)
            member = self._member
            membership = Membership(self._name, self._generation, member.member_id, member.instance_id)
            self._events.append(Assigned(member.partitions, membership))

    def behind(self) -> bool:
        """Whether there is something to read or to be told."""
        if self._closed or self._joined is None:
            return False
        ends = self._broker.stable_ends(self._positions)
        return self._is_outdated or any(self._positions[part] < end for part, end in ends.items())

    def arrived(self) -> bool:
        """By the tester's dice, so that transactions are cut here and there."""
        ends = self._broker.stable_ends(self._positions.keys() - self._paused)
        more = any(self._positions[part] < end for part, end in ends.items())
        return more and self._broker.random.random() < GATHERS

    def wake(self) -> None:
        """Nothing to do: no poll waits here."""

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def will_rejoin(self) -> bool:
        """By the dice: on Kafka too some rebalances are found out only in a poll."""
        return self._is_outdated and self._broker.random.random() < 0.5

    def fatal(self) -> IdentityError | None:
        if self._member.member_id in self._group.members:
            return None
        return IdentityError(f"another process uses this worker's identity {self._member.instance_id!r}")

    def pause(self, partitions: Collection[TopicPart]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Collection[TopicPart]) -> None:
        self._paused.difference_update(partitions)

    def committed(self, partitions: Collection[TopicPart], timeout_s: float) -> dict[TopicPart, int | None]:
        self._life.step()
        return {part: self._group.offsets.get(part) for part in partitions}

    def commit(self, offsets: Mapping[TopicPart, int], membership: Membership) -> None:
        self._life.step()
        self._group.check(membership)
        self._group.offsets.update(offsets)
        self._life.step()

    def leave(self) -> None:
        self._life.step()
        self._broker.leave(self._name, self._member.member_id)
        self.close()

    @property
    def _member(self) -> GroupMember:
        assert self._joined is not None
        return self._joined

    @property
    def _is_outdated(self) -> bool:
        return self._generation != self._group.generation

    @property
    def _group(self) -> MemoryGroup:
        return self._broker.groups[self._name]


class MemoryTableConsumer(_Reader):
    """The reader of table partitions."""

    def set_partitions(self, positions: Mapping[TopicPart, int]) -> None:
        self._positions = {part: self._positions.get(part, start) for part, start in positions.items()}

    def poll(self, timeout_s: float) -> Batches:
        self._life.step()
        self._answered()
        return self._fetch()

    def starting(self) -> bool:
        return False

    def behind(self) -> bool:
        """Whether there is something to read."""
        ends = {} if self._closed else self._broker.stable_ends(self._positions)
        return any(self._positions[part] < end for part, end in ends.items())

    def offsets(self, places: Mapping[Place, Collection[TopicPart]]) -> dict[Place, dict[TopicPart, int]]:
        self._life.step()
        self._answered()
        return {place: self._where(place, partitions) for place, partitions in places.items()}

    def end_offsets(self, partitions: Collection[TopicPart], *, read_committed: bool = False) -> dict[TopicPart, int]:
        place = Place.STABLE_END if read_committed else Place.END
        return self.offsets({place: partitions})[place]

    def log_start(self, topic: str, partition: int) -> int:
        return 0

    def _where(self, place: Place, partitions: Collection[TopicPart]) -> dict[TopicPart, int]:
        if place is Place.STABLE_END:
            return self._broker.stable_ends(partitions)
        return {part: self._broker.log(part).end if place is Place.END else 0 for part in partitions}


class MemoryProducer:
    """The transactional producer of a worker."""

    def __init__(self, life: Life, transactional_id: str) -> None:
        self._life = life
        self._broker = life.broker
        self._id = transactional_id
        self._written: dict[TopicPart, int] = {}

    def init(self, timeout_s: float) -> None:
        self._life.step()
        self._broker.own(self._id, self)

    def begin(self) -> None:
        self._own()
        self._broker.transactions[self._id] = MemoryTransaction()
        self._written = {}

    def send_many(self, batches: Sequence[tuple[str, int, BatchBuilder]]) -> None:
        for topic, partition, builder in batches:
            self._own()
            base = self._broker.topic(topic).append(partition, builder, self._broker.transactions[self._id])
            self._written[topic, partition] = base + builder.count

    def commit(
        self, offsets: Mapping[TopicPart, int], membership: Membership | None, timeout_s: float
    ) -> dict[TopicPart, int]:
        self._own()
        group = self._broker.groups[membership.group] if membership is not None else None
        if group is not None and membership is not None:
            group.check(membership)
        if self._life.refused():
            raise TransactionAbortedError(f"transaction of {self._id!r}: the tester's dice refuse it")
        if self._life.unanswered():
            raise OutcomeUnknownError(f"transaction of {self._id!r}: lost before it reached the brokers")
        transaction = self._broker.transactions.pop(self._id, None)
        if transaction is None:
            raise TransactionAbortedError(f"transaction of {self._id!r}: the broker does not know it")
        transaction.end(commit=True)
        if group is not None:
            group.offsets.update(offsets)
        self._life.step()
        if self._life.unanswered():
            raise OutcomeUnknownError(f"transaction of {self._id!r}: committed, and the answer was lost")
        return self._written

    def abort(self, timeout_s: float) -> None:
        if not self._life.alive:
            return
        self._own()
        transaction = self._broker.transactions.pop(self._id, None)
        if transaction is not None:
            transaction.end(commit=False)

    def partition_count(self, topic: str) -> int:
        return len(self._broker.topic(topic).logs)

    def close(self, timeout_s: float) -> None:
        """An open transaction is left to the next owner of the id."""

    def _own(self) -> None:
        self._life.step()
        if self._broker.owners.get(self._id) is not self:
            raise FencedError(f"transaction of {self._id!r}: another process uses this id")


class MemorySent:
    """A batch that is written already."""

    def __init__(self, partition: int, base_offset: int) -> None:
        self.partition = partition
        self._base_offset = base_offset

    def error(self) -> Exception | None:
        return None

    def base_offset(self) -> int:
        return self._base_offset

    def on_done(self, callback: Callable[[], None]) -> None:
        callback()


class MemorySender:
    """The producer of an emitter, and of a worker that writes at least once."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._broker = life.broker
        self._written: dict[TopicPart, int] = {}

    def put(self, topic: str, partition: int, builder: BatchBuilder) -> MemorySent:
        self._life.step()
        return MemorySent(partition, self._broker.topic(topic).append(partition, builder))

    def send(self, topic: str, partition: int, builder: BatchBuilder) -> None:
        count = builder.count
        self._written[topic, partition] = self.put(topic, partition, builder).base_offset() + count

    def flush(self, timeout_s: float) -> dict[TopicPart, int]:
        self._life.step()
        written, self._written = self._written, {}
        return written

    def partition_count(self, topic: str) -> int:
        return len(self._broker.topic(topic).logs)

    def connected(self) -> bool:
        return True

    def shut(self, timeout_s: float) -> None:
        """Nothing to end."""

    def close(self, timeout_s: float) -> None:
        """Nothing to end."""


class MemoryAdmin:
    """Topics and offsets."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def create_topics(self, topics: Iterable[NewTopic]) -> set[str]:
        made = set()
        for topic in topics:
            if topic.name not in self._broker.topics:
                self._broker.create(topic.name, topic.partitions, topic.config)
                made.add(topic.name)
        return made

    def describe_topics(self, names: Collection[str]) -> dict[str, Topic]:
        known = self._broker.topics
        return {name: Topic(name, len(known[name].logs), 1, known[name].topic_id) for name in names if name in known}

    def existing_topics(self, names: Collection[str]) -> dict[str, Topic]:
        """The same: what is made here is known at once."""
        return self.describe_topics(names)

    def topic_configs(self, names: Collection[str], keys: Collection[str] = ()) -> dict[str, dict[str, str]]:
        return {name: {"cleanup.policy": "delete", **self._broker.topic(name).config} for name in names}

    def cluster(self) -> ClusterInfo:
        return ClusterInfo(self.cluster_id(), 1)

    def cluster_id(self) -> str:
        return "tester"

    def high_watermarks(self, partitions: Collection[TopicPart]) -> dict[TopicPart, int]:
        return {part: self._broker.log(part).end for part in partitions}

    def log_starts(self, partitions: Collection[TopicPart]) -> dict[TopicPart, int]:
        return dict.fromkeys(partitions, 0)

    def offsets_at(self, partitions: Collection[TopicPart], timestamp_ms: int) -> dict[TopicPart, int]:
        return {part: self._broker.log(part).offset_at(timestamp_ms) for part in partitions}

    def close(self) -> None:
        """Nothing to close."""
