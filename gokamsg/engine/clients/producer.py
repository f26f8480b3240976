"""The producers: transactional for exactly-once, idempotent for at-least-once and emitters.

TransactionalProducer, one owner thread:

1. commit() returns only when every batch was acknowledged, the offsets were accepted for the membership given, and the
   transaction is committed; it then tells where each partition's last record lies.
2. TransactionAbortedError: it did not commit. Call abort(), seek back, begin again. OutcomeUnknownError: the commit was
   asked for and not answered. FencedError: another owner has the transactional id. After these two only a new producer
   helps: it settles the transaction, from its construction on; init() waits for that.
3. No call waits longer than its timeout, nor than its owner's patience.

IdempotentProducer: any thread may send; flush() tells what was not written.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionState
from kafka.structs import ConsumerGroupMetadata

from gokamsg.engine.clients.committing import Commit, RefusedError
from gokamsg.engine.clients.config import ClientConfig
from gokamsg.engine.clients.consumer import Membership
from gokamsg.engine.clients.patience import SPARED_BY_ABORT_S, SPARED_BY_COMMIT_S, Patience
from gokamsg.engine.clients.reader import TopicPart
from gokamsg.engine.clients.sending import BatchSender, SentBatch
from gokamsg.engine.records import BatchBuilder
from gokamsg.errors import BrokerUnavailableError, FencedError, OutcomeUnknownError, TransactionAbortedError

_FENCED = (
    kafka_errors.ProducerFencedError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.FencedInstanceIdError,
)


_DELIVERY_TIMEOUT_MS = 120_000  # commit() has its own deadline, and the broker the transaction's


class TransactionalProducer:
    """See the module."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        transactional_id: str,
        transaction_timeout_ms: int = 10_000,
        topics: Iterable[str] = (),
        compression: int = 0,
        patience: Patience | None = None,
    ) -> None:
        self._id = transactional_id
        self._patience = patience or Patience()
        self._sender = BatchSender(
            config,
            topics=topics,
            compression=compression,
            delivery_timeout_ms=_DELIVERY_TIMEOUT_MS,
            transactional_id=transactional_id,
            transaction_timeout_ms=transaction_timeout_ms,
        )
        self._manager = self._sender._producer._transaction_manager
        # Told by the broker that its epoch is gone, the library would fetch a new one by itself, which fences whoever
        # took over. Fatal instead: the worker decides, with its group membership in view.
        self._manager._supports_epoch_bump = _no_epoch_bump
        self._sent: list[SentBatch] = []
        self._identity: tuple[int, int] = (-1, -1)
        self._initialized = self._manager.initialize_transactions()
        self._wake()

    def init(self, timeout_s: float = 30.0) -> None:
        """Waits until any other owner of the id is fenced, and what it left open settled; before the first begin()."""
        result = self._initialized
        with self._explained("initialize", FencedError):
            if not self._patience.wait(lambda s: result.wait(s * 1000), timeout_s):
                raise BrokerUnavailableError(
                    f"transactional id {self._id!r} was not initialized {self._patience.limit(timeout_s)}; "
                    "is the cluster's transaction coordinator available?"
                )

    def begin(self) -> None:
        with self._explained("begin", FencedError), self._manager._lock:
            self._manager.begin_transaction()
            # Offsets that were refused stay there over the abort, and would go with the next transaction's: back then
            # go partitions that others own by now.
            self._manager._pending_txn_offset_commits.clear()
        self._sent = []
        self._identity = self._now()

    def send(self, topic: str, partition: int, builder: BatchBuilder) -> SentBatch:
        """Sends the builder's records as one batch of the open transaction, at once."""
        return self.send_many([(topic, partition, builder)])[0]

    def send_many(self, batches: Sequence[tuple[str, int, BatchBuilder]]) -> list[SentBatch]:
        """As send, for several: their partitions join the transaction in one request instead of one after another."""
        sent = []
        with self._explained("send", TransactionAbortedError):
            with self._manager._lock:
                for topic, partition, _ in batches:
                    self._manager.maybe_add_partition_to_transaction(TopicPartition(topic, partition))
            for topic, partition, builder in batches:
                sent.append(self._sender.put(topic, partition, builder))
                self._sent.append(sent[-1])
        return sent

    def commit(
        self, offsets: Mapping[TopicPart, int], membership: Membership | None, timeout_s: float
    ) -> dict[TopicPart, int]:
        """Commits what was sent and the offsets; see the module for what it raises.

        Returns the offset after the last record written, per partition (the marker that follows takes one more);
        a partition is left out when a retry hid where its records lie.
        """
        add_offsets = self._offsets(offsets, membership)
        wrote = bool(self._sent) or add_offsets is not None
        commit = Commit(self._sent, add_offsets, lambda: self._end(wrote))
        self._sender.drive(commit.advance)
        self._patience.wait(
            # A fatal state of the library ends no step.
            lambda s: commit.done.wait(s) or self._manager.has_fatal_error(),
            timeout_s,
            spared_s=SPARED_BY_COMMIT_S,
        )
        commit.give_up()
        with self._explained("commit", OutcomeUnknownError if commit.asked else TransactionAbortedError):
            self._judge(commit, timeout_s)
        sent, self._sent = self._sent, []
        return _ends(sent)

    def abort(self, timeout_s: float = 10.0) -> None:
        """Ends the open transaction without a trace. FencedError or OutcomeUnknownError: make a new producer."""
        self._sent = []
        with self._explained("abort", OutcomeUnknownError):
            if self._manager._current_state == TransactionState.READY:
                return  # no transaction is open
            result = self._manager.begin_abort()
            self._wake()
            if not self._patience.wait(lambda s: result.wait(s * 1000), timeout_s, spared_s=SPARED_BY_ABORT_S):
                raise OutcomeUnknownError(f"{self._name}: the abort was not answered {self._patience.limit(timeout_s)}")

    def partition_count(self, topic: str) -> int:
        """How many partitions the topic has; TopicError when it does not exist."""
        return self._sender.partition_count(topic)

    def connected(self) -> bool:
        return self._sender.connected()

    def close(self, timeout_s: float = 2.0) -> None:
        """An open transaction is left to its timeout, or to the next init() of the same id."""
        self._sender.shut(self._patience.left_s(timeout_s), force_s=self._patience.left_s(2.0))

    @property
    def _name(self) -> str:
        return f"transaction of {self._id!r}"

    def _now(self) -> tuple[int, int]:
        current = self._manager.producer_id_and_epoch
        return current.producer_id, current.epoch

    def _wake(self) -> None:
        self._sender._producer._sender.wakeup()

    def _offsets(self, offsets: Mapping[TopicPart, int], membership: Membership | None) -> Callable[[], Any] | None:
        if not offsets or membership is None:
            return None
        group = ConsumerGroupMetadata(
            group_id=membership.group,
            generation_id=membership.generation_id,
            member_id=membership.member_id,
            group_instance_id=membership.instance_id,
        )
        wanted = {TopicPartition(*part): OffsetAndMetadata(offset, "", -1) for part, offset in offsets.items()}
        return lambda: self._manager.send_offsets_to_transaction(wanted, group)

    def _end(self, wrote: bool) -> Any:
        # Asked to commit a transaction that it does not consider open, the library answers success and does nothing.
        manager = self._manager
        with manager._lock:
            if self._now() != self._identity or manager._current_state != TransactionState.IN_TRANSACTION:
                raise TransactionAbortedError(f"{self._name}: the broker ended it ({manager.last_error})")
            if wrote and not manager._transaction_started:
                raise TransactionAbortedError(f"{self._name}: the broker does not know it")
            return manager.begin_commit()

    def _judge(self, commit: Commit, timeout_s: float) -> None:
        failure = commit.failure
        if isinstance(failure, RefusedError):
            cause = failure.__cause__
            kind = FencedError if isinstance(cause, _FENCED) else TransactionAbortedError
            raise kind(f"{self._name}: {failure} were refused: {cause or type(cause).__name__}") from cause
        if failure is not None:
            raise failure
        if not commit.done.is_set():
            if (error := self._manager.last_error) is not None and self._manager.has_fatal_error():
                raise error
            if commit.asked:
                raise OutcomeUnknownError(
                    f"{self._name}: the commit was not answered {self._patience.limit(timeout_s)}"
                )
            raise TransactionAbortedError(f"{self._name}: {commit.missing()} {self._patience.limit(timeout_s)}")
        if self._now() != self._identity or self._manager._current_state != TransactionState.READY:
            raise OutcomeUnknownError(f"{self._name}: the producer was replaced while it committed")

    @contextmanager
    def _explained(self, what: str, otherwise: Callable[[str], Exception]) -> Iterator[None]:
        try:
            yield
        except kafka_errors.KafkaError as error:
            cause = self._manager.last_error or error
            message = f"{self._name} cannot {what}: {str(cause) or type(cause).__name__}"
            if isinstance(cause, _FENCED) and otherwise is not OutcomeUnknownError:
                raise FencedError(f"{message}; another process uses this id") from error
            raise otherwise(message) from error


