"""How a worker's effects become durable: in one Kafka transaction, or flushed before the offsets move.

Both keep the same promise to the worker: `commit()` returns only when everything of the transaction is durable,
together with the input offsets; UncommittedError means that nothing of it will ever be visible to a read-committed
reader; UnsettledError means that this is not known, and that `recover()` has to settle it before anything else is done.
No call waits without a deadline.

Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from gokamsg.engine.clients import Making, Membership
from gokamsg.engine.cluster import GroupClient, IdempotentClient, TransactionalClient
from gokamsg.engine.output import OpenBatch
from gokamsg.errors import BrokerUnavailableError, FencedError, OutcomeUnknownError, TransactionAbortedError

TopicPartition = tuple[str, int]

INIT_TIMEOUT_S = 15.0
COMMIT_TIMEOUT_S = 15.0
"""A commit that has no answer by then is settled with a new producer."""

# Fenced: the brokers may have timed the transaction out, or our successor runs. Either way the outcome is not ours to
# tell; a process that really took our identity is found out by the consumer, whose static membership it fences too.
_UNKNOWN = (OutcomeUnknownError, FencedError, BrokerUnavailableError)


class UncommittedError(Exception):
    """The transaction is gone; its records have to be handled again."""


class UnsettledError(Exception):
    """Nobody knows yet whether the transaction was committed."""


class Delivery(Protocol):
    """One worker's producer, with its guarantee."""

    name: str

    def begin(self) -> None:
        """Open a transaction."""

    def send(self, batches: Sequence[OpenBatch]) -> None:
        """Send batches within the open transaction."""

    def commit(self, offsets: Mapping[TopicPartition, int], membership: Membership) -> Mapping[TopicPartition, int]:
        """Make everything durable. Returns the offset after the last record written, per partition written to.
        Raises UncommittedError or UnsettledError."""

    def abort(self) -> None:
        """Drop the open transaction. Raises UnsettledError."""

    def recover(self) -> None:
        """After UnsettledError: settle what was pending. Raises BrokerUnavailableError; may be tried again."""

    def partition_count(self, topic: str) -> int:
        """The number of partitions of `topic`."""

    def close(self) -> None:
        """Free the producer."""


class _Producer(Protocol):
    def partition_count(self, topic: str) -> int: ...
    def close(self, timeout_s: float) -> None: ...


P = TypeVar("P", bound=_Producer)


class _Connected(Generic[P]):
    """A producer that is made anew when an outcome has to be settled; `first` is the one that is being made already."""

    def __init__(self, start: Callable[[], Making[P]], first: Making[P]) -> None:
        self._start = start
        self._coming: Making[P] | None = first
        self._producer: P | None = None

    def recover(self) -> None:
        """See Delivery."""
        if self._producer is not None:
            old, self._producer = self._producer, None
            old.close(0.0)
        coming, self._coming = self._coming or self._start(), None
        producer = coming.result()
        try:
            self._prepare(producer)
        except BaseException:
            producer.close(0.0)
            raise
        self._producer = producer

    def partition_count(self, topic: str) -> int:
        """See Delivery."""
        return self._live().partition_count(topic)

    def close(self) -> None:
        """See Delivery."""
        if self._producer is not None:
            self._producer.close(1.0)
            self._producer = None

    def _prepare(self, producer: P) -> None:
        """Make the producer ready for its first transaction."""

    def _live(self) -> P:
        if self._producer is None:
            raise UnsettledError("the producer is not connected")
        return self._producer


class ExactlyOnce(_Connected[TransactionalClient]):
    """One Kafka transaction for emits, loop messages, table writes and input offsets (KIP-447).

    To recover, the same transactional id in a new producer fences and settles whatever the old one left.
    """

    name = "exactly-once"

    def _prepare(self, producer: TransactionalClient) -> None:
        producer.init(INIT_TIMEOUT_S)

    def begin(self) -> None:
        """See Delivery."""
        try:
            self._live().begin()
        except (TransactionAbortedError, *_UNKNOWN) as error:
            raise UnsettledError(str(error)) from error

    def send(self, batches: Sequence[OpenBatch]) -> None:
        """See Delivery."""
        with _told():
            self._live().send_many(batches)

    def commit(self, offsets: Mapping[TopicPartition, int], membership: Membership) -> Mapping[TopicPartition, int]:
        """See Delivery."""
        with _told():
            return self._live().commit(offsets, membership, COMMIT_TIMEOUT_S)

    def abort(self) -> None:
        """See Delivery."""
        try:
            self._live().abort(COMMIT_TIMEOUT_S)
        except (TransactionAbortedError, *_UNKNOWN) as error:
            raise UnsettledError(str(error)) from error


class AtLeastOnce(_Connected[IdempotentClient]):
    """Everything acknowledged first, then the offsets: after a crash in between, records are handled again.

    Part of a failed transaction may be visible already, so its outcome is never known: the tables are read again.
    """

    name = "at-least-once"

    def __init__(
        self, start: Callable[[], Making[IdempotentClient]], first: Making[IdempotentClient], consumer: GroupClient
    ) -> None:
        super().__init__(start, first)
        self._consumer = consumer

    def begin(self) -> None:
        """See Delivery: nothing to open."""

    def send(self, batches: Sequence[OpenBatch]) -> None:
        """See Delivery."""
        try:
            producer = self._live()
            for topic, partition, batch in batches:
                producer.send(topic, partition, batch)
        except (TransactionAbortedError, *_UNKNOWN) as error:
            raise UnsettledError(str(error)) from error

    def commit(self, offsets: Mapping[TopicPartition, int], membership: Membership) -> Mapping[TopicPartition, int]:
        """See Delivery."""
        try:
            ends = self._live().flush(COMMIT_TIMEOUT_S)
            self._consumer.commit(offsets, membership)
        except (TransactionAbortedError, *_UNKNOWN) as error:
            raise UnsettledError(str(error)) from error
        return ends

    def abort(self) -> None:
        """See Delivery."""
        raise UnsettledError("records sent at least once cannot be taken back")


@contextmanager
def _told() -> Iterator[None]:
    """A producer's errors in the words of this module."""
    try:
        yield
    except TransactionAbortedError as error:
        raise UncommittedError(str(error)) from error
    except _UNKNOWN as error:
        raise UnsettledError(str(error)) from error
