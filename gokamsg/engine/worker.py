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
from collections import deque
from collections.abc import Mapping

from gokamsg.engine.assignment import Assignment
from gokamsg.engine.clients import Assigned, Patience
from gokamsg.engine.clock import Clock
from gokamsg.engine.cluster import GroupClient
from gokamsg.engine.flood import Flood
from gokamsg.engine.guarantee import AtLeastOnce, Delivery, UncommittedError, UnsettledError
from gokamsg.engine.options import OnError
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import BadRecord, Source
from gokamsg.engine.partitioning import KeyPlacement
from gokamsg.engine.polled import Polled
from gokamsg.engine.records import RecordBatch
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
SLOW_S = 2.0  # so long may what was polled last before other partitions are looked after
BACKLOG_BYTES = 8 << 20  # about what one poll brings at most
BUSY_S = 5.0  # so long what can wait does wait for a worker that always has something to handle
SILENCE_S = 2.0
STANDSTILL_S = 5.0  # of a start; the transaction of a worker that was killed is usually ended sooner
PATIENT_TRIES = 3
LOOK = "'gokamsg quarantine list' shows them all"
LONGEST_REST_S = 1.0

TopicPartition = tuple[str, int]


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
        self._silence: str | None = None  # the brokers do not answer
        self._refusal: str | None = None  # they refuse, again and again
        self._standstill: str | None = None  # a start waits for something
        self._refused = 0
        self._refused_at = -1  # how many commits there were
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
        self._backlog: deque[Polled] = deque()
        what, rest = ("skipped", "more") if on_error == "skip" else ("in quarantine", "more; " + LOOK)
        self._bad_ones = Flood(lambda line: log.warning("%s: %s", what, line), self._now, rest)
        self._connected_at = self._flushed_at = self._spared_at = self._now()

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
            self._tell(str(error))
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
        self._watch_connection()
        self._watch_refusals()
        self._watch_start()
        self._bad_ones.look()
        self._follow_membership()
        if self._unsettled:
            return  # nothing is begun before the last outcome is known
        self._assignment.step()
        self._touch_tables()
        reader = self._assignment.reader
        if not reader.idle:
            reader.poll(0.05 if reader.restoring else 0.0)
        self._keep(batches)
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

    def _poll(self) -> Mapping[TopicPartition, list[RecordBatch]]:
        if self._backlog:
            return self._poll_beside()
        if rest_s := self._transaction.rest_s:
            self._clock.sleep(min(rest_s, REST_STEP_S))
        return self._inputs.poll(self._wait_s())

    def _poll_beside(self) -> Mapping[TopicPartition, list[RecordBatch]]:
        """While there is something to handle, nothing more is polled; if that lasts, of the other partitions."""
        is_new = self._now() - min(polled.at_s for polled in self._backlog) < SLOW_S
        if is_new or sum(polled.size for polled in self._backlog) >= BACKLOG_BYTES:
            self._inputs.attend()
            return {}
        fresh = [polled for polled in self._backlog if not polled.is_held]
        if fresh:
            self._inputs.pause([polled.part for polled in fresh])
        for polled in fresh:
            polled.is_held = True
        return self._inputs.poll(0.0)

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
        self._refused = 0  # a group that moves is a reason of its own, and waits for nobody
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

    def _keep(self, batches: Mapping[TopicPartition, list[RecordBatch]]) -> None:
        now = self._now()
        for part, polled in batches.items():
            if part[1] in self._assignment.running:  # else fetched before a rebalance, and read again once it runs
                self._backlog.append(Polled(part, polled, self._inputs.position(*part), now))

    def _handle(self) -> None:
        """Handle what was polled, as long as the transaction has time."""
        self._outputs.read_clock()
        while self._backlog:
            polled = self._backlog[0]
            while polled.batches:
                last_offset = self._handle_batch(polled)
                if self._transaction.is_due:
                    self._commit_due("record {}/{}@{}".format(*polled.part, last_offset))
                    self._backlog.rotate(-1)  # no partition waits until another one is through
                    return
                if self._transaction.is_large:
                    self._transaction.commit(self._assignment)
            self._backlog.popleft()
            if polled.is_held:
                self._inputs.resume([polled.part])

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
        self._inputs.resume({polled.part for polled in self._backlog if polled.is_held} & assigned)
        self._backlog.clear()

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
            self._tell(str(error))
            return
        self._unsettled = False
        self._assignment.reload()

    @property
    def notice(self) -> str | None:
        """Why there is no progress, in a sentence; None while there is."""
        return self._silence or self._refusal or self._standstill

    def _watch_connection(self) -> None:
        """Say once that the brokers are gone, and once that they are back; the clients go on trying by themselves."""
        fatal = self._inputs.fatal()
        if fatal is not None:
            raise fatal
        now = self._now()
        if self._inputs.connected():
            self._connected_at = now
            if self._silence is not None:
                log.warning("the brokers answer again; going on")
                self._silence = None
        elif now - self._connected_at >= SILENCE_S:
            self._tell("no broker is connected")

    def _tell(self, notice: str) -> None:
        if self._silence is None:
            log.warning("%s; trying again until one answers", notice)
        self._silence = notice

    def _take_breath(self, error: Exception) -> None:
        """A transaction that fails again and again, with no other committed in between, is said and tried slower.

        Most failures pass with the next try; what lasts (a clock that a topic does not take timestamps of, a right that
        was taken away) would else be a loop at full speed that nobody hears of.
        """
        if self._refused_at != self._counters.commits:
            self._refused, self._refused_at = 0, self._counters.commits
        self._refused += 1
        if self._refused < PATIENT_TRIES:
            return
        if self._refusal is None:
            log.warning("%s; trying again", error)
        self._refusal = str(error)
        if not self._patience.hurried:
            self._clock.sleep(min(LONGEST_REST_S, 0.05 * 2 ** min(self._refused - PATIENT_TRIES, 10)))

    def _watch_refusals(self) -> None:
        if self._refusal is not None and self._refused_at != self._counters.commits:
            log.warning("transactions are committed again; going on")
            self._refusal = None

    def _watch_start(self) -> None:
        standstill = None if self._silence else self._assignment.standstill(STANDSTILL_S)
        if standstill:
            if not self._standstill:
                log.warning("%s", standstill)
            self._standstill = standstill
        elif self._standstill and self._assignment.settled:
            log.warning("every partition is at work; going on")
            self._standstill = None

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
