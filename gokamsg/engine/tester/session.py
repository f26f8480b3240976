"""One life of one program in the tester: its clients, its clock, and the moment at which it is killed.

A session is a Cluster (engine/cluster.py), so the engine's own processors, views and emitters run on it unchanged.
Every call of a client and every look at the monotonic clock is a step; at a step a session may crash: Crash goes
through everything that runs, and what the session does afterwards, cleaning up, reaches neither logs nor tables.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gokamsg.engine.clients import ClusterInfo, Patience
from gokamsg.engine.clock import Clock
from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.tester.broker import MemoryBroker
from gokamsg.engine.tester.clients import (
    MemoryAdmin,
    MemoryGroupConsumer,
    MemoryProducer,
    MemorySender,
    MemoryTableConsumer,
)


class Crash(BaseException):
    """The program was killed. Not an Exception: nothing may handle it."""


class Disk:
    """What outlives a program: its local tables and marks."""

    def __init__(self) -> None:
        self.storages: dict[tuple[str, int, str], KeptStorage] = {}
        self.marks: set[tuple[str, str, int]] = set()

    def has(self, topic: str, topic_id: str, partition: int) -> bool:
        return (topic, topic_id, partition) in self.marks

    def add(self, topic: str, topic_id: str, partition: int) -> None:
        self.marks.add((topic, topic_id, partition))

    def lose(self) -> None:
        """As on another machine."""
        self.storages.clear()
        self.marks.clear()


class KeptStorage(MemoryStorage):
    """A local table that stays as it is when its program was killed."""

    session: "Session"

    def write(self, changes: object, position: int) -> None:
        if self.session.alive:
            super().write(changes, position)  # type: ignore[arg-type]

    def clear(self) -> None:
        if self.session.alive:
            super().clear()


class Session:
    """See the module."""

    def __init__(
        self,
        broker: MemoryBroker,
        disk: Disk,
        slot: int,
        crashes: Callable[[], bool] | None = None,
        trouble_rate: float = 0.0,
    ) -> None:
        self.alive = True
        self.broker = broker
        self.clock = Clock(time=lambda: broker.now, monotonic=self._look, sleep=lambda seconds: None)
        self.groups: list[MemoryGroupConsumer] = []
        self.tables: list[MemoryTableConsumer] = []
        self.marks = self._disk = disk
        self._slot = slot
        self._crashes = crashes
        self._trouble_rate = trouble_rate
        self._group = ""

    def step(self) -> None:
        """Raises Crash when it is time."""
        if not self.alive:
            raise Crash
        if self._crashes is not None and self._crashes():
            self.alive = False
            raise Crash

    def refused(self) -> bool:
        """Whether this commit is one that the brokers refuse."""
        return self._trouble_rate > 0 and self.broker.random.random() < self._trouble_rate

    def unanswered(self) -> bool:
        """Whether this request, or the answer to it, is lost on the way."""
        return self.refused()

    def behind(self) -> bool:
        """Whether a consumer has something to read or to be told."""
        return any(group.behind() for group in self.groups) or any(table.behind() for table in self.tables)

    def _look(self) -> float:
        if self.alive:
            self.step()
        return self.broker.now

    # --- Cluster ------------------------------------------------------------------------------------------------

    def check(self) -> ClusterInfo:
        return self.admin().cluster()

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self.broker)

    def group_consumer(self, *, group: str, topics: Sequence[str], patience: Patience) -> MemoryGroupConsumer:
        self.groups.append(MemoryGroupConsumer(self, group, topics))
        return self.groups[-1]

    def table_consumer(
        self,
        *,
        topics: Iterable[str] = (),
        patience: Patience | None = None,
        fetched: Callable[[], None] | None = None,
    ) -> MemoryTableConsumer:
        self.tables.append(MemoryTableConsumer(self))
        return self.tables[-1]

    def transactional_producer(
        self, *, transactional_id: str, transaction_timeout_ms: int, topics: Iterable[str], patience: Patience
    ) -> MemoryProducer:
        return MemoryProducer(self, transactional_id)

    def idempotent_producer(self, *, topics: Iterable[str], patience: Patience) -> MemorySender:
        return MemorySender(self)

    def sender(self) -> MemorySender:
        return MemorySender(self)

    def home(self, state_dir: Path, cluster_id: str, group: str) -> "Session":
        self._group = group
        return self

    # --- Home ---------------------------------------------------------------------------------------------------

    @property
    def instance_id(self) -> str:
        return f"{self._group}-tester-{self._slot}"

    @property
    def transactional_id(self) -> str:
        return f"{self._group}-tester-{self._slot}"

    def storage(self, topic: str, partition: int, topic_id: str) -> KeptStorage:
        storage = self._disk.storages.setdefault((topic, partition, topic_id), KeptStorage())
        storage.session = self
        return storage

    def release(self) -> None:
        """Nothing is locked."""
