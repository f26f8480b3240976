"""A real broker on a clock that the test moves; requests go to its handlers without a socket."""

import asyncio
import inspect
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kafka.record import MemoryRecordsBuilder

from gokamsg.broker import batch, registry
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.offsets import CommittedOffset
from gokamsg.broker.readahead import ReadAhead
from gokamsg.broker.registry import RequestContext
from gokamsg.broker.server import BrokerServer
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.state import Broker
from tests.broker.fake_clock import FakeClock

TOPIC = "t"
PARTITIONS = 3


class Scene:
    """One data directory and the broker that has it open; requests go to the handlers directly."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.clock = FakeClock()
        self.random = random.Random(1)
        self.server: BrokerServer

    @property
    def broker(self) -> Broker:
        return self.server.broker

    async def open(self) -> None:
        self.server = BrokerServer(self.settings, clock=self.clock, random_source=self.random)
        await self.server.start()

    async def close(self) -> None:
        self.broker.groups.close()
        self.broker.transactions.close()
        await self.server.stop()

    async def restart(self) -> None:
        """What was durable, in new objects."""
        await self.close()
        await self.open()

    async def settled(self) -> None:
        """Everything that was begun is durable and visible."""
        await self.broker.store.barrier()
        await asyncio.sleep(0)

    # ---- what a producer does

    def log(self, partition: int = 0) -> PartitionLog:
        log = self.broker.log(TOPIC, partition)
        assert log is not None
        return log

    async def append(self, producer: tuple[int, int], partition: int = 0, *, count: int = 1) -> int:
        """Produce transactional records; the answer is check_append's code."""
        code = self.broker.transactions.check_append(*producer, TOPIC, partition)
        if code == 0:
            builder = MemoryRecordsBuilder(
                2, 0, 1 << 20, transactional=True, producer_id=producer[0], producer_epoch=producer[1], base_sequence=0
            )
            for number in range(count):
                builder.append(self.clock.wall_ms(), None, f"{number}".encode())
            builder.close()
            data = bytes(builder.buffer())
            unit = self.broker.store.unit()
            self.log(partition).stage(unit, data, batch.validate(data, max_bytes=1 << 20))
            await self.broker.store.commit(unit)
        return code

    # ---- requests

    async def ask(self, request: Any, *, client_id: str = "client") -> Any:
        """The handler's answer, after a trip through the codec in the request's version."""
        version = request.API_VERSION
        row = registry.find(request.API_KEY, version)
        assert row is not None, "a version that is not served"
        context = RequestContext(client_id, "127.0.0.1", version, 1, ReadAhead())
        answer = row.handler(self.broker, row.request.decode(request.encode(), version=version), context)
        if inspect.isawaitable(answer):
            answer = await answer
        answer.with_header(correlation_id=1)
        return row.response.decode(answer.encode(header=True, framed=True)[4:], version=version, header=True)


def at(offset: int, **named: Any) -> CommittedOffset:
    return CommittedOffset(offset, **named)


@asynccontextmanager
async def scene(tmp_path: Path, **settings: Any) -> AsyncIterator[Scene]:
    """A scene with one topic "t" of three partitions."""
    it = Scene(BrokerSettings(data_dir=tmp_path, port=0, fsync=False, **settings))
    await it.open()
    await it.broker.topics.create(TOPIC, PARTITIONS, {})
    try:
        yield it
    finally:
        await it.close()
