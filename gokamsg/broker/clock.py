"""Time, as the broker sees it: wall clock, monotonic clock and timers on the event loop.

Everything that waits takes a Clock, so that tests move time by hand. Timers run their callback on the loop that owns
the broker's state; cancelling one that has run already does nothing.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the broker asks of time."""

    def wall_ms(self) -> int: ...

    def monotonic(self) -> float: ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...


class SystemClock:
    """The machine's clocks; timers need a running event loop."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)