class IdempotentProducer:
    """Each batch once and in order; no transaction."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        topics: Iterable[str] = (),
        compression: int = 0,
        patience: Patience | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._sender = BatchSender(config, topics=topics, compression=compression, enable_idempotence=True)
        self._sent: list[SentBatch] = []

    def send(self, topic: str, partition: int, builder: BatchBuilder) -> SentBatch:
        """Sends the builder's records as one batch, at once."""
        sent = self._sender.put(topic, partition, builder)
        self._sent.append(sent)
        return sent

    def flush(self, timeout_s: float) -> dict[TopicPart, int]:
        """Waits for everything sent since the last flush.

        Returns the offset after the last record, per partition. BrokerUnavailableError when any batch was refused or
        not acknowledged in time: it may have been written, or may be later.
        """
        deadline = time.monotonic() + timeout_s
        sent, self._sent = self._sent, []
        written: dict[TopicPart, int] = {}
        for batch in sent:
            where = f"{batch.count} records for topic {batch.topic!r} partition {batch.partition}"
            left_s = deadline - time.monotonic()
            if not self._patience.wait(batch.wait, left_s, spared_s=SPARED_BY_COMMIT_S):
                raise BrokerUnavailableError(f"{where} were not acknowledged {self._patience.limit(timeout_s)}")
            if error := batch.error():
                raise BrokerUnavailableError(f"{where} were not written: {error or type(error).__name__}") from error
            written[batch.topic, batch.partition] = batch.base_offset() + batch.count
        return written

    def partition_count(self, topic: str) -> int:
        """How many partitions the topic has; TopicError when it does not exist."""
        return self._sender.partition_count(topic)

    def connected(self) -> bool:
        return self._sender.connected()

    def close(self, timeout_s: float = 2.0) -> None:
        self._sender.shut(self._patience.left_s(timeout_s), force_s=self._patience.left_s(2.0))


def _ends(sent: Sequence[SentBatch]) -> dict[TopicPart, int]:
    written: dict[TopicPart, int] = {}
    unknown: set[TopicPart] = set()
    for batch in sent:
        part = (batch.topic, batch.partition)
        if batch.base_offset() < 0:
            unknown.add(part)
        written[part] = batch.base_offset() + batch.count
    return {part: offset for part, offset in written.items() if part not in unknown}


def _no_epoch_bump() -> bool:
    return False
