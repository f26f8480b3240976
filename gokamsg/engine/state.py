"""Lifecycle states that others can wait for and observe.

One writer sets the state; any thread may read, wait or observe. Observers run on the writer's thread and must be quick.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

S = TypeVar("S", bound=enum.IntEnum)


class ProcessorState(enum.IntEnum):
    """Goka's processor states, in the order in which they are passed."""

    IDLE = 0
    STARTING = 1
    SETUP = 2
    RUNNING = 3
    STOPPING = 4
    STOPPED = 5


class ViewState(enum.IntEnum):
    """Goka's view states, in the order in which they are passed."""

    IDLE = 0
    INITIALIZING = 1
    CONNECTING = 2
    CATCH_UP = 3
    RUNNING = 4


class Signal(Generic[S]):
    """A state, its waiters and its observers."""

    def __init__(self, initial: S) -> None:
        self._state = initial
        self._changed = threading.Condition()
        self._observers: list[Callable[[S], None]] = []

    @property
    def state(self) -> S:
        """The present state."""
        return self._state

    def set(self, state: S) -> None:
        """Move to `state`; a no-op when already there."""
        with self._changed:
            if state == self._state:
                return
            self._state = state
            observers = list(self._observers)
            self._changed.notify_all()
        for observer in observers:
            observer(state)

    def wait_for(self, state: S, timeout_s: float | None = None) -> bool:
        """True once the state is exactly `state`; False when `timeout_s` passes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state == state, timeout_s)

    def wait_for_min(self, state: S, timeout_s: float | None = None) -> bool:
        """True once the state is `state` or later; False when `timeout_s` passes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state >= state, timeout_s)

    def observe(self, observer: Callable[[S], None]) -> Callable[[], None]:
        """Call `observer` with the present state and at each change; the returned function ends that."""
        with self._changed:
            self._observers.append(observer)
            state = self._state
        observer(state)

        def stop() -> None:
            with self._changed:
                if observer in self._observers:
                    self._observers.remove(observer)

        return stop
