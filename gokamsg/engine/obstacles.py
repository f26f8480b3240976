"""Why a worker makes no progress, said once in its log when that begins, and once when it is over.

Three things keep a worker waiting that are not its own: brokers that are silent, transactions that are refused again
and again, and a start that waits for somebody else. Owned by the worker's thread; `notice` may be read from others.
"""

import logging
from collections.abc import Callable

from gokamsg.engine.silence import Silence

log = logging.getLogger(__name__)

PATIENT_TRIES = 3
FIRST_REST_S = 0.05
LONGEST_REST_S = 1.0


class Obstacles:
    """See the module."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._silence = Silence(now)
        self._refusal: str | None = None
        self._refused = 0
        self._refused_at = -1  # how many commits there were
        self._standstill: str | None = None

    @property
    def notice(self) -> str | None:
        """The reason in a sentence; None while nothing is in the way."""
        return self._silence.notice or self._refusal or self._standstill

    @property
    def is_silent(self) -> bool:
        """Whether the brokers do not answer."""
        return self._silence.notice is not None

    def unanswered(self, notice: str) -> None:
        """The brokers do not answer, by what `notice` says."""
        self._silence.begin(notice)

    def watch_brokers(self, obstacle: str | None) -> None:
        """Call it in every turn, with what is between the worker and the partitions that it reads."""
        self._silence.watch(obstacle)

    def refused(self, error: Exception, commits: int) -> float:
        """A transaction failed, after so many `commits`; returns for how many seconds to rest.

        Most failures pass with the next try; what lasts (a clock that a topic does not take timestamps of, a right that
        was taken away) would else be a loop at full speed that nobody hears of.
        """
        if self._refused_at != commits:
            self._refused, self._refused_at = 0, commits
        self._refused += 1
        if self._refused < PATIENT_TRIES:
            return 0.0
        if self._refusal is None:
            log.warning("%s; trying again", error)
        self._refusal = str(error)
        return min(LONGEST_REST_S, FIRST_REST_S * (1 << min(self._refused - PATIENT_TRIES, 10)))

    def rebalanced(self) -> None:
        """A group that moves is a reason of its own for transactions to fail, and waits for nobody."""
        self._refused = 0

    def watch_commits(self, commits: int) -> None:
        """Call it in every turn."""
        if self._refusal is not None and self._refused_at != commits:
            log.warning("transactions are committed again; going on")
            self._refusal = None

    def watch_start(self, standstill: str | None, *, settled: bool) -> None:
        """Call it in every turn, with what the assignment has waited for too long, and whether it waits no more."""
        if standstill:
            if not self._standstill:
                log.warning("%s", standstill)
            self._standstill = standstill
        elif self._standstill and settled:
            log.warning("every partition is at work; going on")
            self._standstill = None
