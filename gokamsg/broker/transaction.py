"""One transactional id: its producer id and epoch, and the transaction that is open under it. Pure.

The stored form is the same structure (space "transaction", key = the transactional id). PrepareCommit and PrepareAbort
are never stored: a transaction ends in one write unit, so after a crash it is either still open or completely over.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gokamsg.broker.codes import Code

SPACE = "transaction"
LAST_EPOCH = 32766  # the epoch from which on a new producer id is given; one more is left for fencing its holder
NO_EPOCH = -1
NO_PRODUCER = -1


class TransactionState(StrEnum):
    """Kafka's names, as DescribeTransactions shows them."""

    EMPTY = "Empty"
    ONGOING = "Ongoing"
    PREPARE_COMMIT = "PrepareCommit"
    PREPARE_ABORT = "PrepareAbort"
    COMPLETE_COMMIT = "CompleteCommit"
    COMPLETE_ABORT = "CompleteAbort"


class Transaction(msgspec.Struct, kw_only=True):
    """What the coordinator knows of a transactional id."""

    id: str
    producer_id: int
    epoch: int = NO_EPOCH
    last_producer_id: int = NO_PRODUCER
    last_epoch: int = NO_EPOCH  # what the current epoch replaced at its holder's own wish; a retry says it again
    timeout_ms: int
    state: TransactionState = TransactionState.EMPTY
    partitions: set[tuple[str, int]] = msgspec.field(default_factory=set)
    groups: set[str] = msgspec.field(default_factory=set)
    start_ms: int = -1
    updated_ms: int = 0

    @property
    def ending(self) -> bool:
        """True while the end of the transaction is on its way to the disk."""
        return self.state in (TransactionState.PREPARE_COMMIT, TransactionState.PREPARE_ABORT)

    @property
    def open(self) -> bool:
        return self.state is TransactionState.ONGOING

    def check(self, producer_id: int, epoch: int) -> Code:
        """May this producer go on with its transaction?"""
        if producer_id != self.producer_id:
            return Code.INVALID_PRODUCER_ID_MAPPING
        if epoch != self.epoch:
            return Code.PRODUCER_FENCED
        return Code.CONCURRENT_TRANSACTIONS if self.ending else Code.NONE

    def check_end(self, *, commit: bool) -> Code | None:
        """None when the transaction is open and may end so; otherwise the answer, NONE for a repeated request."""
        if self.open:
            return None
        done = TransactionState.COMPLETE_COMMIT if commit else TransactionState.COMPLETE_ABORT
        return Code.NONE if self.state is done else Code.INVALID_TXN_STATE

    def check_init(self, expected: tuple[int, int] | None) -> Code:
        """May a producer take over the id? `expected` is who it says it is; None fences whoever was there."""
        if self.ending:
            return Code.CONCURRENT_TRANSACTIONS
        if expected is None or self.epoch == NO_EPOCH:
            return Code.NONE
        producer_id, epoch = expected
        if producer_id == self.producer_id:
            known = epoch == self.epoch or (epoch == self.last_epoch and not self.open)
        else:
            known = producer_id == self.last_producer_id and epoch == self.last_epoch and not self.open
        return Code.NONE if known else Code.PRODUCER_FENCED

    def is_retry(self, expected: tuple[int, int] | None) -> bool:
        """True when this InitProducerId was answered before, and the answer got lost."""
        return expected is not None and self.epoch != NO_EPOCH and expected != (self.producer_id, self.epoch)

    @property
    def exhausted(self) -> bool:
        return self.epoch >= LAST_EPOCH
