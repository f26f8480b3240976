"""The loop of one worker: poll, handle, commit. One thread owns everything here.

A transaction is opened by the first record and committed
- when the input is drained, so that a lone message is through in milliseconds,
- when it reaches its age or size, cut between two records,
- before a poll that would leave the group's generation.

It is bound to the group membership that its records were assigned under. A rebalance found with a transaction open
aborts it. After an abort every input goes back to where its transaction began; after an unknown outcome nothing is
believed: the producer is replaced, which settles it, and committed offsets and tables are read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from time import monotonic

from gokamsg.engine.assignment import Assignment
from gokamsg.engine.clients import Assigned, GroupConsumer, Membership
from gokamsg.engine.context import Deferral
from gokamsg.engine.guarantee import Delivery, UncommittedError, UnsettledError
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import BadRecord, Pace, Source
from gokamsg.engine.records import RecordBatch
from gokamsg.engine.stats import Counters
from gokamsg.engine.tables import Tables
from gokamsg.errors import BrokerUnavailableError, PositionLostError, ProcessingError

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.25
FLUSH_ROWS = 20_000
FLUSH_AGE_S = 2.0
SILENCE_S = 2.0

TopicPartition = tuple[str, int]


class Worker:
    """See the module. `turn()` is one round of the loop; `finish()` commits what is open at the end."""

    def __init__(
        self,
        inputs: GroupConsumer,
        delivery: Delivery,
        assignment: Assignment,
        *,
        group: str,
        sources: Mapping[str, Source],
        outputs: Outputs,
        tables: Tables,
        table_topic: str | None,
        pace: Pace,
        deferral: Deferral,
        options: ProcessorOptions,
        counters: Counters,
        stopping: Callable[[], bool],
    ) -> None:
        self.notice: str | None = None
        self._group = group
        self._inputs = inputs
        self._delivery = delivery
        self._assignment = assignment
        self._sources = sources
        self._outputs = outputs
        self._tables = tables
        self._table_topic = table_topic
        self._pace = pace
        self._deferral = deferral
        self._options = options
        self._counters = counters
        self._stopping = stopping
        self._unsettled = False
        self._connected_at = monotonic()
        # The open transaction: its membership, its age and how far each input has come in it.
        self._open: Membership | None = None
        self._began = 0.0
        self._bytes = 0
        self._records = 0
        self._progress: dict[TopicPartition, int] = {}
        self._flushed_at = monotonic()

    # --- the loop -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One round. Raises what the processor cannot go on after."""
        try:
            if self._unsettled:
                self._settle()
            if self._open is not None and self._inputs.will_rejoin():
                self._commit()
            batches = self._inputs.poll(self._wait_s())
            self._watch_connection()
            self._follow_membership()
            if self._unsettled:
                return  # nothing is begun before the last outcome is known
            self._assignment.step()
            reader = self._assignment.reader
            if not reader.idle:
                reader.poll(0.05 if reader.restoring else 0.0)
            if batches:
                self._handle(batches)
            elif self._open is not None:
                self._commit()
            self._flush_tables()
        except UncommittedError as error:
            log.info("transaction of group %s aborted: %s", self._group, error)
            self._roll_back()
        except UnsettledError as error:
            log.info("transaction of group %s has an unknown outcome: %s", self._group, error)
            self._recover()
        except PositionLostError:
            # Decided like a start: the reload names the range that is gone, or follows the option `start`.
            self._roll_back()
            self._assignment.reload()
        except BrokerUnavailableError as error:
            self._tell(str(error))
            if self._open is not None:
                self._recover()

    def finish(self) -> None:
        """Commit what is open, as the last thing before a stop."""
        if self._open is None:
            return
        try:
            self._commit()
        except (UncommittedError, UnsettledError) as error:
            # Its records are handled again by whoever has the partition next.
            log.info("last transaction of group %s not committed: %s", self._group, error)
            self._drop()

    def abandon(self) -> None:
        """After an error that ends the worker: abort what is open, so that nobody downstream waits for it."""
        if self._open is not None:
            self._abort()

    def _watch_connection(self) -> None:
        """Say once that the brokers are gone, and once that they are back; the clients go on trying by themselves."""
        fatal = self._inputs.fatal()
        if fatal is not None:
            raise fatal
        now = monotonic()
        if self._inputs.connected():
            self._connected_at = now
            if self.notice is not None:
                log.warning("the brokers answer again; going on")
                self.notice = None
        elif now - self._connected_at >= SILENCE_S:
            self._tell("no broker is connected")

    def _tell(self, notice: str) -> None:
        if self.notice is None:
            log.warning("%s; trying again until one answers", notice)
        self.notice = notice

    def _wait_s(self) -> float:
        if self._open is not None:
            return 0.0
        if not self._assignment.settled or self._assignment.reader.restoring:
            return 0.0 if self._assignment.reader.restoring else 0.02
        return IDLE_WAIT_S

    def _follow_membership(self) -> None:
        events = self._inputs.events()
        if not events:
            return
        settled = self._open is None or self._abort()
        for event in events:
            if isinstance(event, Assigned):
                self._assignment.assign(event.partitions, event.membership)
            else:
                self._assignment.suspend()
        if not settled:
            raise UnsettledError("the group was rebalanced while the transaction could not be aborted")

    # --- handling -----------------------------------------------------------------------------------------------

    def _handle(self, batches: Mapping[TopicPartition, list[RecordBatch]]) -> None:
        self._outputs.now_ms = time.time_ns() // 1_000_000
        for (topic, partition), partition_batches in batches.items():
            processor = self._assignment.running.get(partition)
            if processor is None:
                continue  # fetched before a rebalance; read again once the partition runs
            source = self._sources[topic]
            for batch in partition_batches:
                self._begin()
                records = batch.split()
                processor.process(source, records)
                self._progress[topic, partition] = batch.next_offset
                self._records += len(records.offsets)
                self._bytes += len(batch.raw)
                if self._bytes >= self._options.commit_bytes:
                    self._commit()
            # Behind the last batch there may be markers; the consumer has passed them.
            position = self._inputs.position(topic, partition)
            if position is not None and (topic, partition) in self._progress:
                self._progress[topic, partition] = max(position, self._progress[topic, partition])

    def cut(self, topic: str, partition: int, next_offset: int) -> None:
        """Called between two records once the open transaction has reached its age: commit up to `next_offset`."""
        took = monotonic() - self._began
        if took > self._options.record_deadline_s:
            raise ProcessingError(
                f"record {topic}/{partition}@{next_offset - 1} took {took:.1f} s, longer than the transaction timeout"
                f" allows ({self._options.record_deadline_s:.1f} s); raise --transaction-timeout"
                f" (now {self._options.transaction_timeout_ms} ms)"
            )
        self._progress[topic, partition] = next_offset
        self._commit()
        self._begin()

    def bad(self, record: BadRecord) -> None:
        """The one way of a bad record: stop the processor, or count and skip."""
        self._counters.bad_records += 1
        if self._options.on_error == "stop":
            raise ProcessingError(
                f"{record}; skip such records with --on-error skip, or mend the callback and start again"
            ) from record.error
        log.warning("skipped: %s", record)

    # --- the transaction ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._open is not None:
            return
        membership = self._assignment.membership
        if membership is None:
            raise ProcessingError(f"group {self._group!r} handed out records without an assignment")
        self._delivery.begin()
        self._open = membership
        self._began = monotonic()
        self._pace.cut_at = self._began + self._options.commit_age_s
        self._bytes = self._records = 0
        self._progress.clear()

    def _commit(self) -> None:
        membership = self._open
        if membership is None:
            return
        began = monotonic()
        self._await_deferred(began)
        running = self._assignment.running
        changelog = self._outputs.topic(self._table_topic) if self._table_topic else None
        if changelog is not None:
            for processor in running.values():
                self._counters.table_writes += processor.write_changelog(changelog)
        self._outputs.flush()
        ends = self._delivery.commit(self._progress, membership)
        self._open = None
        self._pace.cut_at = float("inf")
        for partition, processor in running.items():
            processor.committed(ends.get((self._table_topic, partition)) if self._table_topic else None)
        self._assignment.positions.update(self._progress)
        self._progress.clear()
        self._counters.commits += 1
        self._counters.records += self._records
        self._counters.commit_ms = (monotonic() - began) * 1000

    def _await_deferred(self, now: float) -> None:
        left = self._options.record_deadline_s - (now - self._began)
        if not self._deferral.wait(max(left, 0.0)):
            raise ProcessingError(
                f"a deferred commit was not completed within {self._options.record_deadline_s:.1f} s;"
                f" raise --transaction-timeout (now {self._options.transaction_timeout_ms} ms)"
            )

    def _drop(self) -> None:
        """Forget the open transaction's effects in this process."""
        self._open = None
        self._progress.clear()
        self._pace.cut_at = float("inf")
        self._deferral.reset()
        self._outputs.discard()
        for processor in self._assignment.running.values():
            processor.rollback()

    def _abort(self) -> bool:
        """Drop the open transaction here and at the brokers; False when they did not confirm it."""
        self._counters.aborts += 1
        self._drop()
        try:
            self._delivery.abort()
        except UnsettledError:
            return False
        return True

    def _roll_back(self) -> None:
        progress = list(self._progress)
        if not self._abort():
            self._recover()
            return
        # kafka-python does not rewind: every input goes back to where its transaction began.
        assigned = self._inputs.assignment()
        for topic, partition in progress:
            position = self._assignment.positions.get((topic, partition))
            if position is not None and (topic, partition) in assigned:
                self._inputs.seek(topic, partition, position)

    def _recover(self) -> None:
        """Settle an unknown outcome: nothing that was read or written in this process since the last commit counts."""
        self._drop()
        self._assignment.suspend()
        self._unsettled = True
        self._settle()

    def _settle(self) -> None:
        """One try to settle; repeated by turn() until it succeeds."""
        fatal = self._inputs.fatal()
        if fatal is not None:
            raise fatal  # whoever has our identity now must not be fenced by us
        try:
            self._delivery.recover()
        except BrokerUnavailableError as error:
            self._tell(str(error))
            return
        self._unsettled = False
        self._assignment.reload()

    def _flush_tables(self) -> None:
        """Bring committed rows to the files in bulk: when there are many, or when there is time."""
        now = monotonic()
        idle = self._open is None and now - self._flushed_at >= FLUSH_AGE_S
        for table in self._tables:
            if table.dirty_rows >= FLUSH_ROWS or (idle and table.dirty_rows):
                table.flush()
        if idle:
            self._flushed_at = now
