"""One client of benchmarks/broker.py: a process that does one piece of work and prints its figures as JSON.

    python -m benchmarks.broker_clients LIBRARY WORK BROKERS TOPIC COUNT

Work is produce (COUNT records), consume (COUNT records from the beginning) or transact (COUNT transactions of
TRANSACTION records and an offset each). The clock starts when the client is connected. `sum` adds up the checksums of
what was written or read, so that a record that is lost, doubled or damaged shows.
"""

import argparse
import json
import random
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import confluent_kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

PARTITIONS = 4
RECORD_BYTES = 100
TRANSACTION = 10
BATCH = 1_000
"""Records that confluent-kafka is handed at once: one by one, its own client is slower than the broker."""
GROUP = "transactions"
WAIT_S = 120.0
CYCLE = 1009  # different records, sent in turn; a prime, so that no partition gets only some of them

RECORDS = [random.Random(number).randbytes(RECORD_BYTES) for number in range(CYCLE)]


def expected_sum(count: int) -> int:
    """The sum that `count` records must have."""
    rounds, rest = divmod(count, CYCLE)
    sums = [zlib.crc32(record) for record in RECORDS]
    return rounds * sum(sums) + sum(sums[:rest])


class Clock:
    """Time and CPU of this process since it was made."""

    def __init__(self) -> None:
        self._started, self._cpu = time.monotonic(), _cpu_s()

    def read(self, **figures: int) -> dict[str, float]:
        return {"seconds": time.monotonic() - self._started, "cpu_s": _cpu_s() - self._cpu, **figures}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def records(count: int) -> Iterator[tuple[int, bytes]]:
    """Partition and value of each record."""
    for number in range(count):
        yield number % PARTITIONS, RECORDS[number % CYCLE]


# ---- kafka-python


def python_produce(brokers: str, topic: str, count: int) -> dict[str, float]:
    producer = KafkaProducer(bootstrap_servers=brokers, linger_ms=5, batch_size=131_072)
    producer.partitions_for(topic)
    clock = Clock()
    sent = [producer.send(topic, value, partition=partition) for partition, value in records(count)]
    producer.flush()
    figures = clock.read()
    failed = [future.exception for future in sent if not future.succeeded()]
    if failed:
        raise SystemExit(f"{len(failed)} records were not acknowledged: {failed[0]}")
    producer.close()
    return figures


def python_consume(brokers: str, topic: str, count: int) -> dict[str, float]:
    consumer = KafkaConsumer(
        bootstrap_servers=brokers, enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=10_000
    )
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    found = total = 0
    clock = Clock()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for batch in consumer.poll(timeout_ms=1000).values():
            found += len(batch)
            for record in batch:
                total += zlib.crc32(record.value)
    figures = clock.read(count=found, sum=total)
    consumer.close()
    return figures


def python_transact(brokers: str, topic: str, count: int) -> dict[str, float]:
    producer = KafkaProducer(bootstrap_servers=brokers, transactional_id=topic, retry_backoff_ms=5)
    producer.init_transactions()
    group = ConsumerGroupMetadata(GROUP, -1, "", None)
    work = records(count * TRANSACTION)
    clock = Clock()
    for number in range(1, count + 1):
        producer.begin_transaction()
        for _ in range(TRANSACTION):
            partition, value = next(work)
            producer.send(topic, value, partition=partition)
        producer.send_offsets_to_transaction({TopicPartition(topic, 0): OffsetAndMetadata(number, "", -1)}, group)
        producer.commit_transaction()
    figures = clock.read()
    producer.close()
    return figures


# ---- confluent-kafka


def confluent_produce(brokers: str, topic: str, count: int) -> dict[str, float]:
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": brokers,
            "acks": "all",
            "linger.ms": 5,
            "queue.buffering.max.messages": 500_000,
            "batch.num.messages": 10_000,
        }
    )
    producer.list_topics(topic, WAIT_S)
    clock = Clock()
    work = records(count)
    while chunk := list(islice(work, PARTITIONS * BATCH)):
        for number in range(PARTITIONS):  # it takes no notice of a partition that stands with a message
            messages = [{"value": value} for partition, value in chunk if partition == number]
            while producer.produce_batch(topic, messages, partition=number) < len(messages):  # its queue is full
                messages = [message for message in messages if message.pop("_error", None)]
                producer.poll(0.01)
    if unsent := producer.flush(WAIT_S):
        raise SystemExit(f"{unsent} records were not acknowledged")
    return clock.read()


def confluent_consume(brokers: str, topic: str, count: int) -> dict[str, float]:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": brokers, "group.id": "unused", "enable.auto.commit": False}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found = total = 0
    clock = Clock()
    deadline = time.monotonic() + WAIT_S
    while found < count and time.monotonic() < deadline:
        for message in consumer.consume(10_000, 0.1):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            found += 1
            total += zlib.crc32(message.value())
    figures = clock.read()
    surplus = len(consumer.consume(10_000, 0.3))
    consumer.close()
    return figures | {"count": found + surplus, "sum": total}


def confluent_transact(brokers: str, topic: str, count: int) -> dict[str, float]:
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "transactional.id": topic, "linger.ms": 0})
    producer.init_transactions(WAIT_S)
    member = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": GROUP})
    group = member.consumer_group_metadata()
    work = records(count * TRANSACTION)
    clock = Clock()
    for number in range(1, count + 1):
        producer.begin_transaction()
        for _ in range(TRANSACTION):
            partition, value = next(work)
            producer.produce(topic, value, partition=partition)
        producer.send_offsets_to_transaction([confluent_kafka.TopicPartition(topic, 0, number)], group, WAIT_S)
        producer.commit_transaction(WAIT_S)
    figures = clock.read()
    member.close()
    return figures


Work = Callable[[str, str, int], dict[str, Any]]
WORK: dict[tuple[str, str], Work] = {
    ("kafka-python", "produce"): python_produce,
    ("kafka-python", "consume"): python_consume,
    ("kafka-python", "transact"): python_transact,
    ("confluent-kafka", "produce"): confluent_produce,
    ("confluent-kafka", "consume"): confluent_consume,
    ("confluent-kafka", "transact"): confluent_transact,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("work")
    parser.add_argument("brokers")
    parser.add_argument("topic")
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    print(json.dumps(WORK[options.library, options.work](options.brokers, options.topic, options.count)))


if __name__ == "__main__":
    main()
