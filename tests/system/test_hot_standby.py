"""Hot standby with much state: an instance that is killed is replaced without a restore.

Invariants: after kill -9 of one of two collectors, whose tables hold a million rows, the other one is at work in all
partitions within 3 s of the session timeout; no row is lost.
"""

import json

import pytest
from confluent_kafka import Producer

from tests.helpers import Process, eventually, say, slowness
from tests.kafka_server import KafkaCluster
from tests.system.fold import partition_of
from tests.system.messaging import Messaging
from tests.system.writers import Trickle

ROWS = 1_000_000
SESSION_TIMEOUT_S = 10.0
WITHIN_S = 3.0


def _status(process: Process) -> dict[str, object]:
    """The newest status that the worker told, empty if there is none."""
    lines = [line for line in process.stdout().splitlines() if '"partitions"' in line]
    return dict(json.loads(lines[-1])) if lines else {}


def _produce(cluster: KafkaCluster, rows: int) -> None:
    """One message to each of so many people."""
    producer = Producer(
        {"bootstrap.servers": cluster.address, "linger.ms": 20, "queue.buffering.max.messages": 200_000}
    )
    failed: list[object] = []
    for number in range(rows):
        name = f"user {number:07}"
        value = json.dumps({"From": "Bob", "To": name, "Content": "Hey, how are you doing?"}, separators=(",", ":"))
        while True:
            try:
                producer.produce(
                    "message_received",
                    value,
                    name,
                    partition_of(name, 8),
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    assert not failed, failed[:3]


@pytest.mark.slow
def test_a_killed_instance_is_replaced_without_a_restore(messaging: Messaging) -> None:
    first = messaging.role("collector", options=("--hot-standby",), state="one")
    messaging.running(first, "collector")
    _produce(messaging.cluster, ROWS)
    with messaging.cluster.admin() as admin:

        def collected() -> bool:
            return sum(messaging.committed("collector", admin).values()) >= ROWS

        eventually("all messages are collected", collected, timeout_s=120, interval_s=0.5)
    second = messaging.role("collector", options=("--hot-standby", "--json"), state="two")

    def stands_by() -> bool:
        status = _status(second)
        return len(status.get("standby", ())) == len(status["partitions"]) == 4 and not status["table_lag"]

    eventually("the second one has its half, and follows the other", stands_by, timeout_s=120, interval_s=0.5)
    with Trickle(messaging.cluster):
        messaging.commits_again("collector", every_partition=True, timeout_s=30)
        first.kill9()
        seconds = messaging.commits_again("collector", every_partition=True, timeout_s=60)
        slow = slowness()
    figures = (
        f"{ROWS:,} rows: at work in all partitions {seconds:.1f} s after the kill; {slow:.1f} times slower than idle"
    )
    say(figures)
    assert seconds <= SESSION_TIMEOUT_S + WITHIN_S * slow, figures
    assert len(messaging.table("collector-table")) == ROWS + 8
