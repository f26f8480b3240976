"""A local copy of a table that other programs read: every partition, or some, restored and then followed.

1. Values are those of committed transactions, per partition in order; get() never sees half of one batch's key.
2. With a storage directory the copy survives a restart, and only what changed since is read. Without, it is in memory.
3. Reading is possible from CONNECTING on, with what was kept from last time; `recovered` tells when the copy has
   everything that the table held when the view connected.
4. A failure ends the view: it is raised by wait_running() and by every read after it. A broker that goes away for a
   while is no failure; the copy then stands still, and the log says so. A topic that was deleted and created again is
   read anew.

Threads: one of its own follows the table and calls update callbacks, which must be quick; everything else may be called
from any thread.
"""

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Generic, TypeVar

from gokamsg.engine.clients import ClientConfig, Patience
from gokamsg.engine.cluster import Cluster
from gokamsg.engine.codec import Codec
from gokamsg.engine.counts import TableStats
from gokamsg.engine.hashing import Hasher, Partitioner, fnv1a32
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.silence import Silence
from gokamsg.engine.state import Signal, ViewState
from gokamsg.engine.storage import prefix_limit
from gokamsg.engine.table_reader import TableReader
from gokamsg.engine.tables import StorageBuilder, Tables, memory_builder
from gokamsg.engine.updates import UpdateCallback
from gokamsg.errors import BrokerUnavailableError, GokamsgError, TopicError

T = TypeVar("T")
log = logging.getLogger(__name__)

RECONNECT_S = 1.0
POLL_S = 0.5
FLUSH_ROWS = 2_000
CACHE_BYTES = 64 << 20
VIEWS = "view"
"""The name under which views keep their copies in a state directory, where a processor has its group's."""


