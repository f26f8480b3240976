"""The group coordinator: members, generations and assignments of classic consumer groups."""

import random as random_module

from gokamsg.broker.clock import Clock
from gokamsg.broker.offsets import OffsetStore
from gokamsg.broker.settings import BrokerSettings


class GroupCoordinator:
    """Owns every group; runs on the broker's loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: random_module.Random,
        store: object,
        offsets: OffsetStore,
        settings: BrokerSettings,
    ) -> None:
        self._clock, self._random, self._store = clock, random, store
        self._offsets, self._settings = offsets, settings

    def recover(self) -> None:
        """Reads what is stored; once, before the first request."""
