"""What a worker has done since its last commit: how far each input has come, and how it becomes durable or is dropped.

One at a time, opened by the first record. It is bound to the group membership that its records were assigned under, and
cut between two records when it reaches its age. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from gokamsg.engine.assignment import Assignment
from gokamsg.engine.clients import SPARED_BY_COMMIT_S, Membership, Patience
from gokamsg.engine.context import Deferral
from gokamsg.engine.guarantee import Delivery, UncommittedError, UnsettledError
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import Outputs, OutputTopic
from gokamsg.engine.partition_processor import Pace
from gokamsg.engine.stats import Counters
from gokamsg.errors import ProcessingError

TopicPartition = tuple[str, int]

QUICK_COMMIT_S = 0.01
QUICK_GATHERING_S = 0.05
LONGEST_GATHERING_S = 0.5


class Transaction:
    """See the module. After an abort or a failed commit it is closed, and `progress` tells nothing any more."""

    def __init__(
        self,
        delivery: Delivery,
        outputs: Outputs,
        *,
        changelog: OutputTopic | None,
        quarantine: OutputTopic | None,
        pace: Pace,
        deferral: Deferral,
        options: ProcessorOptions,
        counters: Counters,
        patience: Patience,
    ) -> None:
        self._delivery = delivery
        self._outputs = outputs
        self._changelog = changelog
        self._quarantine = quarantine
        self._pace = pace
        self._deferral = deferral
        self._options = options
        self._counters = counters
        self._patience = patience
        self._membership: Membership | None = None
        self._began = self._rest_until = float("-inf")
        self._bytes = 0
        self._records = 0
        self._progress: dict[TopicPartition, int] = {}

    @property
    def is_open(self) -> bool:
        """Whether anything was done since the last commit."""
        return self._membership is not None

    @property
    def is_large(self) -> bool:
        """Whether it should be committed between two batches."""
        return self._bytes >= self._options.commit_bytes

    @property
    def is_due(self) -> bool:
        """Whether it has reached its age."""
        return self._pace.now() >= self._pace.cut_at

    @property
    def rest_s(self) -> float:
        """How long the next one should not begin yet."""
        return 0.0 if self.is_open else max(0.0, self._rest_until - self._pace.now())

    @property
    def progress(self) -> Mapping[TopicPartition, int]:
        """The next offset of each input that it has records of."""
        return self._progress

    def begin(self, membership: Membership) -> None:
        """Open it for records of `membership`, unless it is open. Raises UnsettledError."""
        if self._membership is not None:
            return
        self._delivery.begin()
        self._membership = membership
        self._began = self._pace.now()
        self._pace.cut_at = self._began + self._options.commit_age_s
        self._bytes = self._records = 0
        self._progress = {}

    def advance(self, topic: str, partition: int, next_offset: int, *, records: int = 0, size: int = 0) -> None:
        """Everything of this input below `next_offset` is handled."""
        self._progress[topic, partition] = next_offset
        self._records += records
        self._bytes += size

    def check_pace(self, last: str) -> None:
        """Raises ProcessingError if what was handled `last` has outlasted the transaction timeout."""
        took = self._pace.now() - self._began
        if took > self._options.record_deadline_s:
            raise ProcessingError(
                f"{last} took {took:.1f} s, longer than the transaction timeout"
                f" allows ({self._options.record_deadline_s:.1f} s); {self._remedy}"
            )

    def commit(self, assignment: Assignment) -> None:
        """Make it durable. Raises UncommittedError or UnsettledError; then drop() or abort() has to follow."""
        membership = self._membership
        if membership is None:
            return
        self._await_deferred()
        began = self._pace.now()
        if self._changelog is not None:
            for processor in assignment.running.values():
                self._counters.table_writes += processor.write_changelog(self._changelog)
        if self._quarantine is not None:
            for processor in assignment.running.values():
                if processor.quarantine is not None:
                    processor.quarantine.write_changelog(self._quarantine)
        self._outputs.flush()
        ends = self._delivery.commit(self._progress, membership)
        self._close()
        for partition, processor in assignment.running.items():
            own, parked = (
                ends.get((output.topic, partition)) if output is not None else None
                for output in (self._changelog, self._quarantine)
            )
            processor.committed(own, parked)
        assignment.positions.update(self._progress)
        now = self._pace.now()
        self._counters.commits += 1
        self._counters.records += self._records
        self._counters.commit_ms = (now - began) * 1000
        self._rest_until = max(
            self._began + self._options.commit_interval_s,
            now + _gathering_s(commit_s=now - began, handling_s=began - self._began),
        )

    def abort(self, assignment: Assignment) -> bool:
        """Drop it here and at the brokers; False when they did not confirm that."""
        self._counters.aborts += 1
        self.drop(assignment)
        try:
            self._delivery.abort()
        except UnsettledError:
            return False
        return True

    def drop(self, assignment: Assignment) -> None:
        """Forget its effects in this process."""
        self._close()
        self._deferral.reset()
        self._outputs.discard()
        for processor in assignment.running.values():
            processor.rollback()

    def _close(self) -> None:
        self._membership = None
        self._pace.cut_at = float("inf")

    def _await_deferred(self) -> None:
        left = self._options.record_deadline_s - (self._pace.now() - self._began)
        if not self._patience.wait(self._deferral.wait, left, spared_s=SPARED_BY_COMMIT_S):
            if self._patience.hurried:
                raise UncommittedError("a deferred commit was not completed before the stop")
            raise ProcessingError(
                f"a deferred commit was not completed within {self._options.record_deadline_s:.1f} s; {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return f"raise --transaction-timeout (now {self._options.transaction_timeout_ms / 1000:g}s)"


def _gathering_s(*, commit_s: float, handling_s: float) -> float:
    """How long input is to gather after a commit.

    A commit costs the brokers the same for one record as for thousands. Where it is quick, a message that comes alone
    is through the sooner for it; where it takes long, for want of CPU or because the brokers are busy, commits in a row
    for a few records each would leave less still for everybody. Work that waits shows in longer handling: then no rest.
    """
    longest_s = min(LONGEST_GATHERING_S, max(QUICK_GATHERING_S, commit_s))
    return min(longest_s, 2 * (commit_s - handling_s - QUICK_COMMIT_S))
