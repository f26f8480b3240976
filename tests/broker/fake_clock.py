"""A clock that tests move by hand, and the wrapper that runs a test on an event loop."""

import asyncio
import functools
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

START_MS = 1_700_000_000_000


class FakeTimer:
    """One callback that waits; cancelled ones are skipped."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time stands still until advance(); timers run in the order of their times, at their times."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._count = itertools.count()

    def wall_ms(self) -> int:
        return START_MS + round(self._now_s * 1000)

    def monotonic(self) -> float:
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (self._now_s + delay_s, next(self._count), timer))
        return timer

    def advance(self, seconds: float) -> None:
        until_s = self._now_s + seconds
        while self._timers and self._timers[0][0] <= until_s:
            self._now_s, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._now_s = until_s


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test to its end; a test that waits for what never comes fails after 10 s."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), timeout=10))

    return run
