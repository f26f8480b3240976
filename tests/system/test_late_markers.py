"""A partition is taken over while its table's changelog does not know yet that the last transaction has committed.

A transaction is decided when its coordinator has written so; each partition's leader hears of it on its own, and some
late. Between the two the group's offsets are past the last message, and the last stable offset of the changelog is
before the row that this message made.

Invariant: whoever takes over reads that row before it handles the next message of its key, and says what it waits for.
"""

from pathlib import Path

from kafka import TopicPartition

from tests.helpers import Processes, eventually
from tests.system.chaos import brokers
from tests.system.fold import partition_of
from tests.system.messaging import GROUPS, Messaging

GROUP = GROUPS["detector"]
TABLE = f"{GROUP}-table"
OFFSETS = "__consumer_offsets"


def _java_hash(text: str) -> int:
    """java.lang.String.hashCode() without its sign: the partition of a group's offsets is that modulo their count."""
    total = 0
    for character in text:
        total = (31 * total + ord(character)) % 2**32
    return total & 0x7FFFFFFF


def _leaders(messaging: Messaging, topic: str) -> dict[int, int]:
    with messaging.cluster.admin() as admin:
        (found,) = admin.describe_topics([topic])
    return {part["partition_index"]: part["leader_id"] for part in found["partitions"]}


def _somebody_apart(messaging: Messaging) -> tuple[str, int]:
    """A person whose row another broker leads than the group's offsets, and the number of that broker."""
    offsets = _leaders(messaging, OFFSETS)
    group_leader = offsets[_java_hash(GROUP) % len(offsets)]
    tables = _leaders(messaging, TABLE)
    people = (f"user {number}" for number in range(100))
    return next(
        (person, leader) for person in people if (leader := tables[partition_of(person, len(tables))]) != group_leader
    )


def test_a_row_whose_commit_the_changelog_has_not_heard_of_is_there_after_a_takeover(
    libs: Path, run: Processes, tmp_path: Path
) -> None:
    with brokers.three(tmp_path / "brokers", libs) as cluster:
        messaging = Messaging(cluster.cluster, run, tmp_path)
        first = messaging.role("detector", state="host-a")
        messaging.running(first, "detector", timeout_s=60)
        person, leader = _somebody_apart(messaging)
        part = TopicPartition("message_sent", partition_of(person, 8))

        def handled() -> int:
            with messaging.cluster.admin() as admin:
                return messaging.committed(GROUP, admin).get((part.topic, part.partition), 0)

        messaging.done("send", person, "Bob", "one")
        eventually("one is counted", lambda: messaging.table(TABLE).get(person) == {"Sent": 1, "Received": 0})
        # The worker's next transaction, if it has to wait for an earlier one's marker, is not the one with "two".
        eventually("Bob is counted too", lambda: messaging.table(TABLE).get("Bob") == {"Sent": 0, "Received": 1})
        messaging.decided()
        markers = cluster.markers[leader - 1]
        markers.hold("up")
        messaging.done("send", person, "Bob", "two")
        eventually("two is handled", lambda: handled() == 2)
        assert messaging.table(TABLE)[person] == {"Sent": 1, "Received": 0}, "the changelog's leader knows already"
        assert first.terminate() == 0, first.tail()

        messaging.done("send", person, "Bob", "three")
        second = messaging.role("detector", state="host-b")
        waits = rf"what follows offset .* of {TABLE}/.* is part of a transaction that is still open"
        said = second.wait_line(f"{waits}|detector.*running", timeout_s=60)
        assert "still open" in said[0], "it is at work without the row that two made"
        markers.release(deliver=True)
        messaging.running(second, "detector", timeout_s=60)
        messaging.drained("detector", timeout_s=60)
        assert messaging.table(TABLE)[person] == {"Sent": 3, "Received": 0}
        assert second.terminate() == 0, second.tail()
