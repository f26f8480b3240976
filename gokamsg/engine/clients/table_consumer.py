"""The reader of table partitions: no group, read-committed, for restore, joins, lookups and views.

Positions are the caller's; a position that is not in the log any more is told (PositionLostError), never reset.
Owned by one thread.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from kafka import TopicPartition

from gokamsg.engine.clients.config import ClientConfig, connecting
from gokamsg.engine.clients.connection import know
from gokamsg.engine.clients.patience import Patience
from gokamsg.engine.clients.reader import Batches, BatchReader, TopicPart
from gokamsg.errors import GokamsgError

_IDLE_POLL_S = 0.05  # for what could not be fetched: the leader is being elected, or the connection rests
_NEW_TOPIC_WAIT_S = 1.0
_ADDED_WAIT_S = 0.03  # for a fetch to take in partitions that were added while it was parked


class TableConsumer(BatchReader):
    """Follows any set of partitions from given positions.

    kafka-python sends a fetch within a poll only: between the end of one fetch and the next poll nothing is followed.
    `fetched` is called, on its thread, when one has ended; the owner who polls then is never far behind.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        topics: Iterable[str] = (),
        patience: Patience | None = None,
        fetched: Callable[[], None] | None = None,
    ) -> None:
        """What is to be known of `topics` is asked for at once, for whoever needs it later."""
        super().__init__(config, patience=patience, group_id=None)
        self._looked_at = 0.0
        self._due = False  # a poll has something to take or to send
        self._added = False
        self._served = False  # known to be, since the last poll; until a fetch ends that does not change
        self._note_ends(fetched)
        know(self._consumer._manager, topics)

    def set_partitions(self, positions: Mapping[TopicPart, int]) -> None:
        """Reads exactly these from now on. Partitions that are read already keep their own position."""
        known, cluster = self.assignment(), self._consumer._cluster
        self._due = True
        self._added |= not known.issuperset(positions)
        wanted = [TopicPartition(topic, partition) for topic, partition in positions]
        if not wanted:
            self._consumer.unsubscribe()
            return
        new = {topic for topic, _ in positions if cluster.partitions_for_topic(topic) is None}
        if new:
            self._unpark()  # the question where they are would wait behind it
        self._consumer.assign(wanted)
        for (topic, partition), offset in positions.items():
            if (topic, partition) not in known:
                self.seek(topic, partition, offset)
        for topic in new:
            with suppress(GokamsgError):  # polls ask again
                self.partitions(topic, _NEW_TOPIC_WAIT_S)

    def poll(self, timeout_s: float) -> Batches:
        """As BatchReader.poll. A poll without waiting costs next to nothing while no fetch has ended.

        A fetch that is parked without partitions that were added meanwhile is waited for, shortly, and then replaced.
        """
        if not self._subscription.assigned_partitions():
            time.sleep(max(0.0, timeout_s))
            return {}
        now = time.monotonic()
        if timeout_s <= 0 and not (self._due or self.arrived() or self._overlooked(now)):
            return {}
        if self._added and self._misdirected():
            timeout_s = max(timeout_s, _ADDED_WAIT_S)
        self._looked_at = now
        self._due = self._added = self._served = False
        with connecting(self._config):
            return super().poll(timeout_s)

    def starting(self) -> bool:
        """Whether a partition is not followed yet, for want of a poll or of its leader."""
        if not (self._due or self._served):
            self._served = not self._unserved()
        return self._due or not self._served

    def log_start(self, topic: str, partition: int) -> int:
        return self.beginning_offsets([(topic, partition)])[topic, partition]

    def _overlooked(self, now: float) -> bool:
        return now - self._looked_at >= _IDLE_POLL_S and self.starting()

    def _note_ends(self, fetched: Callable[[], None] | None) -> None:
        # What a fetch brought is in its place by then, and another one may be sent. Those that a broker refuses, while
        # leaders move, end as soon as they are sent.
        clear = self._fetcher._clear_pending_fetch_request
        told_at = 0.0

        def clear_and_tell(*args: Any) -> None:
            nonlocal told_at
            clear(*args)
            self._due = True
            now = time.monotonic()
            if fetched is not None and (self.arrived() or now - told_at >= _IDLE_POLL_S):
                told_at = now
                fetched()

        self._fetcher._clear_pending_fetch_request = clear_and_tell
