"""Finished record batches into kafka-python's producer.

Its sender thread gives each batch producer id, epoch and sequence, sends it to the partition's leader and retries it;
ours only takes the place of the record-by-record front. Seams used, checked by install(): the accumulator's queues,
the sender, the transaction manager. Mended here:

- a request to a coordinator that cannot be reached is dropped by the sender when waiting for the connection raises;
  our client answers False instead, which sends it again;
- a batch that the broker finds too large is failed with its reason instead of being split behind our back;
- when a batch expired that had been sent, the producer gave up its id, asked for no other one, and never sent again;
- when a batch expires, those that were about to be sent with it are dropped, and their partitions blocked until they
  expire as well; here they fail at once;
- a refused batch (too large, invalid time) made a producer useless for all that follow: its sequence numbers were never
  seen by the broker. Now the next batch takes them.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.transaction_manager import TransactionState

from gokamsg.engine.clients.config import ClientConfig, connect
from gokamsg.engine.clients.connection import know
from gokamsg.engine.records import BatchBuilder
from gokamsg.errors import BrokerUnavailableError, GokamsgError, TopicError

BATCH_BYTES = 256 << 10
"""A good size to send a builder at: well below Kafka's default max.message.bytes of 1 MiB."""

_TOPIC_WAIT_S = 1.0
_ANSWER_WAIT_S = 4.5
_REQUEST_BYTES = 8 << 20  # of one produce request; above any batch
_RETRY_MS = 5.0
_LONGEST_RETRY_MS = 50.0
_SEAMS = ("_accumulator", "_sender", "_transaction_manager", "_metadata", "_unregister_cleanup")


_REFUSED = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidRecordError,
    kafka_errors.PolicyViolationError,
    kafka_errors.TopicAuthorizationFailedError,
)


class SentBatch:
    """A batch on its way. Any thread may wait for it."""

    __slots__ = ("_batch", "count", "partition", "topic")

    def __init__(self, topic: str, partition: int, count: int, batch: ProducerBatch) -> None:
        self.topic = topic
        self.partition = partition
        self.count = count
        self._batch = batch

    def __str__(self) -> str:
        return f"{self.count} records for {self.topic!r} partition {self.partition}"

    @property
    def done(self) -> bool:
        return bool(self._batch.produce_future.is_done)

    def wait(self, timeout_s: float) -> bool:
        """Whether there is an answer within the time, good or bad."""
        return bool(self._batch.produce_future.wait(max(0.0, timeout_s)))

    def error(self) -> Exception | None:
        """Why the batch was not written, or None; only when done."""
        future = self._batch.produce_future
        if future.failed():
            return future.exception if isinstance(future.exception, Exception) else RuntimeError("not sent")
        why = future.value[2]
        return why(0) if why is not None else None

    def base_offset(self) -> int:
        """The first record's offset; -1 when a retry found the batch written already. Only when done without error."""
        return int(self._batch.produce_future.value[0])

    def on_done(self, callback: Any) -> None:
        """Calls back without arguments, on the sender's thread, or at once when it is done."""
        self._batch.produce_future.add_both(lambda _: callback())


