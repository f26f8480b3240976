"""Upkeep in the background: retention, compaction, snapshots, free space.

Every round looks at every partition, one after the other, and does what is due. A round that fails is logged and the
next one tries again; if the disk has failed, the store has stopped the broker already. Threads: the broker's loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gokamsg.broker import compaction, retention
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.state import Broker
from gokamsg.broker.store import StoreError
from gokamsg.broker.topics import Topic

logger = logging.getLogger(__name__)


class Cleaner:
    """The upkeep of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._surveyed: dict[int, int] = {}  # partition number -> high watermark when compaction last found nothing

    async def run(self, *, also: Callable[[], None]) -> None:
        """Rounds until cancelled; also is called once in each."""
        while True:
            await asyncio.sleep(self._broker.settings.upkeep_interval_s)
            also()
            try:
                await self.round()
            except StoreError:
                return
            except Exception:
                logger.exception("upkeep failed; the next round tries again")

    async def round(self) -> None:
        """Do everything that is due now."""
        broker = self._broker
        await retention.sweep_doomed(broker)
        for topic, log in broker.topics.logs():
            if not log.deleted:
                await self._tend(topic, log)
        await retention.vacuum(broker)

    async def _tend(self, topic: Topic, log: PartitionLog) -> None:
        broker = self._broker
        now_ms = broker.clock.wall_ms()
        config = topic.config
        if config.delete:
            await retention.enforce(broker, log, config, now_ms)
        if log.swept_offset < log.log_start_offset:
            await retention.sweep(broker, log)
        log.producers.expire(now_ms - broker.settings.producer_id_expiration_ms)
        if config.compact and not log.deleted:
            await self._compact(topic, log, now_ms)
        if log.end_offset != log.snapshot_offset and not log.deleted:
            unit = broker.store.unit()
            log.stage_snapshot(unit)
            await broker.store.commit(unit)

    async def _compact(self, topic: Topic, log: PartitionLog, now_ms: int) -> None:
        tombstones_due = 0 < log.tombstones_due_ms <= now_ms
        overdue = topic.config.max_compaction_lag_ms < now_ms
        if self._surveyed.get(log.number) == log.high_watermark and not (tombstones_due or overdue):
            return
        if not await compaction.compact(self._broker, log, topic.config, now_ms):
            self._surveyed[log.number] = log.high_watermark
