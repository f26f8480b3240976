"""Fetch, versions 4-17.

Behaviour: whole batches, at least one of the first partition that has any, then as many as the client's limits allow.
Waits up to max_wait_ms for min_bytes; a partition with an error is answered at once. Readers of committed data
(isolation level 1) stop at the last stable offset and get the list of aborted transactions.
Unlike Kafka: there are no fetch sessions; the session id is always 0, and any other is refused (70). Unless the client
asks for more than a byte, an answer with nothing comes early where it may hold the client back: see ReadAhead.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from typing import Any

from kafka.protocol.consumer import FetchRequest, FetchResponse

from gokamsg.broker.batch import read_header
from gokamsg.broker.codes import Code
from gokamsg.broker.fastpath import Fetched, encode_fetch
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.reader import Range
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_TOPIC_IDS_SINCE = 13
_READ_COMMITTED = 1
_LEAST_ROOM = 1024 * 1024


@api(1, FetchRequest, FetchResponse)
def fetch(broker: Broker, request: Any, context: RequestContext) -> bytes | Coroutine[Any, Any, bytes]:
    if request.session_id != 0:
        return encode_fetch(context.api_version, [], error=Code.FETCH_SESSION_ID_NOT_FOUND)
    poll = _Poll(broker, request, context)
    cold = poll.read_cached()
    if not cold and poll.satisfied:
        return poll.encode()
    return poll.run()


class _Part:
    """One partition of a request, and what is found for it."""

    __slots__ = ("batches", "cold", "error", "index", "log", "max_bytes", "offset")

    def __init__(self, index: int, offset: int, max_bytes: int) -> None:
        self.index = index
        self.offset = offset
        self.max_bytes = max_bytes
        self.log: PartitionLog | None = None
        self.error: int = Code.NONE
        self.batches: list[bytes] = []
        self.cold = False


class _Poll:
    """One Fetch request, from its first look to its answer."""

    def __init__(self, broker: Broker, request: Any, context: RequestContext) -> None:
        self._broker = broker
        self._version = context.api_version
        self._read_ahead = context.read_ahead
        self._min_bytes: int = request.min_bytes
        self._max_wait_s: float = max(request.max_wait_ms, 0) / 1000
        self._max_bytes = min(request.max_bytes, broker.settings.fetch_max_bytes)
        self._committed = request.isolation_level == _READ_COMMITTED
        self._topics: list[tuple[str, uuid.UUID | None, list[_Part]]] = []
        self._size = 0
        self._room = 0
        self._failed = False
        for wanted in request.topics:
            self._topics.append(self._resolve(wanted))
        self._logs = [part.log for _, _, parts in self._topics for part in parts if part.log is not None]
        self._read_ahead.asked(self._logs)

    def _resolve(self, wanted: Any) -> tuple[str, uuid.UUID | None, list[_Part]]:
        by_id = self._version >= _TOPIC_IDS_SINCE
        topic = self._broker.topics.by_id(wanted.topic_id) if by_id else self._broker.topics.get(wanted.topic)
        parts = []
        for asked in wanted.partitions:
            part = _Part(asked.partition, asked.fetch_offset, asked.partition_max_bytes)
            if topic is None:
                part.error = Code.UNKNOWN_TOPIC_ID if by_id else Code.UNKNOWN_TOPIC_OR_PARTITION
            elif not 0 <= asked.partition < len(topic.partitions):
                part.error = Code.UNKNOWN_TOPIC_OR_PARTITION
            elif asked.current_leader_epoch > 0:
                part.error = Code.UNKNOWN_LEADER_EPOCH
            else:
                part.log = topic.partitions[asked.partition]
            parts.append(part)
        return ("" if by_id else wanted.topic, wanted.topic_id if by_id else None, parts)

    @property
    def satisfied(self) -> bool:
        return self._failed or self._size >= self._min_bytes or self._max_wait_s <= 0

    def read_cached(self) -> list[_Part]:
        """Read what the caches hold, from the beginning; the partitions that need the data file."""
        self._size = 0
        left = max(min(self._max_bytes, self._broker.answer_room()), min(self._max_bytes, _LEAST_ROOM))
        self._room = left
        cold: list[_Part] = []
        for _, _, parts in self._topics:
            for part in parts:
                log = part.log
                part.batches = []
                if log is None:
                    self._failed = True
                    continue
                end_offset = log.last_stable_offset if self._committed else log.high_watermark
                if log.deleted:
                    part.error = Code.UNKNOWN_TOPIC_OR_PARTITION
                    self._failed = True
                elif not log.log_start_offset <= part.offset <= log.high_watermark:
                    part.error = Code.OFFSET_OUT_OF_RANGE
                    self._failed = True
                elif part.offset >= end_offset:
                    continue
                elif part.offset < log.tail.start_offset:
                    cold.append(part)
                else:
                    part.batches, size = log.tail.read(
                        part.offset,
                        end_offset,
                        min(left, part.max_bytes),
                        at_least_one=self._size == 0 and not cold,
                    )
                    self._size += size
                    left -= size
        return cold

    async def _read_cold(self, cold: list[_Part]) -> None:
        empty = self._size == 0
        ranges = []
        for part in cold:
            log = part.log
            assert log is not None
            end_offset = log.last_stable_offset if self._committed else log.high_watermark
            ranges.append(Range(log.number, part.offset, end_offset, part.max_bytes, at_least_one=empty))
        found = await self._broker.reader.read(ranges, max_bytes=max(self._room - self._size, 0))
        for part, batches in zip(cold, found, strict=True):
            part.batches = batches
            self._size += sum(map(len, batches))

    async def run(self) -> bytes:
        """Read and wait until there is enough or the time is up."""
        loop = asyncio.get_running_loop()
        clock = self._broker.clock
        # who asks for more than a byte wants fewer answers, not sooner ones
        wait_s = self._max_wait_s if self._min_bytes > 1 else self._read_ahead.wait_s(self._max_wait_s)
        deadline = clock.monotonic() + wait_s
        changed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not changed.done():
                changed.set_result(None)

        for log in self._logs:
            log.add_waiter(wake)
        try:
            while True:
                # after the waiters are in place, also the first time: a batch may have come before this task began
                cold = self.read_cached()
                if cold:
                    await self._read_cold(cold)
                if self.satisfied:
                    return self.encode()
                left_s = deadline - clock.monotonic()
                if left_s <= 0:
                    if wait_s < self._max_wait_s:
                        self._read_ahead.answered_early(self._max_wait_s)
                    return self.encode()
                timer = clock.call_later(left_s, wake)
                try:
                    await changed
                finally:
                    timer.cancel()
                changed = loop.create_future()
        finally:
            for log in self._logs:
                log.remove_waiter(wake)

    def encode(self) -> bytes:
        return encode_fetch(
            self._version,
            [(name, topic_id, [self._fetched(part) for part in parts]) for name, topic_id, parts in self._topics],
        )

    def _fetched(self, part: _Part) -> Fetched:
        log = part.log
        if log is None or log.deleted:
            return Fetched(part.index, part.error or Code.UNKNOWN_TOPIC_OR_PARTITION, -1, -1, -1, None, ())
        if part.batches:
            self._read_ahead.gave(log)
        aborted = None
        if self._committed:
            aborted = []
            if part.batches and log.aborted:
                # looked up after the read: see the cleaner on markers that leave together with their entries
                aborted = log.aborted_between(part.offset, read_header(part.batches[-1]).last_offset + 1)
        return Fetched(
            part.index,
            part.error,
            log.high_watermark,
            log.last_stable_offset,
            log.log_start_offset,
            aborted,
            part.batches,
        )
