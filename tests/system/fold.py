"""What the service must have written, computed again in plain Python from Kafka's own records.

Shares no code with gokamsg: records are read with kafka-python, values with the json module, partitions with a formula
of its own. The functions below fold one topic into what another one, or a table, must hold:

    message_sent --filter--> message_received --collect--> collector-table
    message_sent --detect--> detector-table and block_user --block--> blocker-table

Two messages of different senders may overtake each other on their way through message_sent's partitions, so what
arrives is compared per sender; a feed is compared with message_received, where each recipient's order is fixed.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition

from tests.plain_clients import plain_consumer

FEED_LENGTH = 5

Conversation = tuple[str, str]
"""Sender and recipient."""


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    key: str
    value: bytes | None

    @property
    def json(self) -> Any:
        assert self.value is not None
        return json.loads(self.value)


def partition_of(key: str, count: int) -> int:
    """FNV-1a, its sum read as a signed number, the absolute value of that, modulo the partitions."""
    total = 2166136261
    for byte in key.encode("utf-8", "surrogateescape"):
        total = (total ^ byte) * 16777619 % 2**32
    signed = total - 2**32 if total >= 2**31 else total
    return abs(signed) % count


def read(address: str, topic: str, *, committed: bool = True) -> list[Record]:
    """Every record of the topic up to its end as of now, in each partition's order; by default committed ones only."""
    consumer = plain_consumer(
        address,
        isolation_level="read_committed" if committed else "read_uncommitted",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=10_000,
    )
    try:
        numbers = consumer.partitions_for_topic(topic)
        assert numbers, f"there is no topic {topic!r}"
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[Record] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, records in consumer.poll(timeout_ms=200).items():
                for record in records:
                    key = (record.key or b"").decode("utf-8", "surrogateescape")
                    found.append(Record(partition.partition, record.offset, key, record.value))
        return found
    finally:
        consumer.close()


def undecided(address: str, topics: Iterable[str]) -> dict[TopicPartition, int]:
    """The partitions with a transaction that is still open, and how many offsets lie behind its start."""
    names = tuple(topics)
    ends: list[dict[TopicPartition, int]] = []
    for level in ("read_uncommitted", "read_committed"):
        consumer = plain_consumer(address, isolation_level=level, enable_auto_commit=False)
        try:
            parts = [
                TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()
            ]
            ends.append(consumer.end_offsets(parts))
            assert ends[-1].keys() == set(parts)
        finally:
            consumer.close()
    last, stable = ends
    return {part: last[part] - stable[part] for part in last if last[part] != stable[part]}


def table(address: str, topic: str) -> dict[str, Any]:
    """The rows of a compacted topic: the last value of each key, without the deleted ones."""
    rows: dict[str, bytes | None] = {}
    for record in read(address, topic):
        rows[record.key] = record.value
    return {key: json.loads(value) for key, value in rows.items() if value is not None}


def misplaced(records: Iterable[Record], count: int = 8) -> list[Record]:
    """The records that do not lie in the partition of their key."""
    return [record for record in records if record.partition != partition_of(record.key, count)]


def conversations(records: Iterable[Record]) -> dict[Conversation, list[str]]:
    """The contents of messages by sender and recipient, in order."""
    spoken: dict[Conversation, list[str]] = defaultdict(list)
    for record in records:
        message = record.json
        spoken[message["From"], message["To"]].append(message["Content"])
    return dict(spoken)


def by_sender(records: Iterable[Record]) -> dict[str, list[tuple[str, str]]]:
    """Recipient and content of each sender's messages, in the order of their partition."""
    spoken: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        message = record.json
        spoken[message["From"]].append((message["To"], message["Content"]))
    return dict(spoken)


def translate(content: str, words: Mapping[str, str]) -> str:
    return " ".join(words.get(word, word) for word in content.split(" "))


def filtered(
    sent: Iterable[Record], *, blocked: Iterable[str] = (), words: Mapping[str, str] | None = None
) -> dict[Conversation, list[str]]:
    """What must arrive of `sent` when `blocked` and `words` hold from its beginning."""
    silent, dictionary = set(blocked), dict(words or {})
    return {
        (sender, recipient): [translate(content, dictionary) for content in contents]
        for (sender, recipient), contents in conversations(sent).items()
        if sender not in silent
    }


def feeds(received: Iterable[Record], length: int = FEED_LENGTH) -> dict[str, list[dict[str, str]]]:
    """What collector-table must hold after `received`."""
    kept: dict[str, list[dict[str, str]]] = defaultdict(list)
    for record in received:
        kept[record.key] = [*kept[record.key], record.json][-length:]
    return dict(kept)


def counters(sent: Iterable[Record]) -> dict[str, dict[str, int]]:
    """What detector-table must hold after `sent` and the loop messages it causes."""
    counted: dict[str, dict[str, int]] = defaultdict(lambda: {"Sent": 0, "Received": 0})
    for record in sent:
        message = record.json
        counted[record.key]["Sent"] += 1
        counted[message["To"]]["Received"] += 1
    return dict(counted)


def blocked_users(events: Iterable[Record]) -> dict[str, dict[str, bool]]:
    """What blocker-table must hold after the events of block_user."""
    return {record.key: {"Blocked": not record.json["Unblock"]} for record in events}


def is_prefix(part: Sequence[object], whole: Sequence[object]) -> bool:
    return list(part) == list(whole[: len(part)])


def difference(expected: Mapping[Any, Any], found: Mapping[Any, Any], *, most: int = 5) -> list[str]:
    """Readable differences of two folds; empty when they are equal. Lists are told by their lengths."""
    lines = []
    for key in sorted({*expected, *found}, key=repr):
        ours, theirs = expected.get(key), found.get(key)
        if ours != theirs:
            if isinstance(ours, list) and isinstance(theirs, list) and len(ours) != len(theirs):
                lines.append(f"{key!r}: expected {len(ours)} entries, found {len(theirs)}")
            else:
                lines.append(f"{key!r}: expected {ours!r}, found {theirs!r}")
    if len(lines) > most:
        lines = [*lines[:most], f"and {len(lines) - most} more"]
    return lines
