"""The partitions of a worker, from assigned over restored to running.

1. Every assignment runs the whole way for every partition, also for one that the worker kept: it may have been a zombie
   in between. For a table that is up to date that costs one look at the changelog's end.
2. Order matters: first the group's committed offsets (they wait while a transaction is pending), then, in one question,
   where every log that is needed begins or ends. The end of the table's changelog is the read-uncommitted one: all of a
   decided transaction is below it, so a restore that reaches it has everything that the committed offsets stand for
   (KAFKA-10167).
3. Joins and lookups are restored to their last stable offset as of the assignment.
4. A partition runs as soon as its own tables and all lookups are restored; the others go on restoring.
5. With hot standby the tables of every other partition are followed too, so that one that comes to this worker has
   little left to restore. With recover-ahead all of them are restored before the worker joins its group.

Owned by the worker's thread; `step()` is called between polls and never blocks for long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from time import monotonic

from msgspec import Struct

from gokamsg.engine.clients import Membership, Place
from gokamsg.engine.cluster import GroupClient, Marks, TableClient
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.names import quarantine_commands_of, quarantine_of
from gokamsg.engine.offsets import starting_position
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.partition_processor import PartitionProcessor
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.quarantine.partition import Quarantine
from gokamsg.engine.table_reader import TableReader
from gokamsg.engine.tables import Tables
from gokamsg.errors import BrokerUnavailableError, OffsetsPendingError, TopicError, TransactionAbortedError

TopicPartition = tuple[str, int]
COMMITTED_WAIT_S = 0.3
TRACES_WAIT_S = 1.0
OPEN_TRANSACTION = (
    "brokers end it when its timeout is over; if they do not, kafka-transactions.sh finds it (find-hanging) and ends it"
    " (abort)"
)

REBALANCE = (
    "the group assigns no partitions: its coordinator is not ready yet, or waits for a member that neither joins nor"
    " leaves, and puts it out when its session or its time between two polls is over"
)


class Clients(Struct, frozen=True):
    """The Kafka clients of one worker."""

    inputs: GroupClient
    tables: TableClient


class Assignment:
    """See the module. `running` maps partition to its processor."""

    def __init__(
        self,
        graph: GroupGraph,
        clients: Clients,
        tables: Tables,
        *,
        topic_ids: Mapping[str, str],
        joins: Mapping[str, LookupTable],
        lookups: Mapping[str, LookupTable],
        marks: Marks,
        options: ProcessorOptions,
        build: Callable[[int, PartitionTable | None, Quarantine | None], PartitionProcessor],
    ) -> None:
        self.running: dict[int, PartitionProcessor] = {}
        self.positions: dict[TopicPartition, int] = {}  # committed input positions of running partitions
        self.reader = TableReader(clients.tables, options.update_callback)
        self._graph = graph
        self._clients = clients
        self._tables = tables
        self._topic_ids = topic_ids
        self._joins = joins
        self._lookups = lookups
        self._marks = marks
        self._options = options
        self._ahead = options.recover_ahead
        self._build = build
        self._standing_by: set[int] = set()
        self._assigned: set[TopicPartition] = set()
        self._membership: Membership | None = None
        self._without_since = monotonic()  # a membership
        self._undecided = True
        self._undecided_since = monotonic()
        self._undecided_why: str | None = None
        self._restoring: dict[int, dict[TopicPartition, int]] = {}
        self._lookups_open = False
        self._quarantine = topic if (topic := quarantine_of(graph.group)) in topic_ids else None
        self._commanded: set[int] = set()
        self._processors: dict[int, PartitionProcessor] = {}
        self._started: list[PartitionProcessor] = []

    @property
    def membership(self) -> Membership | None:
        """The group membership that the present assignment belongs to."""
        return self._membership

    @property
    def settled(self) -> bool:
        """True when the group has assigned partitions, perhaps none, and every one of them is running."""
        return not self._undecided and not self._restoring and self._membership is not None

    def standstill(self, after_s: float) -> str | None:
        """Why no partition has come nearer to running for so long, in a sentence; None where one has."""
        if self._membership is None and not self._ahead:
            return REBALANCE if monotonic() - self._without_since >= after_s else None
        if self._undecided and self._membership is not None:
            return self._undecided_why if monotonic() - self._undecided_since >= after_s else None
        found = self.reader.standstill(after_s)
        if found is None:
            return None
        topic, partition, position = found
        return (
            f"what follows offset {position:,} of {topic}/{partition} is part of a transaction that is still open;"
            f" {OPEN_TRANSACTION}"
        )

    @property
    def standing_by(self) -> tuple[int, ...]:
        """The partitions of others whose tables are followed."""
        return tuple(sorted(self._standing_by))

    def ready_to_join(self) -> bool:
        """False while tables are restored ahead of joining the group; a step of that is done by each call."""
        if not self._ahead:
            return True
        if not self._lookups_open:
            self._open_lookups()
        self._stand_by(self._all_partitions() - self._standing_by)
        self.reader.poll(0.05)
        self._ahead = self.reader.restoring
        self._without_since = monotonic()
        return not self._ahead

    def assign(self, partitions: Collection[TopicPartition], membership: Membership) -> None:
        """These are the worker's partitions now; nothing runs until step() has brought it up again."""
        self.suspend()
        wanted = {partition for _, partition in partitions}
        for partition in ({partition for _, partition in self._assigned} | self._standing_by) - wanted:
            if not self._options.hot_standby:
                self._close(partition)
        self._assigned = set(partitions)
        self._membership = membership
        self._undecide()
        self._restoring = {}
        if self._options.rebalance_callback is not None:
            self._options.rebalance_callback(tuple(sorted(wanted)))

    def reload(self) -> None:
        """Bring the present partitions up again, after an outcome that was unknown."""
        self.suspend()
        self._undecide()

    def revoke(self) -> None:
        """The group is taking its partitions back; the next assignment decides."""
        self.suspend()
        self._membership = None
        self._without_since = monotonic()

    def suspend(self) -> None:
        """Stop handling every partition; tables stay open and joins go on following."""
        if self._assigned:
            self._clients.inputs.pause(self._clients.inputs.assignment() & self._assigned)
        for partition, processor in self.running.items():
            processor.rollback()
            for own in self._own_tables:
                self.reader.remove(own, partition)
        for partition in self._commanded:  # their inboxes end with their processors
            self.reader.remove(quarantine_commands_of(self._graph.group), partition)
        self._commanded.clear()
        self.running.clear()
        self._started.clear()
        self._restoring.clear()
        self.positions.clear()

    def step(self) -> None:
        """Do what can be done now. Raises OffsetsLostError, StateError, TopicError, BrokerUnavailableError."""
        if not self._lookups_open:
            self._open_lookups()
        if self._undecided and self._membership is not None:
            self._decide(self._membership)
        if self._options.hot_standby and self._membership is not None and not self._undecided:
            self._stand_by(self._all_partitions() - {partition for _, partition in self._assigned} - self._standing_by)
        if self._restoring:
            self._resume_restored()

    def await_commands(self) -> None:
        """Read the commands for those partitions, and only those, that have something parked."""
        present: set[int] = set()
        for partition, processor in self.running.items():
            inbox = processor.quarantine.inbox if processor.quarantine is not None else None
            if inbox is not None:
                present.add(partition)
                if partition not in self._commanded:
                    self.reader.add(inbox, inbox.position, follow=True, raw=True)
        for partition in self._commanded - present:
            self.reader.remove(quarantine_commands_of(self._graph.group), partition)
        self._commanded = present

    def started(self) -> list[PartitionProcessor]:
        """The processors that have begun to run since this was asked last, and still do."""
        started, self._started = self._started, []
        return started

    def _undecide(self) -> None:
        self._undecided = bool(self._assigned)
        self._undecided_since = monotonic()
        self._undecided_why = None

    # --- stages -------------------------------------------------------------------------------------------------

    def _open_lookups(self) -> None:
        for edge in self._graph.lookup_tables:
            count = self._clients.tables.partitions(edge.topic)
            keys = [(edge.topic, partition) for partition in range(count)]
            ends = self._clients.tables.end_offsets(keys, read_committed=True)
            for topic, partition in keys:
                table = self._tables.open(topic, partition, self._topic_ids[topic])
                lookup = self._lookups[topic]
                lookup.hold(partition, table)
                self.reader.add(table, ends[topic, partition], follow=True, changed=lookup.changed)
        self._lookups_open = True

    def _decide(self, membership: Membership) -> None:
        inputs = self._clients.inputs
        assigned = sorted(self._assigned)
        try:
            committed = inputs.committed(assigned, COMMITTED_WAIT_S)
        except OffsetsPendingError as error:  # a previous owner's; asked again after the next poll, as below
            self._undecided_why = f"{error}; {OPEN_TRANSACTION}"
            return
        except BrokerUnavailableError as error:
            self._undecided_why = f"the group's offsets are not told: {error}"
            return
        partitions = sorted({partition for _, partition in assigned})
        self._check_tables(partitions[-1])
        offsets = self._clients.tables.offsets(
            {
                Place.START: assigned,
                Place.END: [*assigned, *_parts(self._own_tables, partitions)],
                Place.STABLE_END: _parts((edge.topic for edge in self._graph.joint_tables), partitions),
            }
        )
        ends = offsets[Place.END]
        own_ends = {part: ends[part] for part in _parts(self._own_tables, partitions)}
        traces = self._traces({partition for (_, partition), offset in committed.items() if offset is None}, own_ends)
        if traces is None:
            return
        try:
            positions = self._positions(assigned, committed, offsets[Place.START], ends, traces, membership)
        except TransactionAbortedError:
            return  # the group is rebalancing again; the next assignment decides
        for partition in partitions:
            self._open(partition, own_ends)
        self._open_joins(offsets[Place.STABLE_END])
        self._undecided = False
        self._restoring = {
            partition: {tp: offset for tp, offset in positions.items() if tp[1] == partition}
            for partition in partitions
        }

    def _check_tables(self, highest: int) -> None:
        """Raises TopicError where an input has got more partitions, at work, than a table that belongs to it."""
        for topic in (*self._own_tables, *(edge.topic for edge in self._graph.joint_tables)):
            count = self._clients.tables.partitions(topic)
            if highest >= count:
                raise TopicError(
                    f"the inputs of group {self._graph.group!r} have more partitions by now than {topic!r}, which has"
                    f" {count}: keys are placed by that number, so topics of one group must have equally many; make"
                    f" the inputs anew with {count}, or delete {topic!r} to have it made again"
                )

    @property
    def _own_tables(self) -> list[str]:
        """What this group alone writes."""
        persist = self._graph.group_table
        return [topic for topic in (persist.topic if persist else None, self._quarantine) if topic is not None]

    def _traces(self, new: Collection[int], own_ends: Mapping[TopicPartition, int]) -> Collection[int] | None:
        """Those of the partitions `new` to the group, by its offsets, that its tables show as handled before; None if
        that is not known yet."""
        ends = {key: end for key, end in own_ends.items() if key[1] in new and end > 0}
        if not ends:
            return ()
        written = self.reader.written(ends, TRACES_WAIT_S)
        if written is None:
            logs = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(ends))
            self._undecided_why = f"{logs} may be part of a transaction that is still open; {OPEN_TRANSACTION}"
            return None
        return {partition for _, partition in written}

    def _positions(
        self,
        assigned: list[TopicPartition],
        committed: Mapping[TopicPartition, int | None],
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        traces: Collection[int],
        membership: Membership,
    ) -> dict[TopicPartition, int]:
        positions = {
            (topic, partition): starting_position(
                topic,
                partition,
                group=self._graph.group,
                committed=committed.get((topic, partition)),
                log_start=starts[topic, partition],
                log_end=ends[topic, partition],
                handled_before=partition in traces or self._marks.has(topic, self._topic_ids[topic], partition),
                start=self._options.start,
            )
            for topic, partition in assigned
        }
        first = {tp: offset for tp, offset in positions.items() if committed.get(tp) != offset}
        if first:
            # From now on a missing offset means a lost one.
            self._clients.inputs.commit(first, membership)
            for topic, partition in first:
                self._marks.add(topic, self._topic_ids[topic], partition)
        return positions

    @property
    def _standby_tables(self) -> list[str]:
        """What a partition's callbacks need of it: the group's table and its joins."""
        edges = (self._graph.group_table, *self._graph.joint_tables)
        return [edge.topic for edge in edges if edge is not None]

    def _all_partitions(self) -> set[int]:
        tables = self._standby_tables
        return set(range(self._clients.tables.partitions(tables[0]))) if tables else set()

    def _stand_by(self, partitions: Collection[int]) -> None:
        """Follow the tables of partitions that are not handled here."""
        if not partitions:
            return
        keys = _parts(self._standby_tables, partitions)
        ends = self._clients.tables.end_offsets(keys, read_committed=True)
        for topic, partition in keys:
            table = self._tables.open(topic, partition, self._topic_ids[topic])
            self.reader.add(table, max(ends[topic, partition], table.position), follow=True)
        self._standing_by.update(partitions)

    def _open(self, partition: int, ends: Mapping[TopicPartition, int]) -> None:
        self._standing_by.discard(partition)
        persist = self._graph.group_table
        table = None
        if persist is not None:
            table = self._tables.open(persist.topic, partition, self._topic_ids[persist.topic])
            self.reader.add(table, ends[persist.topic, partition], follow=False)
        quarantine = None
        if self._quarantine is not None:
            quarantine = self._open_quarantine(self._quarantine, partition, ends[self._quarantine, partition])
        self._processors[partition] = self._build(partition, table, quarantine)

    def _open_quarantine(self, topic: str, partition: int, end: int) -> Quarantine:
        # Mostly nothing was ever parked: then there is no file.
        table = self._tables.open(topic, partition, self._topic_ids[topic], is_new=not end)
        if end:
            self.reader.add(table, end, follow=False, raw=True)
        return Quarantine(
            self._graph.group,
            partition,
            quarantine_commands_of(self._graph.group),
            table,
            limit=self._options.quarantine_records,
        )

    def _open_joins(self, ends: Mapping[TopicPartition, int]) -> None:
        for (topic, partition), end in ends.items():
            table = self._tables.open(topic, partition, self._topic_ids[topic])
            join = self._joins[topic]
            join.hold(partition, table)
            self.reader.add(table, end, follow=True, changed=join.changed)

    def _resume_restored(self) -> None:
        restored = self.reader.restored
        lookups = [edge.topic for edge in self._graph.lookup_tables]
        if not all(restored(topic, p) for topic in lookups for p in range(self._clients.tables.partitions(topic))):
            return
        own = [*self._own_tables, *(edge.topic for edge in self._graph.joint_tables)]
        for partition, positions in list(self._restoring.items()):
            if all(restored(topic, partition) for topic in own):
                del self._restoring[partition]
                for (topic, _), offset in positions.items():
                    self._clients.inputs.seek(topic, partition, offset)
                self.positions.update(positions)
                processor = self.running[partition] = self._processors[partition]
                if processor.quarantine is not None:
                    processor.quarantine.load()
                self._started.append(processor)
                self._clients.inputs.resume(positions)

    def _close(self, partition: int) -> None:
        self._standing_by.discard(partition)
        self._processors.pop(partition, None)
        for own in self._own_tables:
            self.reader.remove(own, partition)
            self._tables.close(own, partition)
        for edge in self._graph.joint_tables:
            self.reader.remove(edge.topic, partition)
            self._joins[edge.topic].release(partition)
            self._tables.close(edge.topic, partition)


def _parts(topics: Iterable[str], partitions: Collection[int]) -> list[TopicPartition]:
    return [(topic, partition) for topic in topics for partition in partitions]