class View(Generic[T]):
    """See the module. start() it, or run() it in a thread of your own; once."""

    def __init__(
        self,
        config: ClientConfig | Cluster,
        table: str,
        codec: Codec[T],
        *,
        storage_dir: Path | None = None,
        storage_builder: StorageBuilder | None = None,
        partitions: Collection[int] | None = None,
        hasher: Hasher = fnv1a32,
        update_callback: UpdateCallback | None = None,
        auto_reconnect: bool = False,
    ) -> None:
        """`storage_dir` is a state directory: the files lie under the cluster's id, in a slot that this view locks;
        `storage_builder` keeps them elsewhere. `hasher` is that of whoever writes the table. `update_callback` changes
        how records become rows. With `auto_reconnect` a view that no broker answers tries again, until stop().
        """
        self._cluster = connect(config)
        self._storage_builder = storage_builder
        self._hasher = hasher
        self._update_callback = update_callback
        self._auto_reconnect = auto_reconnect
        self._topic = table
        self._codec = codec
        self._storage_dir = storage_dir
        self._wanted = None if partitions is None else frozenset(partitions)
        self._subscribers: list[Callable[[str], None]] = []
        self._signal: Signal[ViewState] = Signal(ViewState.IDLE)
        self._stopping = threading.Event()
        self._patience = Patience()
        self._applied = threading.Condition()
        self._silence = Silence(self._cluster.clock.monotonic)
        self._failure: Exception | None = None
        self._ended = False
        self._tables: dict[int, PartitionTable] = {}
        self._partition_of: Callable[[bytes], int] = Partitioner(1)
        self._evictions: deque[bytes] = deque()
        self._reader: TableReader | None = None
        self._thread: threading.Thread | None = None

    # --- lifecycle ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Runs the view in a thread of its own."""
        self._thread = threading.Thread(target=self._run_quietly, name=f"view-{self._topic}", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Follows the table until stop(). Raises what ended it; GokamsgError at the second time."""
        with closing(self.turns()) as turns:
            for _ in turns:
                pass

    def turns(self) -> Generator[None]:
        """As run(), one turn at each next(), for whoever has a loop of its own."""
        if self._ended or self.state != ViewState.IDLE:
            raise GokamsgError(f"the view of {self._topic!r} was run before; make a new one")
        try:
            while not (yield from self._connected()):
                self._stopping.wait(RECONNECT_S)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._ended = True
            self._forget()

    def _connected(self) -> Generator[None, None, bool]:
        """One connection's time; False when another one is to be tried."""
        try:
            with ExitStack() as stack:
                reader = self._open(stack)
                self._signal.set(ViewState.CATCH_UP)
                while not self._stopping.is_set():
                    self._turn(reader)
                    yield
        except BrokerUnavailableError as error:
            if not self._auto_reconnect:
                raise
            self._forget()
            self._silence.begin(str(error))
            return self._stopping.is_set()
        return True

    def _forget(self) -> None:
        self._tables = {}
        self._signal.set(ViewState.IDLE)
        self._notify()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the view; what it holds is stored."""
        self._patience.hurry()
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def wait_running(self, timeout_s: float | None = None) -> bool:
        """Whether the copy is complete within the time. Raises what ended the view."""
        with self._applied:
            self._applied.wait_for(lambda: self._ended or self.state == ViewState.RUNNING, timeout_s)
        if self._failure is not None:
            raise self._failure
        return self.state == ViewState.RUNNING

    @property
    def topic(self) -> str:
        """The table's topic."""
        return self._topic

    @property
    def state(self) -> ViewState:
        """Where the view is in its life."""
        return self._signal.state

    @property
    def ended(self) -> bool:
        """Whether it follows nothing any more: it was stopped, or something ended it."""
        return self._ended

    @property
    def recovered(self) -> bool:
        """Whether the copy has caught up once, and is followed."""
        return self.state == ViewState.RUNNING

    def observe_state_changes(self, observer: Callable[[ViewState], None]) -> Callable[[], None]:
        """Calls with each state, on the view's thread; the function returned ends that."""
        return self._signal.observe(observer)

    def progress(self) -> tuple[int, int]:
        """Records of the catch-up that are read, and that are still to be read."""
        reader = self._reader
        if reader is None:
            return 0, 0
        found = reader.progress()
        return found.rows_done, max(0, found.rows - found.rows_done)

    def stats(self) -> dict[int, TableStats]:
        """What was read, by partition."""
        reader = self._reader
        return {} if reader is None else {number: count.stats() for (_, number), count in reader.counts.items()}

    # --- reading ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> T | None:
        """The key's value, None if it has none. GokamsgError before the table is open, or after the view has ended."""
        value = self._value(key)
        return None if value is None else self._codec.decode(value)

    def has(self, key: str) -> bool:
        """Whether the key has a value. GokamsgError as get()."""
        return self._value(key) is not None

    def iterator(self) -> Iterator[tuple[str, T]]:
        """All rows in byte order of their keys."""
        return self._rows(None, None)

    def iterator_with_range(self, start: str, limit: str = "") -> Iterator[tuple[str, T]]:
        """Rows with start <= key < limit; without a limit, those that begin with `start`."""
        first = _encode(start)
        return self._rows(first, _encode(limit) if limit else prefix_limit(first))

    def evict(self, key: str) -> None:
        """Forgets the row in this copy only, until the table's next change of it."""
        self._evictions.append(_encode(key))

    def partition_of(self, key: str) -> int:
        """Where the key lives. GokamsgError before the table is open."""
        self._opened()
        return self._partition_of(_encode(key))

    def wait_for(self, partition: int, offset: int, timeout_s: float) -> bool:
        """Whether the record at that position of the table's topic is in the copy, within the time."""

        def there() -> bool:
            table = self._tables.get(partition)
            return self._ended or (table is not None and table.position > offset)

        with self._applied:
            return self._applied.wait_for(there, timeout_s) and not self._ended

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Calls with each key that changes, on the view's thread; the function returned ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    # --- the view's thread --------------------------------------------------------------------------------------

    def _run_quietly(self) -> None:
        try:
            self.run()
        except GokamsgError as error:
            log.error("view of %r ended: %s", self._topic, error)
        except Exception:
            log.exception("view of %r ended", self._topic)

    def _open(self, stack: ExitStack) -> TableReader:
        self._signal.set(ViewState.INITIALIZING)
        with closing(self._cluster.admin()) as admin:
            topic = admin.existing_topics([self._topic]).get(self._topic)
            cluster = admin.cluster()
        if topic is None:
            raise TopicError(f"table {self._topic!r} does not exist; create it with: gokamsg topics create")
        build = self._storage_builder or memory_builder
        if self._storage_dir is not None and self._storage_builder is None:
            home = self._cluster.home(self._storage_dir, cluster.cluster_id, VIEWS)
            stack.callback(home.release)
            build = home.storage
        numbers = sorted(range(topic.partitions) if self._wanted is None else self._wanted)
        if numbers and numbers[-1] >= topic.partitions:
            raise TopicError(
                f"table {self._topic!r} has {topic.partitions} partitions, so none has number {numbers[-1]}"
            )
        tables = Tables(build, cache_bytes=CACHE_BYTES, shares=len(numbers))
        stack.callback(tables.close_all)
        opened = {number: tables.open(self._topic, number, topic.topic_id) for number in numbers}
        consumer = self._cluster.table_consumer(patience=self._patience)
        stack.callback(consumer.close)
        self._partition_of = Partitioner(topic.partitions, self._hasher)
        self._tables = opened
        self._signal.set(ViewState.CONNECTING)
        reader = TableReader(consumer, self._update_callback)
        ends = consumer.end_offsets([(self._topic, number) for number in numbers], read_committed=True)
        for number, table in opened.items():
            reader.add(table, ends[self._topic, number], follow=True, changed=self._changed)
        self._reader = reader
        return reader

    def _turn(self, reader: TableReader) -> None:
        if self.state != ViewState.RUNNING and not reader.restoring:
            self._signal.set(ViewState.RUNNING)
            self._notify()
        applied = reader.poll(POLL_S)
        self._silence.watch(None if applied else reader.obstacle)
        self._evict()
        if applied:
            self._notify()
        self._store(idle=not applied)

    def _store(self, *, idle: bool) -> None:
        for table in self._tables.values():
            if table.dirty_rows >= (1 if idle else FLUSH_ROWS):
                table.flush()
            else:
                table.check_write()

    def _evict(self) -> None:
        while self._evictions:
            key = self._evictions.popleft()
            table = self._tables.get(self._partition_of(key))
            if table is not None:
                table.apply({key: None}, table.position)

    def _changed(self, _partition: int, keys: Collection[bytes]) -> None:
        if self._subscribers and self.state == ViewState.RUNNING:
            for key in keys:
                name = key.decode("utf-8", "surrogateescape")
                for subscriber in tuple(self._subscribers):
                    subscriber(name)

    def _notify(self) -> None:
        with self._applied:
            self._applied.notify_all()

    # --- inside reads -------------------------------------------------------------------------------------------

    def _opened(self) -> dict[int, PartitionTable]:
        tables = self._tables
        if not tables:
            if self._failure is not None:
                raise GokamsgError(f"the view of {self._topic!r} has ended: {self._failure}") from self._failure
            raise GokamsgError(f"the view of {self._topic!r} is not open (state {self.state.name}); start it first")
        return tables

    def _value(self, key: str) -> bytes | None:
        tables = self._opened()
        encoded = _encode(key)
        partition = self._partition_of(encoded)
        table = tables.get(partition)
        if table is None:
            raise GokamsgError(
                f"key {key!r} is in partition {partition} of {self._topic!r}, which this view leaves out"
            )
        return table.committed(encoded)

    def _rows(self, start: bytes | None, limit: bytes | None) -> Iterator[tuple[str, T]]:
        parts: list[Any] = [table.iterate(start, limit) for table in self._opened().values()]
        for key, value in heapq.merge(*parts, key=lambda row: row[0]):
            yield key.decode("utf-8", "surrogateescape"), self._codec.decode(value)


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
