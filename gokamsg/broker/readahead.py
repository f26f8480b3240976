"""What the client of one connection was given and has not asked to go on with: it is still busy with that.

A client that fetches ahead leaves out of its next request what it has not handed on yet, and most clients have one
request under way to each broker. If that request, for partitions that are read to their end, waits its full time, the
client waits with it: it is done with what it has, and cannot ask for more of that; or (kafka-python 3.0, if an answer
comes while it sends the next request) it has records, and hands them on only after the next answer.

1. While a partition is left out, a request for others is answered early, with nothing: FIRST_WAIT_S after it came, then
   after twice as long each time, until the client goes on with one that it had left out.
2. Once that is as long as the client is willing to wait, what it left out is forgotten: it is paused, or another's.

Apache Kafka waits the full time.

Threads: the broker's loop only.
"""

from __future__ import annotations

from collections.abc import Iterable

from gokamsg.broker.log import PartitionLog

FIRST_WAIT_S = 0.02


class ReadAhead:
    """One connection's; see the module's contract."""

    def __init__(self) -> None:
        self._left_out: set[PartitionLog] = set()
        self._wait_s = FIRST_WAIT_S

    def asked(self, logs: Iterable[PartitionLog]) -> None:
        """A request for these has come."""
        for log in logs:
            if log in self._left_out:
                self._left_out.remove(log)
                self._wait_s = FIRST_WAIT_S

    def gave(self, log: PartitionLog) -> None:
        """Records of it are part of the answer."""
        self._left_out.add(log)

    def wait_s(self, longest_s: float) -> float:
        """Seconds that a request which finds nothing waits, of the `longest_s` that it allows."""
        return min(self._wait_s, longest_s) if self._left_out else longest_s

    def answered_early(self, longest_s: float) -> None:
        """A request that allowed `longest_s` was not left to wait for so long."""
        self._wait_s *= 2
        if self._wait_s >= longest_s:
            self._left_out.clear()
            self._wait_s = FIRST_WAIT_S
