"""The load of the kill -9 tests: threads that use the broker as applications do, and note what they were promised.

Each worker goes on until told to stop, whatever the broker does meanwhile; what it must not see (a refusal where there
is no reason for one) it keeps in `errors`.
"""

import random
import threading
from collections import Counter, defaultdict
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from kafka.protocol.consumer import FetchRequest, OffsetFetchRequest
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)
from kafka.record import MemoryRecords

from tests.broker.wire_client import WireClient, batch, codes, produce_request
from tests.helpers import eventually

PARTITIONS = 3
GROUP, CHURN = "copy", "churn"
WAIT_S = 30.0
_RECONNECT = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200, "log_level": 0, "retry.backoff.ms": 20}


class Worker:
    """A thread that does one thing over and over."""

    def __init__(self, address: str, seed: str) -> None:
        self.address = address
        self.random = random.Random(seed)
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=seed, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end; join() waits for it."""
        self.stopping.set()

    def join(self, timeout_s: float = 60.0) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.errors.append(f"{self._thread.name} did not end within {timeout_s} s")

    def _run(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.errors.append(f"{self._thread.name}: {type(error).__name__}: {error}")

    def run(self) -> None:
        raise AssertionError("a worker has something to do")

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.address,
            **_RECONNECT,
            **{key.replace("_", "."): v for key, v in more.items()},
        }


class Persistent:
    """A connection that is made anew when it breaks; the request is then sent again, as it was."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: WireClient | None = None

    def ask(self, request: Any) -> Any:
        """The answer; waits while the transaction's end is under way (51) or an offset is unstable (88)."""

        def answer() -> Any:
            try:
                self._client = self._client or WireClient(self._address)
                found = self._client.ask(request)
            except OSError:
                self.close()
                raise
            return None if {51, 88} & set(codes(found)) else found

        return eventually(f"an answer to {request.name}", answer, timeout_s=WAIT_S)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Writer(Worker):
    """Writes 0, 1, 2, ... to one partition of "in"; `acknowledged` is what the broker said it has."""

    def __init__(self, address: str, seed: str, partition: int) -> None:
        super().__init__(address, seed)
        self.partition = partition
        self.acknowledged: list[bytes] = []

    def value(self, number: int) -> bytes:
        return f"{self.partition}-{number}".encode()


class LibraryWriter(Writer):
    """librdkafka's idempotent producer, several batches in flight."""

    def run(self) -> None:
        producer = Producer(self.settings(enable_idempotence=True, linger_ms=2))
        number = 0
        while not self.stopping.is_set():
            for _ in range(self.random.randint(1, 30)):
                producer.produce("in", self.value(number), partition=self.partition, on_delivery=self._done)
                number += 1
            producer.poll(self.random.uniform(0, 0.02))
            if self.random.random() < 0.2:
                producer.flush(WAIT_S)
        if producer.flush(WAIT_S):
            self.errors.append(f"partition {self.partition}: records were neither acknowledged nor refused")

    def _done(self, error: Any, message: Any) -> None:
        if error is None:
            self.acknowledged.append(message.value())
        else:
            self.errors.append(f"an idempotent record was refused: {error}")


class SequenceWriter(Writer):
    """An idempotent producer that speaks the protocol itself, and repeats whatever was not answered."""

    def run(self) -> None:
        broker = Persistent(self.address)
        made = broker.ask(InitProducerIdRequest(version=2, transactional_id=None, transaction_timeout_ms=-1))
        number = 0
        while not self.stopping.is_set():
            values = [self.value(number + index) for index in range(self.random.randint(1, 20))]
            records = batch(values, producer=(made.producer_id, made.producer_epoch), sequence=number)
            answer = broker.ask(produce_request("in", self.partition, records))
            assert not any(codes(answer)), answer
            assert answer.responses[0].partition_responses[0].base_offset == number
            self.acknowledged += values
            number += len(values)
            self.stopping.wait(0.01)
        broker.close()


