"""The clocks that the engine reads, passed in, so that a test can move them. Leaf."""

import time as system
from collections.abc import Callable

from msgspec import Struct


class Clock(Struct, frozen=True):
    """`time` is seconds since 1970, for timestamps; `monotonic` is seconds since some moment, for durations."""

    time: Callable[[], float] = system.time
    monotonic: Callable[[], float] = system.monotonic
    sleep: Callable[[float], None] = system.sleep

    def now_ms(self) -> int:
        """The timestamp of a record that is written now."""
        return int(self.time() * 1000)