class BatchSender:
    """A KafkaProducer that takes finished batches. The owner thread calls; connections belong to the sender thread."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        topics: Iterable[str] = (),
        compression: int = 0,
        delivery_timeout_ms: int = 30_000,
        **settings: Any,
    ) -> None:
        """A batch that has not been acknowledged after `delivery_timeout_ms` fails, and is not sent again. Where the
        partitions of `topics` are is asked at once, so that no first batch has to wait for the answer."""
        self._config = config
        self._compression = compression
        self._known: set[str] = set()
        self._producer: KafkaProducer = connect(
            config,
            KafkaProducer,
            kafka_client=_Client,
            max_request_size=_REQUEST_BYTES,
            delivery_timeout_ms=max(delivery_timeout_ms, config.request_timeout_ms),
            max_block_ms=5_000,
            retry_backoff_ms=_RETRY_MS,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            metadata_max_age_ms=60_000,
            **settings,
        )
        if not all(hasattr(self._producer, name) for name in _SEAMS):
            raise RuntimeError("this version of kafka-python is not supported: its producer has changed; install 3.0.x")
        self._producer._sender._can_split = _never_split
        self._classify = self._producer._transaction_manager.classify_batch_error
        self._producer._transaction_manager.classify_batch_error = self._kind_of_error
        self._driven: Callable[[], bool] | None = None
        self._send_data = self._producer._sender._send_producer_data
        self._producer._sender._send_producer_data = self._send_then_advance
        self._reset = self._producer._transaction_manager.reset_producer_id
        self._producer._transaction_manager.reset_producer_id = self._renew_producer_id
        self._asked_again: tuple[Any, float] = (None, 0.0)  # a request, and since when
        self._enqueue_request = self._producer._transaction_manager._enqueue_request
        self._producer._transaction_manager._enqueue_request = self._pace_retries
        self._drained: dict[Any, list[ProducerBatch]] = {}
        self._drain = self._producer._accumulator.drain
        self._producer._accumulator.drain = self._note_drained
        self._create_requests = self._producer._sender._create_produce_requests
        self._producer._sender._create_produce_requests = self._send_drained
        know(self._producer._sender._client._manager, topics)

    def drive(self, advance: Callable[[], bool]) -> None:
        """From now on the sender's thread calls `advance` whenever it has sent what it can and no request to a
        coordinator is under way: a step taken there overtakes no batch, and nobody has to be woken between two steps.
        `advance` tells whether it took a step."""
        self._driven = advance
        self._producer._sender.wakeup()

    def _kind_of_error(self, error: Exception, batch: Any, log_start_offset: int = -1) -> Any:
        manager = self._producer._transaction_manager
        kind = self._classify(error, batch, log_start_offset=log_start_offset)
        if isinstance(error, _REFUSED):
            # Nothing of it was written, so its sequence numbers are the next batch's (one is under way at a time).
            manager.set_sequence_number(batch.topic_partition, batch.base_sequence)
            return kind if manager.is_transactional() else manager.ERROR_CLASS_RETRIABLE  # here: only this one fails
        if manager.is_transactional() or kind != manager.ERROR_CLASS_FATAL or type(error) in manager._FATAL_ERRORS:
            return kind
        return manager.ERROR_CLASS_NEEDS_EPOCH_BUMP

    def _renew_producer_id(self) -> None:
        manager = self._producer._transaction_manager
        with manager._lock:
            self._reset()
            manager._current_state = TransactionState.UNINITIALIZED  # else no other id is ever asked for

    def _pace_retries(self, handler: Any) -> None:
        """A coordinator refuses the next transaction while the end of the last one is being written, which takes
        milliseconds on one broker and tenths of a second on three busy ones. The longer it takes, the longer until it
        is asked again: by half of what has passed, for asking costs the brokers the time that they need to be done."""
        if handler.is_retry:
            now = time.monotonic()
            if handler is not self._asked_again[0]:
                self._asked_again = (handler, now)
            pause_ms = (now - self._asked_again[1]) * 1000 / 2
            self._producer._sender.config["retry_backoff_ms"] = min(_LONGEST_RETRY_MS, max(_RETRY_MS, pause_ms))
        self._enqueue_request(handler)

    def _note_drained(self, *args: Any, **settings: Any) -> dict[Any, list[ProducerBatch]]:
        self._drained = self._drain(*args, **settings)
        return self._drained

    def _send_drained(self, batches: dict[Any, list[ProducerBatch]]) -> Any:
        self._drained = {}
        return self._create_requests(batches)

    def _fail_unsent(self) -> None:
        """Once a batch has expired, the library drops what it was about to send, and holds up those partitions until
        that has expired too. They were never sent: failed now, the next ones go at once."""
        unsent, self._drained = self._drained, {}
        for batches in unsent.values():
            for batch in batches:
                error = kafka_errors.KafkaTimeoutError(
                    "it was not sent; a record before it was not acknowledged in time"
                )
                self._producer._sender._complete_batch_with_exception(batch, error)

    def _send_then_advance(self, now: float | None = None) -> float:
        timeout_ms = float(self._send_data(now))
        if self._drained:
            self._fail_unsent()
        return 0.0 if self._driven is not None and self._driven() else timeout_ms

    def partition_count(self, topic: str) -> int:
        """How many partitions the topic has; TopicError when it does not exist."""
        metadata, started = self._producer._metadata, time.monotonic()
        answered = False
        while not (found := metadata.partitions_for_topic(topic)):
            left_s = (_TOPIC_WAIT_S if answered else _ANSWER_WAIT_S) - (time.monotonic() - started)
            if left_s <= 0:
                if answered:
                    raise TopicError(f"topic {topic!r} does not exist; create it with: gokamsg topics create")
                raise BrokerUnavailableError(f"no broker tells where topic {topic!r} is, within {_ANSWER_WAIT_S:g} s")
            self._producer._sender.add_topic(topic)
            told = threading.Event()
            update = metadata.request_update()
            update.add_both(lambda _, told=told: told.set())
            self._producer._sender.wakeup()
            told.wait(left_s)
            if update.is_done and (
                update.succeeded() or isinstance(update.exception, kafka_errors.BrokerResponseError)
            ):
                answered = True
            if not metadata.partitions_for_topic(topic):
                time.sleep(0.02)  # it may have been created a moment ago: asked again for a while
        self._known.add(topic)
        return len(found)

    def put(self, topic: str, partition: int, builder: BatchBuilder) -> SentBatch:
        """Hands a builder over, to be sent at once; it must not be used again."""
        if topic not in self._known:
            self.partition_count(topic)
        tp = TopicPartition(topic, partition)
        batch = ProducerBatch(tp, _BuiltRecords(builder, self._compression))
        accumulator = self._producer._accumulator
        if accumulator._closed:
            raise GokamsgError(f"the producer is closed; nothing can be sent to topic {topic!r}")
        accumulator._appends_in_progress.increment()
        try:
            with accumulator._tp_lock(tp):
                accumulator._batches[tp].append(batch)
                accumulator._incomplete.add(batch)
        finally:
            accumulator._appends_in_progress.decrement()
        self._producer._sender.wakeup()
        return SentBatch(topic, partition, builder.count, batch)

    def connected(self) -> bool:
        """Whether any connection to a broker stands right now."""
        return any(conn.connected for conn in list(self._producer._sender._client._manager._conns.values()))

    def shut(self, timeout_s: float, *, force_s: float = 2.0) -> None:
        """Ends the sender thread; what is not sent within the time fails.

        After that it is waited for `force_s` at most: a connection that it waits for may take longer."""
        producer = self._producer
        producer._unregister_cleanup()
        producer._closed = True
        sender = producer._sender
        if timeout_s > 0:
            sender.initiate_close()
            sender.join(timeout_s)
        if sender.is_alive():
            sender.force_close()
            sender.join(force_s)


class _BuiltRecords:
    """A BatchBuilder as the accumulator, the sender and the produce request see their records."""

    __slots__ = ("_buffer", "_builder", "_compression", "_count", "_state")

    def __init__(self, builder: BatchBuilder, compression: int) -> None:
        self._builder = builder
        self._compression = compression
        self._count = builder.count
        self._state: tuple[int, int, int, bool] = (-1, -1, -1, False)
        self._buffer: bytearray | None = None

    @property
    def producer_id(self) -> int:
        return self._state[0]

    @property
    def producer_epoch(self) -> int:
        return self._state[1]

    @property
    def base_sequence(self) -> int:
        return self._state[2]

    def set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int, transactional: bool
    ) -> None:
        if self._buffer is not None:
            raise kafka_errors.IllegalStateError("a batch that was sent keeps its producer id and sequence")
        self._state = (producer_id, producer_epoch, base_sequence, transactional)

    def close(self) -> None:
        if self._buffer is None:
            producer_id, epoch, sequence, transactional = self._state
            self._buffer = self._builder.build(
                producer_id=producer_id,
                producer_epoch=epoch,
                base_sequence=sequence,
                transactional=transactional,
                compression=self._compression,
            )

    def is_full(self) -> bool:
        return True

    def next_offset(self) -> int:
        return self._count

    def size_in_bytes(self) -> int:
        return self._builder.size if self._buffer is None else len(self._buffer)

    def buffer(self) -> bytearray | None:
        return self._buffer


class _Client(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    def await_ready(self, node_id: int, timeout_ms: float = 30_000) -> bool:
        try:
            return bool(super().await_ready(node_id, timeout_ms=timeout_ms))
        except kafka_errors.KafkaError:
            time.sleep(0.02)  # refused at once: the sender would try again without a pause
            return False


def _never_split(_batch: Any, _error: Any) -> bool:
    return False
