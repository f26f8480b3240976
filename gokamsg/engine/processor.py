"""A member of a consumer group that runs a graph: Goka's Processor.

`run()` blocks until `stop()` and owns everything it opens. What a processor promises stands in worker.py, assignment.py
and guarantee.py; how its parts are put together in assembly.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from time import monotonic
from typing import Any

from gokamsg.engine.assembly import Assembled, assemble
from gokamsg.engine.clients import ClientConfig, Patience
from gokamsg.engine.cluster import Cluster
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import encode_key
from gokamsg.engine.state import ProcessorState, Signal
from gokamsg.engine.stats import Counters, PartitionStats, ProcessorStats, ProcessorStatus
from gokamsg.engine.visits import Visit, Visits
from gokamsg.errors import ProcessingError

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.25
LAG_EVERY_S = 1.0


class Processor:
    """See the module. One run per object; `stop()` may be called from any thread and from a signal handler.

    `on_status` is called on the worker's thread, a few times a second and at every change of state; it must be quick.
    """

    def __init__(
        self,
        config: ClientConfig | Cluster,
        graph: GroupGraph,
        options: ProcessorOptions,
        *,
        on_status: Callable[[ProcessorStatus], None] | None = None,
    ) -> None:
        graph.validate()
        self.graph = graph
        self._cluster = connect(config)
        self._visits = Visits(graph)
        self._thread: int | None = None
        self._error: Exception | None = None
        self._options = options
        self._on_status = on_status
        self._signal = Signal(ProcessorState.IDLE)
        self._stopping = threading.Event()
        self._patience = Patience()
        self._counters = Counters()
        self._parts: Assembled | None = None
        self._reported: tuple[float, ProcessorState, bool] = (0.0, ProcessorState.IDLE, False)
        self._lag: dict[tuple[str, int], int] = {}
        self._table_lag = 0
        self._lag_at = 0.0

    @property
    def state(self) -> Signal[ProcessorState]:
        """The lifecycle state, to be read, awaited and observed. RUNNING: every assigned partition is at work."""
        return self._signal

    @property
    def recovered(self) -> bool:
        """Whether every assigned partition has its tables and is at work."""
        return self._signal.state == ProcessorState.RUNNING

    @property
    def idle(self) -> bool:
        """Whether everything that was handled is committed, and no visit waits. Not whether inputs hold more."""
        parts = self._parts
        return parts is None or parts.worker.idle

    @property
    def error(self) -> Exception | None:
        """What ended run(), None while it runs and after an orderly end."""
        return self._error

    def wait_for_ready(self, timeout_s: float | None = None) -> bool:
        """True once every assigned partition is at work; False when the time passes or the processor ends first."""
        self._signal.wait_for_min(ProcessorState.RUNNING, timeout_s)
        return self.recovered

    def done(self, timeout_s: float | None = None) -> bool:
        """Wait until run() has ended; False when the time passes first."""
        return self._signal.wait_for(ProcessorState.STOPPED, timeout_s)

    def get(self, key: str) -> Any:
        """The committed value of a key in the group's table, None if it has none. From any thread.

        ProcessingError without Persist, while the processor does not run, and for a key whose partition another
        instance has.
        """
        persist = self.graph.group_table
        if persist is None:
            raise ProcessingError(f"group {self.graph.group!r} has no table; add Persist(codec) to its graph")
        parts = self._parts
        if parts is None:
            raise ProcessingError(f"the processor of group {self.graph.group!r} does not run")
        raw_key = encode_key(key)
        partition = parts.outputs.topic(persist.topic).partition_of(raw_key)
        processor = parts.assignment.running.get(partition)
        if processor is None or processor.table is None:
            raise ProcessingError(
                f"key {key!r} is in partition {partition} of group {self.graph.group!r}, which this processor does not"
                " have (now); ask the instance that has it, or a View, which has all of them"
            )
        raw = processor.table.committed(raw_key)
        return None if raw is None else persist.codec.decode(raw)

    def visit_all(self, name: str, meta: Any = None, timeout_s: float | None = None) -> int:
        """Call the graph's visitor `name` with each row of this processor's partitions and `meta`; how many they were.

        Returns once everything that the visitors did is committed. Raises ProcessingError without such a visitor and
        when it is called in a callback, VisitAbortedError when a rebalance, an abort or the end came in between.
        """
        if threading.get_ident() == self._thread:
            raise ProcessingError("visit_all() waits for this very thread; call it from another one")
        return self.request_visit(name, meta).result(timeout_s)

    def request_visit(self, name: str, meta: Any = None) -> Visit:
        """As visit_all(), without waiting: result() of what is returned waits."""
        visit = self._visits.submit(name, meta)
        parts = self._parts
        if parts is not None:
            parts.inputs.wake()
        return visit

    def stop(self) -> None:
        """Ask run() to commit and return; it does within STOP_S (engine/clients/patience.py), user code apart."""
        self._patience.hurry()
        self._stopping.set()

    def run(self) -> None:
        """Run until stop(). Raises a GokamsgError when it cannot start or cannot go on."""
        with closing(self.turns()) as turns:
            for _ in turns:
                pass

    def turns(self) -> Generator[None]:
        """As run(), one turn of the worker at each next(), for whoever has a loop of its own."""
        if self._signal.state != ProcessorState.IDLE:
            raise ProcessingError(f"the processor of group {self.graph.group!r} was run before; make a new one")
        self._thread = threading.get_ident()
        self._signal.set(ProcessorState.STARTING)
        self._report()
        try:
            with ExitStack() as stack:
                parts = self._parts = assemble(
                    self._cluster,
                    self.graph,
                    self._options,
                    counters=self._counters,
                    visits=self._visits,
                    stopping=self._stopping,
                    patience=self._patience,
                    stack=stack,
                )
                stack.callback(parts.worker.abandon)
                while not self._stopping.is_set():
                    parts.worker.turn()
                    self._signal.set(ProcessorState.RUNNING if parts.assignment.settled else ProcessorState.SETUP)
                    self._report()
                    yield
                self._signal.set(ProcessorState.STOPPING)
                self._report()
                parts.worker.finish()
                # A static member stays in the group until its session ends; leaving lets others take over at once.
                parts.inputs.leave()
        except Exception as error:
            self._error = error
            raise
        finally:
            self._parts = None
            self._stopping.set()
            self._visits.close()
            self._signal.set(ProcessorState.STOPPED)
            self._report()

    def status(self) -> ProcessorStatus:
        """A snapshot, from any thread."""
        parts = self._parts
        reader = parts.assignment.reader if parts else None
        counters = self._counters
        running = list(parts.assignment.running.values()) if parts else []
        quarantines = [processor.quarantine for processor in running if processor.quarantine is not None]
        return ProcessorStatus(
            group=self.graph.group,
            state=self._signal.state,
            guarantee=self._options.guarantee,
            partitions=tuple(sorted(parts.assignment.running)) if parts else (),
            restoring=reader.progress() if reader is not None and reader.restoring else None,
            records=counters.records,
            records_per_s=counters.rate(),
            emitted=parts.outputs.records if parts else 0,
            table_writes=counters.table_writes,
            bad_records=counters.bad_records,
            parked_records=sum(quarantine.records for quarantine in quarantines),
            parked_keys=sum(len(quarantine.parked) for quarantine in quarantines),
            commits=counters.commits,
            aborts=counters.aborts,
            commit_ms=counters.commit_ms,
            lag=self._lag,
            standby=parts.assignment.standing_by if parts else (),
            table_reads=reader.records if reader is not None else 0,
            table_lag=self._table_lag,
            notice=parts.worker.notice if parts else None,
        )

    def stats(self) -> ProcessorStats:
        """What went through this processor since it has its partitions, in Goka's terms. From any thread."""
        parts = self._parts
        if parts is None:
            return ProcessorStats({}, {}, {})
        counts = dict(parts.assignment.reader.counts)
        own = self.graph.group_table
        joins = [edge.topic for edge in self.graph.joint_tables]
        partitions = {}
        for number, processor in list(parts.assignment.running.items()):
            count = counts.get((own.topic, number)) if own is not None else None
            if count is not None:
                count.writes, count.written_bytes = processor.writes, processor.written_bytes
            partitions[number] = PartitionStats(
                table=None if count is None else count.stats(),
                joined={name: counts[name, number].stats() for name in joins if (name, number) in counts},
                input={
                    topic: seen.stats(self._lag.get((topic, number))) for topic, seen in list(processor.inputs.items())
                },
            )
        lookups = {
            edge.topic: {number: count.stats() for (topic, number), count in counts.items() if topic == edge.topic}
            for edge in self.graph.lookup_tables
        }
        return ProcessorStats(partitions, lookups, parts.outputs.stats())

    def _report(self) -> None:
        now = monotonic()
        parts = self._parts
        if parts is not None and now - self._lag_at >= LAG_EVERY_S:
            self._lag_at = now
            self._lag = {part: lag for part, lag in parts.inputs.lags().items() if lag is not None}
            self._table_lag = parts.assignment.reader.lag()
        if self._on_status is None:
            return
        at, state, restoring = self._reported
        present = self._signal.state
        is_restoring = parts is not None and parts.assignment.reader.restoring
        if state != present or restoring != is_restoring or now - at >= STATUS_EVERY_S:
            self._reported = (now, present, is_restoring)
            self._on_status(self.status())
