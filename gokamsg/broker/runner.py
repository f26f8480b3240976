"""A broker on a thread of this process, for tests and for running everything in one.

    with running_broker(data_dir=path, port=0) as broker:
        producer = KafkaProducer(bootstrap_servers=broker.address)

The address is ready when the block is entered; when it is left the broker is closed and its thread gone. Threads: the
broker's state belongs to its thread; call() and run() run something there. `control` may be used from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gokamsg.broker.control import Control
from gokamsg.broker.server import BrokerServer
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.state import Broker

T = TypeVar("T")
_JOIN_S = 30.0


class RunningBroker:
    """A broker on its own thread, from start() to stop()."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.server: BrokerServer | None = None  # its attributes are the broker thread's
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    @property
    def control(self) -> Control:
        """The control hook: observe, delay, answer or fail requests."""
        assert self.server is not None
        return self.server.broker.control

    def start(self) -> None:
        """Return when clients can connect; raises what the broker's start raises."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """Close the broker and wait for its thread; twice is harmless. Raises StoreError if the disk failed."""
        if self._loop is not None and self.server is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self.server.request_stop)
        self._thread.join(_JOIN_S)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def call(self, function: Callable[[Broker], T]) -> T:
        """Run function with the broker's state on the broker's thread; its result."""
        assert self._loop is not None

        async def run() -> T:
            assert self.server is not None
            return function(self.server.broker)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_JOIN_S)

    def run(self, function: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function with the broker's state on the broker's thread; its result."""
        assert self._loop is not None
        assert self.server is not None
        return asyncio.run_coroutine_threadsafe(function(self.server.broker), self._loop).result(_JOIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = BrokerServer(self.settings)
        await server.start()
        try:
            self.server = server
            self.address = server.address
            self._started.set()
            await server.wait()
        finally:
            await server.stop()


@contextlib.contextmanager
def running_broker(*, data_dir: Path, port: int = 0, **settings: Any) -> Iterator[RunningBroker]:
    """A broker for the length of a with block; settings as in BrokerSettings."""
    broker = RunningBroker(BrokerSettings(data_dir=data_dir, port=port, **settings))
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
