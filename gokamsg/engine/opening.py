"""The start of a worker whose brokers go away in its middle and come back: it waits for them, as one at work does.

Nobody there in the first place is told at once, for an address may be wrong; a cluster that has answered is only away.
Several clients are made at the same time, so any thread may wait here; the log says once that the start waits, and
once that it is over.
"""

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from gokamsg.engine.clients import Patience
from gokamsg.errors import BrokerUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")

LASTS_S = 15.0
PAUSE_S = 0.1


class Opening:
    """See the module. It waits until `lasts_s` after the first time that a cluster that was seen did not answer."""

    def __init__(self, patience: Patience, *, lasts_s: float = LASTS_S) -> None:
        self._patience = patience
        self._lasts_s = lasts_s
        self._telling = threading.Lock()
        self._is_told = False
        self._is_seen = False
        self._since: float | None = None  # of the first time

    def seen(self) -> None:
        """The cluster has answered; from here on it is waited for."""
        self._is_seen = True

    def outlast(self, make: Callable[[], T]) -> T:
        """What `make` returns, asked again while no broker answers. BrokerUnavailableError of the last try."""
        while True:
            try:
                return make()
            except BrokerUnavailableError as error:
                if not self._is_seen or not self._may_wait(error):
                    raise
            with self._patience.alarm() as alarm:
                alarm.wait(self._patience.left_s(PAUSE_S))

    def over(self) -> None:
        """Everything is made."""
        if self._is_told:
            log.warning("the brokers answer again; going on")

    def _may_wait(self, error: BrokerUnavailableError) -> bool:
        with self._telling:
            self._since = self._since or monotonic()
            if self._patience.hurried or monotonic() - self._since >= self._lasts_s:
                return False
            if not self._is_told:
                log.warning("%s; trying again for %g s", error, self._lasts_s)
                self._is_told = True
            return True
