"""Brokers that do not answer: said once in the log when that has lasted a while, and once when it is over.

Owned by one thread; `notice` may be read from others. Leaf.
"""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

SILENCE_S = 2.0
UNCONNECTED = "no broker is connected"


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
