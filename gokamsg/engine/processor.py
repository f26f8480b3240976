"""A member of a consumer group that runs a graph: Goka's Processor.

`run()` blocks until `stop()` and owns everything it opens. What a processor promises stands in worker.py, assignment.py
and guarantee.py; how its parts are put together in assembly.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic

from gokamsg.engine.assembly import Assembled, assemble
from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.state import ProcessorState, Signal
from gokamsg.engine.stats import Counters, ProcessorStatus
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
        config: ClientConfig,
        graph: GroupGraph,
        options: ProcessorOptions,
        *,
        on_status: Callable[[ProcessorStatus], None] | None = None,
    ) -> None:
        graph.validate()
        self.graph = graph
        self._config = config
        self._options = options
        self._on_status = on_status
        self._signal = Signal(ProcessorState.IDLE)
        self._stopping = threading.Event()
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

    def stop(self) -> None:
        """Ask run() to commit and return."""
        self._stopping.set()

    def run(self) -> None:
        """Run until stop(). Raises a GokamsgError when it cannot start or cannot go on."""
        if self._signal.state != ProcessorState.IDLE:
            raise ProcessingError(f"the processor of group {self.graph.group!r} was run before; make a new one")
        self._signal.set(ProcessorState.STARTING)
        self._report()
        try:
            with ExitStack() as stack:
                parts = self._parts = assemble(
                    self._config,
                    self.graph,
                    self._options,
                    counters=self._counters,
                    stack=stack,
                )
                stack.callback(parts.worker.abandon)
                while not self._stopping.is_set():
                    parts.worker.turn()
                    self._signal.set(ProcessorState.RUNNING if parts.assignment.settled else ProcessorState.SETUP)
                    self._report()
                self._signal.set(ProcessorState.STOPPING)
                self._report()
                parts.worker.finish()
                # A static member stays in the group until its session ends; leaving lets others take over at once.
                parts.inputs.leave()
        finally:
            self._parts = None
            self._signal.set(ProcessorState.STOPPED)
            self._report()

    def status(self) -> ProcessorStatus:
        """A snapshot, from any thread."""
        parts = self._parts
        reader = parts.assignment.reader if parts else None
        counters = self._counters
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
            commits=counters.commits,
            aborts=counters.aborts,
            commit_ms=counters.commit_ms,
            lag=self._lag,
            standby=parts.assignment.standing_by if parts else (),
            table_reads=reader.records if reader is not None else 0,
            table_lag=self._table_lag,
            notice=parts.worker.notice if parts else None,
        )

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
