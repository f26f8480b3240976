"""The filter as one would write it with kafka-python alone, exactly-once: what benchmarks/throughput.py compares with.

Tables are read into dictionaries at the start. Then: poll, decode each record, send each result, and one transaction
for each poll. The settings are chosen in its favour (large polls, large batches, partitions of keys cached).
"""

import argparse
import functools
import json
import signal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

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
    blocked = {user for user, row in fold.table(options.brokers, "blocker-table").items() if row["Blocked"]}
    words = {record.key: (record.value or b"").decode() for record in fold.read(options.brokers, "translator-table")}
    partition_of = functools.cache(lambda key: fold.partition_of(key, 8))
    consumer = KafkaConsumer(
        "message_sent",
        bootstrap_servers=options.brokers,
        group_id=options.group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=10_000,
    )
    producer = KafkaProducer(
        bootstrap_servers=options.brokers,
        transactional_id=options.group,
        linger_ms=5,
        batch_size=131_072,
        retry_backoff_ms=5,
    )
    producer.init_transactions()
    while not stopped:
        polled = consumer.poll(timeout_ms=1_000)  # a join that outlasts a poll may be forgotten by kafka-python
        if not polled:
            continue
        producer.begin_transaction()
        offsets = {}
        for partition, records in polled.items():
            for record in records:
                message = json.loads(record.value)
                if record.key.decode() in blocked:
                    continue
                content = " ".join(words.get(word, word) for word in message["Content"].split(" "))
                result = {"From": message["From"], "To": message["To"], "Content": content}
                value = json.dumps(result, separators=(",", ":"), ensure_ascii=False).encode()
                recipient = message["To"]
                producer.send("message_received", value, recipient.encode(), partition=partition_of(recipient))
            offsets[TopicPartition(*partition)] = OffsetAndMetadata(records[-1].offset + 1, "", -1)
        producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
        producer.commit_transaction()
    consumer.close()
    producer.close()


if __name__ == "__main__":
    main()
