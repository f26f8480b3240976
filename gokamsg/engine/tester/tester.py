"""The tester: a cluster in memory with the test's processors, views and emitters on it.

    tester = Tester(partitions=4, seed=1)
    tester.processor(graph)
    tester.consume("lines", "a", "to be or not to be")
    assert tester.table_value("words-table", "be") == 2

1. One thread, no broker, no files, no waiting: consume() returns when everything that the record caused has settled,
   over all processors and views. Whose turn it is is drawn from `seed`, so a test can be repeated.
2. The engine's own code runs, from the processor's loop to the callbacks: transactions, restores, rebalances between
   several instances of a group, bad records. Offsets have holes where transactions ended, as on Kafka.
3. Crashes: with `crash_rate` a processor is killed at a step (a call of a client, or between two records) with that
   probability, with `crash_at` at the steps of these numbers; in half of the cases it loses its local tables too. It
   is started again, and goes on from what was committed. With `trouble_rate` so many commits are refused, so many
   get lost, of so many the answer gets lost, and so many reads of tables fail.
4. The clock stands still until advance().

What cannot be tried here: what takes real time (timeouts, slow callbacks), the network, and Kafka itself. A callback's
defer_commit() must be completed in the callback or by another thread.
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any

from gokamsg.engine.codec import Codec
from gokamsg.engine.emitter import Emitter
from gokamsg.engine.graph import GroupGraph, Join, Lookup
from gokamsg.engine.hashing import Hasher, fnv1a32, partition_of
from gokamsg.engine.output import decode_key, encode_key
from gokamsg.engine.records import BatchBuilder
from gokamsg.engine.tester.broker import MemoryBroker
from gokamsg.engine.tester.log import MemoryTopic
from gokamsg.engine.tester.programs import TestedProcessor, TestedView
from gokamsg.engine.tester.queue import QueueTracker
from gokamsg.engine.tester.session import Disk, Session
from gokamsg.engine.view import View
from gokamsg.errors import ProcessingError, UsageError

START = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
COMPACTED = {"cleanup.policy": "compact"}


class Tester:
    """See the module. A context manager that ends everything; without it nothing but memory is left over."""

    __test__ = False  # for pytest: no test class

    def __init__(
        self,
        *,
        partitions: int = 4,
        seed: int = 0,
        now: dt.datetime = START,
        crash_rate: float = 0.0,
        crash_at: Collection[int] = (),
        trouble_rate: float = 0.0,
    ) -> None:
        """Topics have so many `partitions`, unless create_topic() made them otherwise."""
        self.steps = 0
        self._random = Random(seed)
        self._crash_rate = crash_rate
        self._trouble_rate = trouble_rate
        self._crash_at = frozenset(crash_at)
        self._broker = MemoryBroker(partitions=partitions, random=self._random, now=now.timestamp())
        self._codecs: dict[str, Codec[Any]] = {}
        self._processors: list[TestedProcessor] = []
        self._views: list[TestedView] = []

    def __enter__(self) -> "Tester":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processors and views; nothing more is committed."""
        for processor in self._processors:
            processor.crash()
            processor.stop()
        for view in self._views:
            view.close()

    # --- programs -----------------------------------------------------------------------------------------------

    def processor(self, graph: GroupGraph, **options: Any) -> TestedProcessor:
        """A processor of this graph, with the options of ProcessorOptions; `on_error` is "stop" unless given, so that a
        test sees what goes wrong. Its topics are made if they do not exist. Calling it again for the same graph adds an
        instance to the group. UsageError when a topic has another codec already."""
        for edge in graph.all_edges():
            self._register(edge.topic, edge.codec)
        own = {edge.topic for edge in (graph.loop_stream, graph.group_table) if edge is not None}
        for edge in graph.all_edges():
            if edge.topic not in own:
                config = COMPACTED if isinstance(edge, Join | Lookup) else {}
                self._broker.create(edge.topic, self._broker.partitions, config)
        slot = sum(other.graph.group == graph.group for other in self._processors)

        def open_session(disk: Disk) -> Session:
            return Session(self._broker, disk, slot, lambda: self._crashes(disk), self._trouble_rate)

        made = TestedProcessor(graph, open_session, self.catchup, options)
        self._processors.append(made)
        return made

    def view(self, table: str, codec: Codec[Any], **options: Any) -> View[Any]:
        """A view of the table, with the options of View; it follows while the tester works."""
        self._register(table, codec)
        self._broker.create(table, self._broker.partitions, COMPACTED)
        session = Session(self._broker, Disk(), 0)
        view = View(session, table, codec, **options)
        self._views.append(TestedView(view, session))
        return view

    def emitter(self, topic: str, codec: Codec[Any], **options: Any) -> Emitter[Any]:
        """An emitter, with the options of Emitter. What it emits is in the topic at once; catchup() has it handled."""
        self._register(topic, codec)
        self._broker.create(topic, self._broker.partitions)
        return Emitter(Session(self._broker, Disk(), 0), topic, codec, **options)

    def create_topic(self, name: str, partitions: int, codec: Codec[Any] | None = None, *, table: bool = False) -> None:
        """A topic with a number of partitions of its own, before anything uses it."""
        if name in self._broker.topics:
            raise UsageError(f"topic {name!r} exists already; make it before the processors that use it")
        self._broker.create(name, partitions, COMPACTED if table else {})
        if codec is not None:
            self._register(name, codec)

    # --- records ------------------------------------------------------------------------------------------------

    def consume(
        self,
        topic: str,
        key: str,
        value: Any,
        *,
        headers: Mapping[str, bytes | None] | None = None,
        timestamp: dt.datetime | None = None,
        hasher: Hasher = fnv1a32,
    ) -> None:
        """Write a record, None as a null value, and run until everything has settled. The timestamp is the tester's
        clock. Raises what stopped a processor or view; CodecError when the value cannot be encoded."""
        data = None if value is None else self._codec(topic).encode(value)
        self.write(topic, encode_key(key), data, headers=headers, timestamp=timestamp, hasher=hasher)
        self.catchup()

    def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Mapping[str, bytes | None] | Sequence[tuple[str, bytes | None]] | None = None,
        timestamp: dt.datetime | None = None,
        hasher: Hasher = fnv1a32,
    ) -> None:
        """Write a record of these bytes, and run nothing yet. Headers in a sequence may have one name twice."""
        stored = self._topic(topic)
        at = self._broker.now if timestamp is None else timestamp.timestamp()
        builder = BatchBuilder()
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        builder.append(key, value, int(at * 1000), tuple(pairs))
        stored.append(partition_of(key or b"", len(stored.logs), hasher), builder)

    def run(self, turns: int = 1) -> None:
        """So many turns of every processor and view, whether they have settled or not: to come in between."""
        programs: list[TestedProcessor | TestedView] = [*self._processors, *self._views]
        for _ in range(turns):
            self._random.shuffle(programs)
            for program in programs:
                program.turn()

    def catchup(self, most_turns: int = 100_000) -> None:
        """Run until every processor and view has settled. ProcessingError when that takes more than `most_turns` turns
        of a program: then something feeds itself for ever, or crashes come too often."""
        programs: list[TestedProcessor | TestedView] = [*self._processors, *self._views]
        turns = 0
        while not all(program.settled() for program in programs):
            self.run()
            turns += len(programs)
            if turns > most_turns:
                raise ProcessingError(
                    f"this does not settle within {most_turns:,} turns; does a loop or a pair of groups feed itself,"
                    " or is crash_rate too high?"
                )

    def new_queue_tracker(self, topic: str) -> QueueTracker:
        """A reader of what comes into the topic from now on."""
        return QueueTracker(self._topic(topic), self._codec(topic))

    # --- tables -------------------------------------------------------------------------------------------------

    def table_value(self, table: str, key: str) -> Any:
        """The committed value of a key, None if it has none."""
        raw = self._topic(table).rows.get(encode_key(key))
        return None if raw is None else self._codec(table).decode(raw)

    def set_table_value(self, table: str, key: str, value: Any) -> None:
        """Write a row, None removes it. If it is the table of a group here, everything settles first; then the group
        is stopped, and finds the row when it starts."""
        data = None if value is None else self._codec(table).encode(value)
        self._stop_owners({table})
        self.write(table, encode_key(key), data)

    def get_table_keys(self, table: str) -> list[str]:
        """The keys that have a value, in byte order."""
        return [decode_key(key) for key in sorted(self._topic(table).rows)]

    def clear_values(self) -> None:
        """Remove every row of every table."""
        topics = self._broker.topics.values()
        tables = [topic for topic in topics if topic.config.get("cleanup.policy") == "compact"]
        self._stop_owners({topic.name for topic in tables})
        for topic in tables:
            for key in list(topic.rows):
                self.write(topic.name, key, None)

    # --- time and trouble ---------------------------------------------------------------------------------------

    @property
    def now(self) -> dt.datetime:
        """The tester's time."""
        return dt.datetime.fromtimestamp(self._broker.now, dt.UTC)

    def advance(self, by: dt.timedelta | float) -> None:
        """Move the clock on, by seconds or a timedelta."""
        seconds = by.total_seconds() if isinstance(by, dt.timedelta) else by
        if seconds < 0:
            raise UsageError(f"the clock cannot go back ({seconds:g} s)")
        self._broker.now += seconds

    @property
    def crashes(self) -> int:
        """How many times a processor was killed."""
        return sum(processor.crashes for processor in self._processors)

    # --- inside -------------------------------------------------------------------------------------------------

    def _crashes(self, disk: Disk) -> bool:
        self.steps += 1
        if self.steps not in self._crash_at and not (self._crash_rate > 0 and self._random.random() < self._crash_rate):
            return False
        if self._random.random() < 0.5:
            disk.lose()
        return True

    def _stop_owners(self, tables: set[str]) -> None:
        """Nobody but the group writes its table; and one that has never run takes rows for traces of lost offsets."""
        edges = [(processor, processor.graph.group_table) for processor in self._processors]
        owners = [processor for processor, own in edges if own is not None and own.topic in tables]
        if owners:
            self.catchup()
        for processor in owners:
            if processor.alive:
                processor.restart()

    def _register(self, topic: str, codec: Codec[Any]) -> None:
        known = self._codecs.setdefault(topic, codec)
        if known.name != codec.name:
            raise UsageError(f"topic {topic!r} has codec {known.name} already, not {codec.name}; use one for one topic")

    def _codec(self, topic: str) -> Codec[Any]:
        try:
            return self._codecs[topic]
        except KeyError:
            raise UsageError(self._unknown(topic)) from None

    def _topic(self, topic: str) -> MemoryTopic:
        found = self._broker.topics.get(topic)
        if found is None and topic in self._codecs:  # a group's own topic, made when its processor starts
            self.catchup()
            found = self._broker.topics.get(topic)
        if found is None:
            raise UsageError(self._unknown(topic))
        return found

    def _unknown(self, topic: str) -> str:
        known = ", ".join(sorted(self._codecs)) or "none"
        return f"no processor, view or emitter of this tester uses topic {topic!r} (known: {known})"
