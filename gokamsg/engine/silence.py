"""Brokers that do not answer a reader: said once in the log when that has lasted a while, and once when it is over.

Owned by one thread; `notice` may be read from others. Leaf.
"""

import logging
from collections.abc import Callable, Collection
from typing import Protocol

log = logging.getLogger(__name__)

SILENCE_S = 2.0


class Reader(Protocol):
    """Whoever reads partitions; both say what is known, and ask nobody."""

    def connected(self) -> bool: ...
    def leaderless(self) -> Collection[tuple[str, int]]: ...


def obstacle_of(reader: Reader) -> str | None:
    """What stands between it and its brokers right now, in words; None if nothing does."""
    if not reader.connected():
        return "no broker is connected"
    topic, partition = min(reader.leaderless(), default=(None, None))
    return None if topic is None else f"{topic}/{partition} has no leader, or its topic was deleted"


class Silence:
    """See the module."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._notice: str | None = None
        self._heard_at = now()

    @property
    def notice(self) -> str | None:
        """The reason in a sentence; None while the brokers answer."""
        return self._notice

    def begin(self, notice: str) -> None:
        """They do not answer, by what `notice` says."""
        if self._notice is None:
            log.warning("%s; trying again until one answers", notice)
        self._notice = notice

    def watch(self, notice: str | None) -> None:
        """Call it in every turn, with what is in the way; what is over within SILENCE_S is not worth a word."""
        if notice is None:
            self._heard_at = self._now()
            if self._notice is not None:
                log.warning("the brokers answer again; going on")
                self._notice = None
        elif self._now() - self._heard_at >= SILENCE_S:
            self.begin(notice)
