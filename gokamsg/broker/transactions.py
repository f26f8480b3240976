"""The transaction coordinator: producer ids, epochs and transactions."""

import random as random_module
from collections.abc import Callable
from typing import Any

from gokamsg.broker.clock import Clock
from gokamsg.broker.groups import GroupCoordinator
from gokamsg.broker.offsets import OffsetStore
from gokamsg.broker.settings import BrokerSettings


class TransactionCoordinator:
    """Owns every producer id and transaction; runs on the broker's loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: random_module.Random,
        store: object,
        offsets: OffsetStore,
        logs: Callable[[str, int], Any],
        groups: GroupCoordinator,
        settings: BrokerSettings,
    ) -> None:
        self._clock, self._random, self._store = clock, random, store
        self._offsets, self._logs, self._groups, self._settings = offsets, logs, groups, settings

    def recover(self) -> None:
        """Reads what is stored; once, before the first request."""

    def check_append(self, producer_id: int, epoch: int, topic: str, partition: int) -> int:
        """The error code for a transactional append to this partition; 0 if it is allowed."""
        return 0