class Copier(Worker):
    """Copies its partitions of "in" to "out" in transactions with offsets; each also puts its name into all of "pairs".

    It speaks the protocol itself: whatever was asked when the broker died is asked again, so that a transaction is
    met by the kill at every step, and what the broker does about the repetition is tested too.
    """

    def __init__(self, address: str, seed: str, name: str, partitions: list[int]) -> None:
        super().__init__(address, seed)
        self.name = name
        self.partitions = partitions
        self.committed: set[bytes] = set()
        self.aborted: set[bytes] = set()
        self.position: dict[int, int] = {}
        self._broker = Persistent(address)
        self._producer = (-1, -1)
        self._sequences: Counter[tuple[str, int]] = Counter()
        self._number = 0

    def run(self) -> None:
        self._begin_anew()
        while not self.stopping.is_set():
            self._copy(self.random.choice(self.partitions))
        self._broker.close()

    def _ask(self, request: Any) -> Any:
        answer = self._broker.ask(request)
        assert not any(codes(answer)), f"{request} was answered with {answer}"
        return answer

    def _me(self) -> dict[str, Any]:
        producer_id, epoch = self._producer
        return {"transactional_id": f"copier-{self.name}", "producer_id": producer_id, "producer_epoch": epoch}

    def _begin_anew(self) -> None:
        """As a new process under the same transactional id: whatever was open is aborted."""
        request = InitProducerIdRequest(
            version=2, transactional_id=f"copier-{self.name}", transaction_timeout_ms=60_000
        )
        made = self._ask(request)
        self._producer = (made.producer_id, made.producer_epoch)
        self._sequences.clear()
        kind = OffsetFetchRequest.OffsetFetchRequestTopic
        topics = [kind(name="in", partition_indexes=self.partitions)]
        found = self._ask(OffsetFetchRequest(version=7, group_id=GROUP, topics=topics, require_stable=True))
        stored = {part.partition_index: max(part.committed_offset, 0) for part in found.topics[0].partitions}
        assert not self.position or stored == self.position, f"{stored} is stored, {self.position} was acknowledged"
        self.position = stored

    def _read(self, partition: int) -> list[bytes]:
        kind = FetchRequest.FetchTopic
        part = kind.FetchPartition(partition=partition, fetch_offset=self.position[partition], partition_max_bytes=8192)
        answer = self._ask(
            FetchRequest(
                version=4,
                replica_id=-1,
                max_wait_ms=50,
                min_bytes=1,
                max_bytes=1 << 20,
                isolation_level=1,
                topics=[kind(topic="in", partitions=[part])],
            )
        )
        records = MemoryRecords(answer.responses[0].partitions[0].records or b"")
        values = []
        while records.has_next():
            batch = records.next_batch()
            values += [record.value for record in batch if record.offset >= self.position[partition]]
        return values

    def _copy(self, partition: int) -> None:
        values = self._read(partition)
        if not values:
            return
        self._number += 1
        name = f"{self.name}-{self._number}".encode()
        fate = self.random.choices(("commit", "abort", "abandon"), (80, 10, 10))[0]
        if fate != "commit":
            self.aborted.add(name)
        topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
        topics = [topic(name="out", partitions=[partition]), topic(name="pairs", partitions=list(range(PARTITIONS)))]
        named = {f"v3_and_below_{key}": value for key, value in self._me().items()}
        self._ask(AddPartitionsToTxnRequest(version=3, **named, v3_and_below_topics=topics))
        self._write("out", partition, values)
        for other in range(PARTITIONS):
            self._write("pairs", other, [name])
        self._ask(AddOffsetsToTxnRequest(version=3, **self._me(), group_id=GROUP))
        self._send_offset(partition, self.position[partition] + len(values))
        if fate == "abandon":
            self._begin_anew()
            return
        self._ask(EndTxnRequest(version=3, **self._me(), committed=fate == "commit"))
        if fate == "commit":
            self.committed.add(name)
            self.position[partition] += len(values)

    def _write(self, topic: str, partition: int, values: list[bytes]) -> None:
        records = batch(values, producer=self._producer, sequence=self._sequences[topic, partition], transactional=True)
        self._ask(produce_request(topic, partition, records, transactional_id=f"copier-{self.name}"))
        self._sequences[topic, partition] += len(values)

    def _send_offset(self, partition: int, offset: int) -> None:
        kind = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic
        part = kind.TxnOffsetCommitRequestPartition(partition_index=partition, committed_offset=offset)
        topics = [kind(name="in", partitions=[part])]
        self._ask(TxnOffsetCommitRequest(version=3, **self._me(), group_id=GROUP, topics=topics))


class Churner(Worker):
    """A group whose member comes and goes, and commits in between; `acknowledged` is the last commit per partition."""

    def __init__(self, address: str, seed: str) -> None:
        super().__init__(address, seed)
        self.acknowledged: dict[int, int] = defaultdict(int)
        self.rounds = 0

    def run(self) -> None:
        while not self.stopping.is_set():
            consumer = Consumer(
                self.settings(
                    group_id=CHURN,
                    auto_offset_reset="earliest",
                    enable_auto_commit=False,
                    session_timeout_ms=6_000,
                    heartbeat_interval_ms=200,
                )
            )
            consumer.subscribe(["in"])
            for _ in range(self.random.randint(2, 8)):
                self._consume(consumer)
            consumer.close()
            self.rounds += 1

    def _consume(self, consumer: Any) -> None:
        messages = [message for message in consumer.consume(100, 0.2) if message.error() is None]
        if not messages or self.stopping.is_set():
            return
        try:
            done = consumer.commit(asynchronous=False)
        except KafkaException:
            return  # not acknowledged: it may have happened, or not
        for position in done:
            if position.error is None and position.offset >= 0:
                if position.offset < self.acknowledged[position.partition]:
                    self.errors.append(f"partition {position.partition} of group {CHURN!r} was read again: {position}")
                self.acknowledged[position.partition] = position.offset
