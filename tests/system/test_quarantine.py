"""Quarantine as a user meets it: bad messages of some keys, the others go on; mended and retried by command.

Invariants: no message of another key waits; the parked ones of a key come out in order, each once, over a kill -9, a
takeover and a rebalance in between; what a command says is what happened.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import eventually
from tests.plain_clients import plain_producer
from tests.system import fold
from tests.system.messaging import Messaging


def _produce(messaging: Messaging, sender: str, *values: bytes) -> None:
    producer = plain_producer(messaging.cluster.address)
    for value in values:
        place = fold.partition_of(sender, 8)
        producer.send("message_sent", value, sender.encode(), partition=place).get(timeout=10)
    producer.close()


def _message(sender: str, content: str) -> bytes:
    return json.dumps({"From": sender, "To": "Alice", "Content": content}).encode()


def _listed(messaging: Messaging) -> list[dict[str, object]]:
    return [json.loads(line) for line in messaging.done("quarantine", "list", "--json").stdout.splitlines()]


def _received(messaging: Messaging, sender: str) -> list[str]:
    return fold.conversations(messaging.read("message_received")).get((sender, "Alice"), [])


@pytest.mark.any_broker
def test_bad_messages_wait_for_repair_and_come_out_in_order(messaging: Messaging, seed: int) -> None:
    rng = random.Random(seed)
    worker = messaging.role("filter")
    collector = messaging.role("collector")
    messaging.running(worker, "filter")
    messaging.running(collector, "collector")
    messaging.serve()
    senders = [f"sender-{number}" for number in range(3)]
    for sender in senders:
        _produce(messaging, sender, b"{ bad", _message(sender, "one"), b"bad as well", _message(sender, "two"))
    messaging.arrives("Bob", "Alice", "not held up")
    eventually("all are listed", lambda: len(_listed(messaging)) == 12, timeout_s=20)
    assert not any(_received(messaging, sender) for sender in senders)
    status = messaging.done("status")
    assert status.stdout.count("3 keys") == 1
    assert "gokamsg quarantine list" in status.stderr

    # The worker dies, and another host takes over: what is parked stays so, and what comes stands behind it.
    worker.kill9()
    other = messaging.role("filter", state="other-host")
    messaging.running(other, "filter", timeout_s=60)
    for sender in senders:
        messaging.post(sender, "Alice", "three")
    eventually("they stand behind", lambda: len(_listed(messaging)) == 15, timeout_s=30)

    bad = [row for row in _listed(messaging) if row["error"]]
    assert [row["value"] for row in bad] == ["{ bad"] * 3, "the second bad one of a key stands behind the first"
    refused = messaging.run("quarantine", "retry", "--key", senders[0])
    assert refused.returncode == 1, str(refused)
    assert "failed again" in refused.stderr
    assert f"{bad[0]['record']}" in messaging.done("quarantine", "show", str(bad[0]["record"])).stdout

    edited = set()
    for row in bad:
        name, key = str(row["record"]), str(row["key"])
        if rng.random() < 0.5:
            messaging.done("quarantine", "drop", name)
        else:
            edited.add(key)
            messaging.done("quarantine", "edit", name, "--value", _message(key, "zero").decode())
    # Between mending and retrying, a second worker joins, and some of the parked keys move to it.
    third = messaging.role("filter", state="third-host")
    messaging.running(third, "filter", timeout_s=60)
    with ThreadPoolExecutor(len(senders)) as pool:  # three users at once
        for second in pool.map(lambda key: messaging.run("quarantine", "retry", "--key", key), senders):
            assert second.returncode == 1, f"its second bad message has to fail too: {second}"
    left = [row for row in _listed(messaging) if row["error"]]
    assert [row["value"] for row in left] == ["bad as well"] * 3
    with ThreadPoolExecutor(len(left)) as pool:
        list(pool.map(lambda row: messaging.done("quarantine", "drop", str(row["record"])), left))
    messaging.done("quarantine", "retry")
    assert _listed(messaging) == []
    for sender in senders:
        wanted = ["zero"] * (sender in edited) + ["one", "two", "three"]
        assert _received(messaging, sender) == wanted, sender
    assert "Nothing is in quarantine" in messaging.done("quarantine", "list").stderr


@pytest.mark.any_broker
def test_a_command_for_a_role_that_does_not_run_says_so_and_is_done_later(messaging: Messaging) -> None:
    worker = messaging.role("filter")
    messaging.running(worker, "filter")
    _produce(messaging, "Bob", b"bad", _message("Bob", "behind"))
    eventually("both are listed", lambda: len(_listed(messaging)) == 2, timeout_s=20)
    assert worker.terminate() == 0
    (bad,) = (row for row in _listed(messaging) if row["error"])
    late = messaging.run("quarantine", "drop", str(bad["record"]))
    assert late.returncode == 1, str(late)
    assert "no filter is running; it is done as soon as one is: gokamsg process --role filter" in late.stderr
    messaging.running(messaging.role("filter"), "filter")
    eventually("the command is done", lambda: len(_listed(messaging)) == 1, timeout_s=20)
    messaging.done("quarantine", "retry")
    assert _received(messaging, "Bob") == ["behind"]
