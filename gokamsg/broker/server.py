"""The broker as a whole: opened, listening, closed; and run in the foreground for the command line.

1. A data directory has one broker at a time (a locked file); a second one is refused with a sentence.
2. When start() returns, everything that was ever acknowledged is readable and clients can connect.
3. stop() answers what is under way, stores the state that makes the next start quick, and closes the file. Nothing is
   lost without it: kill -9 costs the next start some reading.
4. If the disk fails, the broker stops accepting and run_broker() raises StoreError.

Threads: start(), stop() and wait() on one asyncio loop; run_broker() in the main thread, because of signals.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import gc
import os
import random
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gokamsg.broker import registry
from gokamsg.broker.cache import CacheBudget
from gokamsg.broker.cleaner import Cleaner
from gokamsg.broker.clock import Clock, SystemClock
from gokamsg.broker.control import Control
from gokamsg.broker.groups import GroupCoordinator
from gokamsg.broker.listener import Listener
from gokamsg.broker.offsets import OffsetStore
from gokamsg.broker.reader import ColdReader
from gokamsg.broker.recovery import recover_logs
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.state import Broker
from gokamsg.broker.store import Store, StoreError
from gokamsg.broker.topics import META_SPACE, Topics
from gokamsg.broker.transactions import TransactionCoordinator
from gokamsg.errors import GokamsgError, StateError

DATA_FILE = "broker.db"
LOCK_FILE = "broker.lock"
_CLUSTER_ID = "cluster-id"
_GRACE_S = 2.0


class BrokerServer:
    """One broker on the running loop."""

    def __init__(
        self, settings: BrokerSettings, *, clock: Clock | None = None, random_source: random.Random | None = None
    ) -> None:
        self.settings = settings
        self.broker: Broker
        self.host = ""  # where clients are told to connect
        self.port = 0
        self._clock = clock or SystemClock()
        self._random = random_source or random.Random()
        self._lock: IO[str] | None = None
        self.listener: Listener | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._failure: StoreError | None = None

    @property
    def address(self) -> str:
        """host:port as clients are to use it."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Open the data, then listen; raises StateError or GokamsgError, leaving nothing open."""
        try:
            self._lock = _lock(self.settings.data_dir)
            store = Store.open(
                self.settings.data_dir / DATA_FILE,
                fsync=self.settings.fsync,
                wal_checkpoint_bytes=self.settings.wal_checkpoint_bytes,
            )
            await self._open(store)
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def _open(self, store: Store) -> None:
        settings, clock, chance = self.settings, self._clock, self._random
        store.on_failure = self._failed
        budget = CacheBudget(settings.cache_bytes)
        offsets = OffsetStore(store=store, clock=clock, settings=settings)
        groups = GroupCoordinator(clock=clock, random=chance, store=store, offsets=offsets, settings=settings)
        topics = Topics(store=store, settings=settings, budget=budget, clock=clock, topic_deleted=offsets.topic_deleted)
        transactions = TransactionCoordinator(
            clock=clock,
            random=chance,
            store=store,
            offsets=offsets,
            logs=topics.log,
            groups=groups,
            settings=settings,
        )
        self.broker = Broker(
            settings=settings,
            clock=clock,
            random=chance,
            store=store,
            reader=ColdReader(store),
            budget=budget,
            topics=topics,
            offsets=offsets,
            groups=groups,
            transactions=transactions,
            control=Control(),
            cluster_id="",
            host="",
            port=0,
            answer_room=lambda: settings.max_unsent_bytes,
        )
        await self._recover()
        self.listener = Listener(self.broker)
        await self._listen(self.listener)
        cleaner = Cleaner(self.broker)
        self._upkeep = asyncio.get_running_loop().create_task(cleaner.run(also=self.listener.close_idle))

    async def _recover(self) -> None:
        broker = self.broker
        try:
            broker.topics.restore()
            recover_logs(broker.topics, broker.store)
            for part in (broker.offsets, broker.groups, broker.transactions):
                part.recover()
            broker.cluster_id = await _cluster_id(broker.store)
        except GokamsgError:
            raise
        except Exception as error:  # whatever a file with wrong contents provokes
            raise StateError(
                f"the data file {str(broker.store.path)!r} is damaged ({error}); "
                "restore it from a copy, or name another --data-dir"
            ) from error

    async def _listen(self, listener: Listener) -> None:
        settings = self.settings
        # known before the first client is answered: an advertised port of 0 would send it nowhere
        self.broker.host = self.host = settings.advertised_host or _reachable(settings.host)
        try:
            port = await listener.listen(settings.host, settings.port)
        except OSError as error:
            raise GokamsgError(
                f"cannot listen on {settings.host}:{settings.port}: {(error.strerror or str(error)).lower()}; "
                "stop what uses the port, or name another --port"
            ) from error
        self.broker.port = self.port = settings.advertised_port or port

    def _failed(self, failure: StoreError) -> None:
        self._failure = failure
        self._stopping.set()

    def request_stop(self) -> None:
        """Make wait() return; from the loop's thread."""
        self._stopping.set()

    async def wait(self) -> None:
        """Return when a stop is asked for; raises StoreError if the disk failed."""
        await self._stopping.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self, *, grace_s: float = _GRACE_S) -> None:
        """Close everything that start() opened, in reverse; doing so twice is harmless."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
            self._upkeep = None
        if self.listener is not None:
            await self.listener.close(grace_s=grace_s)
            self.listener = None
        if hasattr(self, "broker"):
            await self._close_broker(self.broker)
            del self.broker
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _close_broker(self, broker: Broker) -> None:
        if broker.store.failed is None and self.port:
            unit = broker.store.unit()
            for _, log in broker.topics.logs():
                if log.end_offset != log.snapshot_offset:
                    log.stage_snapshot(unit)
            with contextlib.suppress(StoreError):
                await broker.store.commit(unit)
        broker.groups.close()
        broker.transactions.close()
        broker.reader.close()
        await broker.store.close()


def run_broker(settings: BrokerSettings, *, on_ready: Callable[[str], None]) -> None:
    """Run a broker until SIGTERM or SIGINT, then close it; a second signal ends the process at once.

    on_ready gets the address when clients can connect. Raises StateError, GokamsgError or StoreError.
    """
    asyncio.run(_run(settings, on_ready))


async def _run(settings: BrokerSettings, on_ready: Callable[[str], None]) -> None:
    server = BrokerServer(settings)
    loop = asyncio.get_running_loop()
    asked = False

    def asked_to_stop() -> None:
        nonlocal asked
        if asked:
            os._exit(130)  # what was acknowledged is on the disk
        asked = True
        server.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    try:
        await server.start()
        sys.setswitchinterval(0.001)  # the loop waits no longer than this for a thread that compacts
        on_ready(server.address)
        for _ in registry.load():  # so that no client's first request of its kind waits for that
            await asyncio.sleep(0)
        gc.freeze()  # what was made up to here lives as long as the process; scanning it again only delays answers
        await server.wait()
    finally:
        await server.stop()


def _lock(data_dir: Path) -> IO[str]:
    """Hold the directory's lock file; raises StateError when another broker does."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = open(data_dir / LOCK_FILE, "a+", opener=_private)  # noqa: SIM115  # closed by stop()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StateError(f"cannot use the data directory {str(data_dir)!r}: {reason}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.seek(0)
        owner = held.read(32).strip()
        held.close()
        raise StateError(
            f"the data directory {str(data_dir)!r} is in use by another broker (process {owner or 'unknown'}); "
            "stop that one, or name another --data-dir"
        ) from None
    held.truncate(0)
    held.write(f"{os.getpid()}\n")
    held.flush()
    return held


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reachable(host: str) -> str:
    """A host that clients on this machine can connect to when the broker listens on all interfaces."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host


async def _cluster_id(store: Store) -> str:
    """The data file's cluster id, made at its first start."""
    for key, value in store.scan(META_SPACE):
        if key == _CLUSTER_ID:
            return value.decode()
    made = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    unit = store.unit()
    unit.put(META_SPACE, _CLUSTER_ID, made.encode())
    await store.commit(unit)
    return made
