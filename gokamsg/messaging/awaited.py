"""What an answer waits for: a message's acknowledgement, or a feed to change.

Threads: Watchers may be used from all; whoever is called, is called on the thread that brings the news.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from gokamsg.engine import Promise, RecordPosition
from gokamsg.errors import BrokerUnavailableError

from .answers import Answer

NOTHING_NEW = (304, 404)
"""The answers to whoever has the feed already, or asks for one that there is not."""


class Awaited(Protocol):
    """An answer to come."""

    @property
    def timeout_s(self) -> float:
        """How long to wait."""

    @property
    def gives_way(self) -> bool:
        """Whether it may as well be given now."""

    def on_done(self, call: Callable[[], None]) -> None:
        """Calls when it is known, at once or later, and once at least if it ever is."""

    def drop(self) -> None:
        """Nobody wants it any more."""

    def answer(self) -> Answer:
        """It, or why there is none, raised; if it is not known yet, the one for that case. Asked for once."""


class Acknowledgement(Struct, frozen=True):
    """Awaited: the brokers have a message."""

    promise: Promise
    timeout_s: float
    answered: Callable[[RecordPosition], Answer]
    gives_way: bool = False

    def on_done(self, call: Callable[[], None]) -> None:
        self.promise.then(lambda error: call())

    def drop(self) -> None:
        """It is sent, whoever wants to know."""

    def answer(self) -> Answer:
        if not self.promise.done:
            raise BrokerUnavailableError(
                f"the brokers have not acknowledged the message within {self.timeout_s:g} s; it may be sent or not"
            )
        return self.answered(self.promise.result(0))


class Watchers:
    """Who waits for which feed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, dict[object, Callable[[], None]]] = {}

    def add(self, user: str, watcher: object, call: Callable[[], None]) -> None:
        """Calls once, when the user's feed changes."""
        with self._lock:
            self._calls.setdefault(user, {})[watcher] = call

    def remove(self, user: str, watcher: object) -> None:
        with self._lock:
            calls = self._calls.get(user, {})
            calls.pop(watcher, None)
            if not calls:
                self._calls.pop(user, None)

    def changed(self, user: str) -> None:
        """This feed has changed."""
        if user in self._calls:  # seldom, of all that change
            with self._lock:
                calls = self._calls.pop(user, {})
            for call in calls.values():
                call()

    def may_have_changed(self) -> None:
        """Any feed."""
        for user in tuple(self._calls):
            self.changed(user)

    def __len__(self) -> int:
        return sum(len(calls) for calls in tuple(self._calls.values()))


class FeedChange:
    """Awaited: `read` has something to answer that the client does not know."""

    gives_way = True

    def __init__(self, watchers: Watchers, user: str, timeout_s: float, read: Callable[[], Answer]) -> None:
        self.timeout_s = timeout_s
        self._watchers = watchers
        self._user = user
        self._read = read

    def on_done(self, call: Callable[[], None]) -> None:
        self._watchers.add(self._user, self, call)
        if self._has_come():
            call()

    def _has_come(self) -> bool:
        """Whether there is something new since the client was found to have to wait."""
        try:
            return self._read().status not in NOTHING_NEW
        except Exception:
            return True  # answer() raises it where it is told

    def drop(self) -> None:
        self._watchers.remove(self._user, self)

    def answer(self) -> Answer:
        self.drop()
        return self._read()
