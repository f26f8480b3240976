"""The broker's state, owned by one asyncio loop: what handlers are given.

Nothing here does I/O of its own; the parts do, and each says how. Threads: the broker's loop only, but for `control`,
whose interceptions may be set from any thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec import Struct

from gokamsg.broker.cache import CacheBudget
from gokamsg.broker.clock import Clock
from gokamsg.broker.control import Control
from gokamsg.broker.groups import GroupCoordinator
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.offsets import OffsetStore
from gokamsg.broker.reader import ColdReader
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.store import Store
from gokamsg.broker.topics import Topics
from gokamsg.broker.transactions import TransactionCoordinator

NODE_ID = 1


class Broker(Struct):
    """Everything that a handler may need."""

    settings: BrokerSettings
    clock: Clock
    random: random.Random
    store: Store
    reader: ColdReader
    budget: CacheBudget
    topics: Topics
    offsets: OffsetStore
    groups: GroupCoordinator
    transactions: TransactionCoordinator
    control: Control
    cluster_id: str
    host: str  # where clients are told to connect
    port: int
    answer_room: Callable[[], int]  # bytes of answers that may be made before clients read what they have
    node_id: int = NODE_ID

    def log(self, topic: str, partition: int) -> PartitionLog | None:
        """The partition's log, or None when there is no such topic or partition."""
        return self.topics.log(topic, partition)
