"""Through filter and collector: how long after it was produced a message is in collector-table, committed.

One thread produces on schedule, another one reads collector-table read-committed; both are this process, whose own
delays count. A row shows the message that it was written for as its last one; where a transaction had several messages
of a reader, its row counts for all of them.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks.measure import WarmUp
from benchmarks.roles import PARTITIONS
from tests.helpers import eventually
from tests.system import fold

SENT, TABLE = "message_sent", "collector-table"
WRITERS, READERS = 3, 3
GIVE_UP_S = 30.0


class Watcher:
    """When each message was first seen, by reader and number."""

    def __init__(self, address: str) -> None:
        self.seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._consumer = KafkaConsumer(bootstrap_servers=address, isolation_level="read_committed")
        partitions = [TopicPartition(TABLE, number) for number in range(PARTITIONS)]
        self._consumer.assign(partitions)
        self._consumer.seek_to_end(*partitions)
        for partition in partitions:
            self._consumer.position(partition)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _watch(self) -> None:
        while not self._stop.is_set():
            for records in self._consumer.poll(timeout_ms=100).values():
                now = time.monotonic()
                for record in records:
                    newest = int(json.loads(record.value)[-1]["Content"])
                    # What its transaction has passed over is in the row, or was in one before.
                    for number in range(newest, -1, -READERS):
                        if number in self.seen:
                            break
                        self.seen[number] = now


@contextmanager
def watched(address: str) -> Iterator[Watcher]:
    watcher = Watcher(address)
    try:
        yield watcher
    finally:
        watcher.close()


def measure(address: str, rate: float, seconds: float, warm_up: WarmUp) -> list[float]:
    """Milliseconds of each message after the warm-up. Filter and collector must be running."""
    producer = KafkaProducer(bootstrap_servers=address, acks="all")
    places = {writer: fold.partition_of(writer, PARTITIONS) for writer in (f"writer-{n}" for n in range(WRITERS))}
    sent: list[float] = []
    first: int | None = None
    with watched(address) as watcher:
        started = time.monotonic()
        while first is None or len(sent) < first + rate * seconds:
            time.sleep(max(0.0, started + len(sent) / rate - time.monotonic()))
            if first is None and warm_up.over():
                first = len(sent)
            number = len(sent)
            writer, reader = f"writer-{number % WRITERS}", f"reader-{number % READERS}"
            value = f'{{"From":"{writer}","To":"{reader}","Content":"{number}"}}'
            sent.append(time.monotonic())
            producer.send(SENT, value.encode(), writer.encode(), partition=places[writer])
        eventually("every message is in the table", lambda: len(watcher.seen) == len(sent), timeout_s=GIVE_UP_S)
    producer.close()
    return [(watcher.seen[number] - sent[number]) * 1000 for number in range(first, len(sent))]
