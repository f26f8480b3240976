"""How long a worker waits for the brokers: each wait has its own limit, and once the worker is to stop, all of them
together have STOP_S.

What a stop gives up is safe with the brokers: a transaction that was not committed is as if it had never been; one
whose end was asked for is settled by them, or by whoever has its transactional id next. Some of the time is spared for
what comes later in a stop, so that a commit without an answer leaves enough to abort it, and to leave the group.

hurry() may be called from any thread and from a signal handler; a wait under way notices within LOOK_EVERY_S, and one
with an alarm at once. Leaf.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from gokamsg.errors import BrokerUnavailableError

T = TypeVar("T")

STOP_S = 2.0
LOOK_EVERY_S = 0.05

SPARED_BY_COMMIT_S = 0.8
SPARED_BY_ABORT_S = 0.4
SPARED_BY_LEAVE_S = 0.2


class Alarm:
    """Wakes one thread. As an Event, but a signal handler may set it: no lock is held to do so."""

    __slots__ = ("_asleep",)

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def set(self) -> None:
        with suppress(RuntimeError):  # set before, and not waited for since
            self._asleep.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set, since it was last waited for, within the time."""
        return self._asleep.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))


class Patience:
    """See the module."""

    def __init__(self) -> None:
        self._end = math.inf
        self._alarms: list[Alarm] = []

    def hurry(self) -> None:
        """The worker is to stop."""
        self._end = min(self._end, time.monotonic() + STOP_S)
        for alarm in tuple(self._alarms):
            alarm.set()

    @contextmanager
    def alarm(self) -> Iterator["Alarm"]:
        """One that hurry() sets too, for a wait that is long where nothing happens."""
        alarm = Alarm()
        self._alarms.append(alarm)
        try:
            yield alarm
        finally:
            self._alarms.remove(alarm)

    @property
    def hurried(self) -> bool:
        return self._end < math.inf

    def limit(self, most_s: float) -> str:
        """In words, for who waited in vain."""
        return "before the stop" if self.hurried else f"within {most_s:g} s"

    def left_s(self, most_s: float, *, spared_s: float = 0.0) -> float:
        """How long a wait that begins now may last."""
        return max(0.0, min(most_s, self._end - spared_s - time.monotonic()))

    def wait(self, done: Callable[[float], object], most_s: float, *, spared_s: float = 0.0) -> bool:
        """Whether `done`, which waits for as long as it is told, came true in time. It is asked once at least."""
        end = time.monotonic() + most_s
        while True:
            left_s = self.left_s(end - time.monotonic(), spared_s=spared_s)
            if done(min(left_s, LOOK_EVERY_S)):
                return True
            if left_s <= 0:
                return False


class Making(Generic[T]):
    """What `make` returns or raises, made in a thread of its own: a constructor cannot be told to hurry."""

    def __init__(self, patience: Patience, make: Callable[[], T], discard: Callable[[T], None]) -> None:
        self._patience = patience
        self._make = make
        self._discard = discard
        self._made: Future[T] = Future()
        self._is_taken = False
        self._thread = threading.Thread(target=self._run, name="connect", daemon=True)
        self._thread.start()

    def result(self) -> T:
        """It is the caller's from here. A stop leaves it behind, with BrokerUnavailableError."""
        if not self._patience.wait(self.wait, math.inf, spared_s=SPARED_BY_ABORT_S):
            self.leave()
            raise BrokerUnavailableError("no broker answered before the stop")
        self._is_taken = True
        return self._made.result()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is made, or failed, within the time."""
        self._thread.join(timeout_s)
        return self._made.done()

    def leave(self) -> None:
        """What nobody has taken is discarded, also when it is made later."""
        if self._is_taken:
            return
        self._is_taken, discard = True, self._discard
        self._made.add_done_callback(lambda late: discard(late.result()) if late.exception() is None else None)

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:  # the waiting thread raises it
            self._made.set_exception(error)
