"""Visits: a named callback of the graph, called for every row of the group's table on request (Goka's VisitAll).

1. Rows are visited between records, some at a time, so that the worker goes on with its inputs meanwhile.
2. What a visitor does is committed in the worker's transactions, like what other callbacks do. A visit is over when all
   of it is committed; a rebalance, an abort or the end of the processor breaks it off (VisitAbortedError), and what was
   committed by then stays.
3. A row that is written while a visit runs is visited or not; each row once at most.

submit() may be called from any thread; everything else belongs to the worker's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.partition_processor import PartitionProcessor, Source
from gokamsg.errors import ProcessingError, VisitAbortedError

ROWS = 500
"""So many rows are visited before the worker looks at its inputs again."""


class Visit:
    """One request."""

    def __init__(self, source: Source, meta: Any) -> None:
        self.rows = 0
        self.error: VisitAbortedError | None = None
        self.source = source
        self.meta = meta
        self.left: dict[int, bytes] | None = None  # where to go on, by partition
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def end(self, error: VisitAbortedError | None = None) -> None:
        """For the worker, once."""
        self.error = error
        self._done.set()

    def result(self, timeout_s: float | None = None) -> int:
        """How many rows were visited, once all is committed. VisitAbortedError when it was broken off or is late."""
        if not self._done.wait(timeout_s):
            raise VisitAbortedError(f"the visit {self.source.topic!r} was not over within {timeout_s:g} s; it goes on")
        if self.error is not None:
            raise self.error
        return self.rows


class Visits:
    """The requests of one processor, handled one after the other."""

    def __init__(self, graph: GroupGraph) -> None:
        self._graph = graph
        self._waiting: deque[Visit] = deque()
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, name: str, meta: Any) -> Visit:
        """Ask for a visit. ProcessingError when the graph has no such visitor, VisitAbortedError after the end."""
        callback = self._graph.visitor(name)
        if callback is None:
            raise ProcessingError(
                f"group {self._graph.group!r} has no visitor {name!r}; add Visitor({name!r}, callback) to its graph"
            )
        visit = Visit(Source(name, _Meta(), callback, is_visit=True), meta)
        with self._lock:
            if self._closed:
                raise VisitAbortedError(f"the processor of group {self._graph.group!r} has ended")
            self._waiting.append(visit)
        return visit

    @property
    def waiting(self) -> bool:
        """Whether there is something to do."""
        return bool(self._waiting)

    @property
    def name(self) -> str:
        """Of the present visit."""
        return self._waiting[0].source.topic

    def step(self, running: Mapping[int, PartitionProcessor], now_ms: int) -> bool:
        """Visit some rows; True when all rows of the present visit were visited, and are to be committed."""
        visit = self._waiting[0]
        if visit.left is None:
            visit.left = dict.fromkeys(sorted(running), b"")
        room = ROWS
        while visit.left and room:
            partition, start = next(iter(visit.left.items()))
            processor = running[partition]
            table = processor.table
            keys = [key for key, _ in islice(table.iterate(start), room)] if table is not None else []
            visited = processor.process(visit.source, VisitedRows(keys, visit.meta, now_ms)) if keys else 0
            visit.rows += visited
            if visited < len(keys):  # no more time before a commit
                visit.left[partition] = keys[visited]
                break
            if len(keys) < room:
                del visit.left[partition]
            else:
                visit.left[partition] = keys[-1] + b"\x00"
            room -= len(keys)
        return not visit.left

    def complete(self) -> None:
        """The present visit is committed."""
        self._waiting.popleft().end()

    def abort(self, reason: str) -> None:
        """Break off what has begun; what has not goes on waiting."""
        if self._waiting and self._waiting[0].left is not None:
            visit = self._waiting.popleft()
            visit.end(VisitAbortedError(f"the visit {visit.source.topic!r} was broken off: {reason}"))

    def close(self) -> None:
        """Break off everything: the processor has ended."""
        with self._lock:
            self._closed = True
            while self._waiting:
                visit = self._waiting.popleft()
                visit.end(VisitAbortedError(f"the visit {visit.source.topic!r} was broken off: the processor ended"))


class VisitedRows:
    """Rows of a table where a partition processor expects the records of a batch."""

    def __init__(self, keys: Sequence[bytes], meta: Any, now_ms: int) -> None:
        self.keys = keys
        self.values = [(meta,)] * len(keys)
        self.offsets = [0] * len(keys)
        self._now_ms = now_ms

    def headers(self, index: int) -> list[tuple[str, bytes | None]]:
        """None."""
        return []

    def timestamp(self, index: int) -> int:
        """The present."""
        return self._now_ms


class _Meta:
    """Hands over what the visitors get instead of a record's value."""

    name = "visit"

    def encode(self, value: Any) -> Any:
        return (value,)

    def decode(self, data: Any) -> Any:
        return data[0]

    def decode_many(self, data: Sequence[Any]) -> list[Any]:
        return [meta for (meta,) in data]
