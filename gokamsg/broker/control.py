"""The control hook: a test observes, delays, answers or fails requests by API key.

    broker.control.on(0, lambda request, context: Drop())          # the next Produce closes its connection
    broker.control.on(26, lambda request, context: DropAfter())    # EndTxn is done, but the client never hears of it
    broker.control.on(1, lambda request, context: seen.append(request), times=None)

An action gets the decoded request and its context, on the broker's loop, and returns a reaction, or None to let the
request pass. Each request meets at most one interception, the oldest that is left for its key. Threads: on() and
cancel() may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from msgspec import Struct


class Delay(Struct, frozen=True):
    """Handle the request after so many seconds; its connection waits."""

    seconds: float


class Answer(Struct, frozen=True):
    """Send this response (built with version=context.api_version) instead of handling the request."""

    response: Any


class Drop(Struct, frozen=True):
    """Close the connection without handling the request."""


class DropAfter(Struct, frozen=True):
    """Handle the request, then close the connection instead of answering."""


Reaction = Delay | Answer | Drop | DropAfter | None
Action = Callable[[Any, Any], Reaction | Any]


class Interception:
    """One action set on one API key."""

    def __init__(self, control: Control, api_key: int, action: Action, times: int | None) -> None:
        self._control = control
        self.api_key = api_key
        self.action = action
        self.left = times
        self.seen = 0  # requests it has met

    def cancel(self) -> None:
        """Let requests pass again; doing so twice is harmless."""
        self._control.remove(self)


class Control:
    """The interceptions of one broker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[int, list[Interception]] = {}

    def on(self, api_key: int, action: Action, *, times: int | None = 1) -> Interception:
        """Run action for the next requests of a key: times many, or every one when times is None."""
        interception = Interception(self, api_key, action, times)
        with self._lock:
            self._by_key.setdefault(api_key, []).append(interception)
        return interception

    def remove(self, interception: Interception) -> None:
        with self._lock:
            left = self._by_key.get(interception.api_key, [])
            if interception in left:
                left.remove(interception)
            if not left:
                self._by_key.pop(interception.api_key, None)

    def react(self, api_key: int, request: Any, context: Any) -> Reaction:
        """What to do with a request; called by the connection that received it."""
        if api_key not in self._by_key:  # nearly always
            return None
        with self._lock:
            interceptions = self._by_key.get(api_key)
            if not interceptions:
                return None
            interception = interceptions[0]
            interception.seen += 1
            if interception.left is not None:
                interception.left -= 1
                if interception.left <= 0:
                    interceptions.pop(0)
                    if not interceptions:
                        del self._by_key[api_key]
        reaction = interception.action(request, context)
        return reaction if isinstance(reaction, Delay | Answer | Drop | DropAfter) else None
