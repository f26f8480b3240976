"""The reader of table partitions: no group, read-committed, for restore, joins, lookups and views.

Positions are the caller's; a position that is not in the log any more is told (PositionLostError), never reset.
Owned by one thread.
"""

import time
from collections.abc import Mapping

from kafka import TopicPartition

from gokamsg.engine.clients.config import ClientConfig, connecting
from gokamsg.engine.clients.patience import Patience
from gokamsg.engine.clients.reader import Batches, BatchReader, TopicPart

_IDLE_POLL_S = 0.05


class TableConsumer(BatchReader):
    """Follows any set of partitions from given positions."""

    def __init__(self, config: ClientConfig, *, patience: Patience | None = None) -> None:
        super().__init__(config, patience=patience, group_id=None)
        self._looked_at = 0.0

    def set_partitions(self, positions: Mapping[TopicPart, int]) -> None:
        """Reads exactly these from now on. Partitions that are read already keep their own position."""
        known = self.assignment()
        wanted = [TopicPartition(topic, partition) for topic, partition in positions]
        if not wanted:
            self._consumer.unsubscribe()
            return
        self._consumer.assign(wanted)
        for (topic, partition), offset in positions.items():
            if (topic, partition) not in known:
                self.seek(topic, partition, offset)

    def poll(self, timeout_s: float) -> Batches:
        """As BatchReader.poll. A poll without waiting costs next to nothing while nothing has arrived."""
        if not self._subscription.assigned_partitions():
            time.sleep(max(0.0, timeout_s))
            return {}
        now = time.monotonic()
        if timeout_s <= 0 and now - self._looked_at < _IDLE_POLL_S and not self.arrived():
            return {}
        self._looked_at = now
        with connecting(self._config):
            return super().poll(timeout_s)

    def log_start(self, topic: str, partition: int) -> int:
        return self.beginning_offsets([(topic, partition)])[topic, partition]
