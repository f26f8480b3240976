"""The loop of one worker: poll, handle, commit. One thread owns everything here.

The transaction is committed
- when the input is drained, so that a lone message is through in milliseconds,
- when it reaches its age or size, between two records; what is left of the poll is handled in the next turn, so that
  a slow callback holds up nothing else that a turn does,
- before a poll that would leave the group's generation; a rebalance found with a transaction open aborts it.

After an abort every input goes back to where its transaction began. After an unknown outcome nothing is believed: the
producer is replaced, which settles it, and committed offsets and tables are read again. When the brokers are gone that
is said once, and the worker goes on by itself when they are back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from gokamsg.engine.assignment import Assignment
from gokamsg.engine.backlog import Backlog, Polled
from gokamsg.engine.clients import Assigned, Batches, Patience
from gokamsg.engine.clock import Clock
from gokamsg.engine.cluster import GroupClient
from gokamsg.engine.flood import Flood
from gokamsg.engine.guarantee import AtLeastOnce, Delivery, UncommittedError, UnsettledError
from gokamsg.engine.obstacles import Obstacles
from gokamsg.engine.options import OnError
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import BadRecord, Source
from gokamsg.engine.partitioning import KeyPlacement
from gokamsg.engine.silence import obstacle_of
from gokamsg.engine.stats import Counters
from gokamsg.engine.tables import Tables
from gokamsg.engine.transaction import Transaction
from gokamsg.engine.visits import Visits
from gokamsg.errors import BrokerUnavailableError, PositionLostError, ProcessingError

log = logging.getLogger(__name__)

IDLE_WAIT_S = 1.0  # input, changes of tables, rebalances, visits and a stop end it at once
JOINING_WAIT_S = 0.5  # the end of a join ends it at once; each poll that does not see it leaves something behind
SETTLING_WAIT_S = 0.02
STARTING_WAIT_S = 0.05  # until tables are followed; for as long as a leader is missing
REST_STEP_S = 0.5
FLUSH_ROWS = 20_000
FLUSH_AGE_S = 2.0
BUSY_S = 5.0  # so long what can wait does wait for a worker that always has something to handle
STANDSTILL_S = 5.0  # of a start; the transaction of a worker that was killed is usually ended sooner
LOOK = "'gokamsg quarantine list' shows them all"


class Worker:
    """See the module. `turn()` is one round of the loop; `finish()` commits what is open at the end."""

    def __init__(
        self,
        inputs: GroupClient,
        assignment: Assignment,
        transaction: Transaction,
        *,
        delivery: Delivery,
        sources: Mapping[str, Source],
        outputs: Outputs,
        tables: Tables,
        placement: KeyPlacement,
        on_error: OnError,
        counters: Counters,
        clock: Clock,
        visits: Visits,
        patience: Patience,
    ) -> None:
        self._inputs = inputs
        self._assignment = assignment
        self._transaction = transaction
        self._delivery = delivery
        self._sources = sources
        self._outputs = outputs
        self._tables = tables
        self._placement = placement
        self._on_error = on_error
        self._counters = counters
        self._clock = clock
        self._now = clock.monotonic
        self._visits = visits
        self._patience = patience
        self._unsettled = False
        self._backlog = Backlog(inputs, self._now)
        self._obstacles = Obstacles(self._now)
        what, rest = ("skipped", "more") if on_error == "skip" else ("in quarantine", "more; " + LOOK)
        self._bad_ones = Flood(lambda line: log.warning("%s: %s", what, line), self._now, rest)
        self._flushed_at = self._spared_at = self._now()

    # --- the loop -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One round. Raises what the processor cannot go on after."""
        try:
            self._turn()
        except UncommittedError as error:
            log.info("transaction aborted: %s", error)
            self._roll_back()
            self._take_breath(error)
        except UnsettledError as error:
            log.info("transaction with an unknown outcome: %s", error)
            self._recover()
            self._take_breath(error)
        except PositionLostError:
            # Decided like a start: the reload names the range that is gone, or follows the option `start`.
            self._roll_back()
            self._assignment.reload()
        except BrokerUnavailableError as error:
            self._obstacles.unanswered(str(error))
            if self._transaction.is_open:
                self._recover()
            else:
                self._rewind()

    def _turn(self) -> None:
        if self._unsettled:
            self._settle()
        if not self._assignment.ready_to_join():
            return
        if self._inputs.will_rejoin():
            self._transaction.commit(self._assignment)
            if self._backlog:
                self._rewind()
        batches = self._poll()
        self._watch()
        self._follow_membership()
        if self._unsettled:
            return  # nothing is begun before the last outcome is known
        self._assignment.step()
        self._touch_tables()
        reader = self._assignment.reader
        if not reader.idle:
            reader.poll(0.05 if reader.restoring else 0.0)
        for part, polled in batches.items():
            if part[1] in self._assignment.running:  # else fetched before a rebalance, and read again once it runs
                self._backlog.add(part, polled)
        if self._backlog:
            self._handle()
        self._obey()
        # Drained: what comes during the commit makes the next transaction.
        if not self._visits.waiting and not self._has_input:
            self._transaction.commit(self._assignment)
            self._placement.drained()
        if self._visits.waiting and self._assignment.settled:
            self._visit()
        has_time = self._has_time()
        if has_time:
            self._assignment.await_commands()
        self._flush_tables(has_time=has_time)

    def _touch_tables(self) -> None:
        """At-least-once, the changelog of each partition that comes up gets a last record outside of transactions.

        Goka restores a table up to the record below the log's end; where earlier work of a worker that was exactly-once
        has left a transaction's marker there, it would wait for ever.
        """
        for processor in self._assignment.started():
            if self._delivery.name == AtLeastOnce.name:
                self._begin()
                processor.touch_table()

    @property
    def idle(self) -> bool:
        """True when nothing is open, unknown or asked for."""
        return not (self._transaction.is_open or self._unsettled or self._visits.waiting or self._backlog)

    def finish(self) -> None:
        """Commit what is open, as the last thing before a stop; what cannot be committed is handled again by whoever
        has the partition next."""
        self._bad_ones.end()
        try:
            self._transaction.commit(self._assignment)
        except UncommittedError as error:
            log.info("last transaction aborted: %s", error)
            self._transaction.abort(self._assignment)  # left open, it would hold up everybody who reads committed
        except UnsettledError as error:
            log.info("last transaction with an unknown outcome: %s", error)
            self._transaction.drop(self._assignment)

    def abandon(self) -> None:
        """After an error that ends the worker: abort what is open, so that nobody downstream waits for it."""
        self._bad_ones.end()
        if self._transaction.is_open:
            self._transaction.abort(self._assignment)

    @property
    def _has_input(self) -> bool:
        """Whether there is something to handle without waiting for it."""
        return bool(self._backlog) or self._inputs.arrived()

    def _poll(self) -> Batches:
        if self._backlog:
            return self._backlog.poll_beside()
        if rest_s := self._transaction.rest_s:
            self._clock.sleep(min(rest_s, REST_STEP_S))
        return self._inputs.poll(self._wait_s())

    def _wait_s(self) -> float:
        if self._transaction.is_open or self._assignment.reader.restoring or self._visits.waiting:
            return 0.0
        if self._assignment.reader.starting:
            return STARTING_WAIT_S if self._assignment.settled else SETTLING_WAIT_S
        if self._assignment.membership is None:
            return JOINING_WAIT_S
        return IDLE_WAIT_S if self._assignment.settled else SETTLING_WAIT_S

    def _follow_membership(self) -> None:
        events = self._inputs.events()
        if not events:
            return
        self._backlog.clear()
        self._obstacles.rebalanced()
        self._visits.abort("the group is rebalanced")
        settled = not self._transaction.is_open or self._transaction.abort(self._assignment)
        for event in events:
            if isinstance(event, Assigned):
                self._assignment.assign(event.partitions, event.membership)
            else:
                self._assignment.revoke()
        if not settled:
            raise UnsettledError("the group was rebalanced while the transaction could not be aborted")

    # --- handling -----------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        """Handle what was polled, as long as the transaction has time."""
        self._outputs.read_clock()
        while self._backlog:
            polled = self._backlog.head
            while polled.batches:
                last_offset = self._handle_batch(polled)
                if self._transaction.is_due:
                    self._commit_due("record {}/{}@{}".format(*polled.part, last_offset))
                    self._backlog.rotate()
                    return
                if self._transaction.is_large:
                    self._transaction.commit(self._assignment)
            self._backlog.remove_head()

    def _handle_batch(self, polled: Polled) -> int:
        """Returns the offset that it came to."""
        (topic, partition), batch = polled.part, polled.batches[0]
        processor = self._assignment.running[partition]
        self._begin()
        records = batch.split()
        self._placement.look(topic, partition, records.keys)
        handled = processor.process(self._sources[topic], records)
        processor.count(topic, records, handled, self._outputs.now_ms)
        next_offset = polled.advance(records.offsets[handled] if handled < len(records) else None)
        self._transaction.advance(topic, partition, next_offset, records=handled, size=len(batch.raw))
        return records.offsets[handled - 1] if handled else next_offset - 1

    def _obey(self) -> None:
        for processor in self._assignment.running.values():
            if processor.quarantine is not None and processor.quarantine.has_commands:
                self._outputs.read_clock()
                self._begin()
                processor.obey(self._sources)
                if self._transaction.is_due:
                    self._commit_due("a record out of the quarantine")

    def _visit(self) -> None:
        self._outputs.read_clock()
        self._begin()
        is_over = self._visits.step(self._assignment.running, self._outputs.now_ms)
        if self._transaction.is_due:
            self._commit_due(f"a row of the visit {self._visits.name!r}")
        if is_over:
            self._transaction.commit(self._assignment)
            self._visits.complete()

    def _begin(self) -> None:
        membership = self._assignment.membership
        if membership is None:
            raise ProcessingError("records were handed out without an assignment")
        self._transaction.begin(membership)

    def _commit_due(self, last: str) -> None:
        self._transaction.check_pace(last)
        self._transaction.commit(self._assignment)

    def bad(self, record: BadRecord) -> bool:
        """The one way of a bad record: stop the processor, or count it; whether it goes into quarantine."""
        self._counters.bad_records += 1
        if self._on_error == "quarantine" and record.topic not in self._sources:
            raise ProcessingError(f"{record}; the visit can be asked for again once it is mended") from record.error
        if self._on_error == "stop":
            raise ProcessingError(
                f"{record}; put such records aside with --on-error quarantine, or mend the callback and start again"
            ) from record.error
        self._bad_ones.add(record)
        return self._on_error == "quarantine"

    # --- when things break --------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        self._visits.abort("its transaction was aborted")
        if self._transaction.abort(self._assignment):
            self._rewind()
        else:
            self._recover()

    def _rewind(self) -> None:
        """Every input goes back to its last commit, also where nothing was handled since: of a poll that was broken off
        half-way, the rest has been handed out, and kafka-python does not rewind by itself."""
        assigned = self._inputs.assignment()
        for (topic, partition), position in self._assignment.positions.items():
            if (topic, partition) in assigned:
                self._inputs.seek(topic, partition, position)
        self._backlog.give_back()

    def _recover(self) -> None:
        """Nothing that was read or written in this process since the last commit counts; settle what happened."""
        self._visits.abort("the outcome of its transaction is not known")
        self._backlog.clear()
        self._transaction.drop(self._assignment)
        self._assignment.suspend()
        self._unsettled = True
        self._settle()

    def _settle(self) -> None:
        """One try to settle; repeated by turn() until it succeeds."""
        fatal = self._inputs.fatal()
        if fatal is not None:
            raise fatal  # whoever has our identity now must not be fenced by us
        if self._patience.hurried:
            return  # whoever comes next settles it
        try:
            self._delivery.recover()
        except BrokerUnavailableError as error:
            self._obstacles.unanswered(str(error))
            return
        self._unsettled = False
        self._assignment.reload()

    @property
    def notice(self) -> str | None:
        """Why there is no progress, in a sentence; None while there is."""
        return self._obstacles.notice

    def _watch(self) -> None:
        fatal = self._inputs.fatal()
        if fatal is not None:
            raise fatal
        obstacles, assignment = self._obstacles, self._assignment
        obstacles.watch_brokers(obstacle_of(self._inputs) or assignment.reader.obstacle)
        obstacles.watch_commits(self._counters.commits)
        standstill = None if obstacles.is_silent else assignment.standstill(STANDSTILL_S)
        obstacles.watch_start(standstill, settled=assignment.settled)
        self._bad_ones.look()

    def _take_breath(self, error: Exception) -> None:
        """A transaction that fails again and again, with no other committed in between, is tried slower."""
        rest_s = self._obstacles.refused(error, self._counters.commits)
        if rest_s and not self._patience.hurried:
            self._clock.sleep(rest_s)

    def _has_time(self) -> bool:
        """Whether nothing waits to be handled, or something always did for long enough."""
        now = self._now()
        if (self._transaction.is_open or self._has_input) and now - self._spared_at < BUSY_S:
            return False
        self._spared_at = now
        return True

    def _flush_tables(self, *, has_time: bool) -> None:
        """Bring committed rows to the files in bulk: when there are many, or when there is time."""
        now = self._now()
        idle = has_time and now - self._flushed_at >= FLUSH_AGE_S
        for table in self._tables:
            if table.dirty_rows >= FLUSH_ROWS or (idle and table.dirty_rows):
                table.flush()
            else:
                table.check_write()
        if idle:
            self._flushed_at = now
