"""The group coordinator: members, generations and assignments of classic consumer groups."""

import random as random_module
from typing import Protocol

from gokamsg.broker.clock import Clock
from gokamsg.broker.offsets import OffsetStore


class GroupSettings(Protocol):
    """What the group coordinator reads of the broker's settings."""

    @property
    def group_initial_rebalance_delay_ms(self) -> int: ...

    @property
    def group_min_session_timeout_ms(self) -> int: ...

    @property
    def group_max_session_timeout_ms(self) -> int: ...


class GroupCoordinator:
    """Owns every group; runs on the broker's loop."""

    def __init__(
        self, *, clock: Clock, random: random_module.Random, offsets: OffsetStore, settings: GroupSettings
    ) -> None:
        self._clock, self._random, self._offsets, self._settings = clock, random, offsets, settings

    def recover(self) -> None:
        """Reads what is stored; once, before the first request."""
