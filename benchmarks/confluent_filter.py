"""The filter as one would write it with confluent-kafka alone (librdkafka), exactly-once.

As benchmarks/naive_filter.py: tables in dictionaries, then a loop that consumes, decodes each record, sends each
result, and commits one transaction for each batch it was given.
"""

import argparse
import functools
import json
import signal

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.system import fold


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--group", required=True)
    options = parser.parse_args()
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    blocked = {user.encode() for user, row in fold.table(options.brokers, "blocker-table").items() if row["Blocked"]}
    words = {record.key: (record.value or b"").decode() for record in fold.read(options.brokers, "translator-table")}
    partition_of = functools.cache(lambda key: fold.partition_of(key, 8))
    consumer = Consumer(
        {
            "bootstrap.servers": options.brokers,
            "group.id": options.group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe(["message_sent"])
    producer = Producer(
        {
            "bootstrap.servers": options.brokers,
            "transactional.id": options.group,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.init_transactions()
    while not stopped:
        records = consumer.consume(10_000, timeout=0.1)
        if not records:
            continue
        producer.begin_transaction()
        offsets = {}
        for record in records:
            if error := record.error():
                raise SystemExit(f"consuming failed: {error}")
            offsets[record.partition()] = record.offset() + 1
            if record.key() in blocked:
                continue
            message = json.loads(record.value())
            content = " ".join(words.get(word, word) for word in message["Content"].split(" "))
            result = {"From": message["From"], "To": message["To"], "Content": content}
            value = json.dumps(result, separators=(",", ":"), ensure_ascii=False).encode()
            recipient = message["To"]
            producer.produce("message_received", value, recipient.encode(), partition=partition_of(recipient))
        producer.send_offsets_to_transaction(
            [TopicPartition("message_sent", partition, offset) for partition, offset in offsets.items()],
            consumer.consumer_group_metadata(),
        )
        producer.commit_transaction()
    consumer.close()


if __name__ == "__main__":
    main()
