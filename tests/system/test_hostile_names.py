"""Users, words and options that would do harm as a path, as a command of a shell or as SQL, to every command.

Invariants: a name that is accepted comes back as it was sent; whatever it was, no file is made for it, nothing of it is
run, and every table is as Kafka has it.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers import Completed, Processes, eventually
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer
from tests.system import fold
from tests.system.messaging import Messaging

NAMES = [
    "../../../x-planted",
    "'; drop table rows; --",
    "$(touch x-planted) `touch x-planted`; touch x-planted & | touch x-planted\nx-planted",
]
WORD = "../'$(touch${IFS}x-planted)';--"


@pytest.fixture
def messaging(embedded_cluster: KafkaCluster, run: Processes, tmp_path: Path) -> Messaging:
    embedded_cluster.clean()
    return Messaging(embedded_cluster, run, tmp_path / "there" / "deep" / "down")


def planted(directory: Path) -> list[Path]:
    """Files that exist because of a name, here or above."""
    found = [path for path in directory.rglob("*") if "planted" in path.name or "drop" in path.name]
    return found + [path for path in (Path("x-planted"), Path("/x-planted"), Path("/tmp/x-planted")) if path.exists()]


def each(run: Callable[..., Completed], *commands: Sequence[str]) -> list[Completed]:
    """Commands that have nothing to do with each other, side by side."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: run(*command), commands))


def test_no_name_reaches_a_path_a_shell_or_sql(messaging: Messaging, tmp_path: Path) -> None:
    everything = messaging.role("all")
    messaging.running(everything, "collector", "filter", "blocker", "translator", timeout_s=60)
    service = messaging.serve()
    each(messaging.done, ("translate", WORD, WORD), *(("send", name, name, f"to {name}") for name in NAMES))
    for name in NAMES:
        eventually("the feed shows it", lambda name=name: messaging.feed(name) == [f"to {name}"], timeout_s=20)  # type: ignore[misc]
    for name, feed in zip(NAMES, each(messaging.done, *(("feed", name, "--json") for name in NAMES)), strict=True):
        assert [json.loads(line)["From"] for line in feed.stdout.splitlines()] == [name]
    each(messaging.done, *(("block", name) for name in NAMES))
    blocked = {name: {"Blocked": True} for name in NAMES}
    eventually("they are blocked", lambda: messaging.table("blocker-table") == blocked)
    each(messaging.done, *(("unblock", name) for name in NAMES))
    nul = "a\0b"  # no argument can hold it, but a record's key can
    producer = plain_producer(messaging.cluster.address)
    value = json.dumps({"From": nul, "To": nul, "Content": nul}).encode()
    for key, content in ((nul, value), (NAMES[1], b"{ bad"), (NAMES[0], b"{ bad")):
        producer.send("message_sent", content, key.encode(), partition=fold.partition_of(key, 8)).get(timeout=10)
    producer.close()
    eventually("the feed shows a NUL", lambda: messaging.feed(nul) == [nul], timeout_s=20)

    ours = ("--role", "filter")  # the detector parks them too

    def parked() -> list[dict[str, object]]:
        listed = messaging.done("quarantine", "list", "--json", *ours).stdout
        return [json.loads(line) for line in listed.splitlines()]

    eventually("two are parked", lambda: len(parked()) == 2, timeout_s=20)

    def mended(record: dict[str, object]) -> None:
        messaging.done("quarantine", "list", "--key", str(record["key"]), *ours)
        messaging.done("quarantine", "edit", str(record["record"]), "--value", NAMES[2], *ours)
        retried = messaging.run("quarantine", "retry", "--key", str(record["key"]), *ours)
        assert retried.returncode == 1, retried
        messaging.done("quarantine", "drop", str(record["record"]), *ours)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mended, parked()))
    assert parked() == []
    wrong = (
        ("process", "--role", NAMES[0]),
        ("verify", "--role", NAMES[1]),
        ("quarantine", "list", "--role", NAMES[2]),
        ("quarantine", "show", NAMES[0]),
        ("quarantine", "show", NAMES[1]),
        ("quarantine", "drop", f"{NAMES[0]}/0@0"),
    )
    for refused in each(messaging.run, *wrong):
        assert refused.returncode in (1, 2), refused
        assert "Traceback" not in refused.stderr, refused

    assert service.terminate() == 0
    assert everything.terminate() == 0
    assert "agree" in messaging.done("verify").stdout
    assert planted(tmp_path) == []
