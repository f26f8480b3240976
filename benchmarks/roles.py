"""What the throughput benchmark has processed: each role's topics, its input, and what must come out of it.

The same seed writes the same. What must come out is computed by tests/system/fold.py, which shares no code with
gokamsg, from what was sent (the filter) or from Kafka's own records (collector and detector).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer

from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually
from tests.kafka_server import KafkaServer
from tests.system import fold

USERS = ["Alice", "Bob", "Charlie", "Dave", "Eve", *(f"user-{number:04}" for number in range(1000))]
WORDS = [
    a + b
    for a in ("lun", "din", "wal", "pap", "tog", "gar", "riv", "sun")
    for b in ("ch", "ner", "king", "er", "ether", "den")
]
PARTITIONS = 8
STREAM = {"cleanup.policy": "delete", "retention.ms": str(7 * 86_400_000), "segment.ms": str(86_400_000)}
TABLE = {"cleanup.policy": "compact"}
Server = KafkaServer | EmbeddedServer


def remove(kafka: Server, *topics: str) -> None:
    with kafka.admin() as admin:
        if there := sorted({*admin.list_topics()} & {*topics}):
            admin.delete_topics(there)
        eventually("the topics are gone", lambda: not {*admin.list_topics()} & {*topics})


def create(kafka: Server, *topics: str, partitions: int = PARTITIONS) -> None:
    """Makes the topics anew and empty."""
    remove(kafka, *topics)
    configs = {name: TABLE if name.endswith("-table") or "changelog" in name else STREAM for name in topics}
    kafka.create_topics({name: {"num_partitions": partitions, "configs": configs[name]} for name in topics})


def produce_to(address: str) -> KafkaProducer:
    return KafkaProducer(bootstrap_servers=address, linger_ms=20, batch_size=262_144, acks="all")


def fill_filter(
    address: str, messages: int, rng: random.Random, *, bad: int = 0, bad_keys: int = 50
) -> dict[fold.Conversation, list[str]]:
    """`bad` records that are no messages lie among them, of keys of their own."""
    words = {word: word[::-1] for word in rng.sample(WORDS, 12)}
    silent = set(rng.sample(USERS, 16))
    expected: dict[fold.Conversation, list[str]] = {}

    def send(topic: str, key: str, value: str) -> None:
        producer.send(topic, value.encode(), key.encode(), partition=partitions[key])

    others = (f"bad-{number}" for number in range(bad_keys))
    partitions = {key: fold.partition_of(key, PARTITIONS) for key in (*USERS, *WORDS, *others)}
    producer = produce_to(address)
    for word, translation in words.items():
        send("translator-table", word, translation)
    for user in silent:
        send("blocker-table", user, '{"Blocked":true}')
    broken = random.Random(bad)
    before = set(broken.sample(range(messages), bad))
    for number in range(messages):
        if number in before:
            send("message_sent", f"bad-{broken.randrange(bad_keys)}", "{ not a message")
        sender, recipient = rng.sample(USERS, 2)
        content = " ".join(rng.choices(WORDS, k=5))
        send("message_sent", sender, f'{{"From":"{sender}","To":"{recipient}","Content":"{content}"}}')
        if sender not in silent:
            expected.setdefault((sender, recipient), []).append(fold.translate(content, words))
    producer.flush()
    producer.close()
    return expected


def _check_filter(address: str, _messages: int, expected: Any) -> list[str]:
    """Every message once, in its sender's order, translated, in its recipient's partition; nothing of the blocked."""
    received = fold.read(address, "message_received")
    wrong = [f"in the wrong partition: {record}" for record in fold.misplaced(received, PARTITIONS)[:3]]
    return wrong or fold.difference(expected, fold.conversations(received))


def _fill_messages(address: str, topic: str, messages: int, rng: random.Random, key: int) -> list[fold.Record]:
    """Messages keyed by their sender (0) or recipient (1)."""
    partitions = {user: fold.partition_of(user, PARTITIONS) for user in USERS}
    producer = produce_to(address)
    for _ in range(messages):
        pair = rng.sample(USERS, 2)
        content = " ".join(rng.choices(WORDS, k=5))
        value = f'{{"From":"{pair[0]}","To":"{pair[1]}","Content":"{content}"}}'
        producer.send(topic, value.encode(), pair[key].encode(), partition=partitions[pair[key]])
    producer.flush()
    producer.close()
    records = fold.read(address, topic)
    assert len(records) == messages, f"{len(records)} of {messages} messages are in {topic}"
    return records


def _fill_collector(address: str, messages: int, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    return fold.feeds(_fill_messages(address, "message_received", messages, rng, 1))


def _check_collector(address: str, _messages: int, expected: Any) -> list[str]:
    """Every user's row holds the latest five messages."""
    wrong = fold.misplaced(fold.read(address, "collector-table"), PARTITIONS)
    return [f"in the wrong partition: {record}" for record in wrong[:3]] or fold.difference(
        expected, fold.table(address, "collector-table")
    )


def _fill_detector(address: str, messages: int, rng: random.Random) -> dict[str, dict[str, int]]:
    return fold.counters(_fill_messages(address, "message_sent", messages, rng, 0))


def _check_detector(address: str, messages: int, expected: Any) -> list[str]:
    """Every user's row counts what was sent and received, each message once."""
    looped = fold.read(address, "detector-loop")
    if len(looped) != messages:
        return [f"{len(looped):,} loop messages of {messages:,}"]
    wrong = fold.misplaced([*looped, *fold.read(address, "detector-table")], PARTITIONS)
    return [f"in the wrong partition: {record}" for record in wrong[:3]] or fold.difference(
        expected, fold.table(address, "detector-table")
    )


@dataclass(frozen=True)
class Role:
    name: str
    group: str
    inputs: tuple[str, ...]
    """What the group consumes and commits."""
    filled: tuple[str, ...]
    """What lies in Kafka before the rounds."""
    outputs: tuple[str, ...]
    """Made anew for every round; the first one's growth shows how far a contender is that writes every update."""
    counts: int
    """What a message counts for."""
    fill: Callable[[str, int, random.Random], Any]
    check: Callable[[str, int, Any], list[str]]


ROLES = {
    role.name: role
    for role in (
        Role(
            "filter",
            "message_filter",
            ("message_sent",),
            ("message_sent", "blocker-table", "translator-table"),
            ("message_received",),
            1,
            fill_filter,
            _check_filter,
        ),
        Role(
            "collector",
            "collector",
            ("message_received",),
            ("message_received",),
            ("collector-table",),
            1,
            _fill_collector,
            _check_collector,
        ),
        Role(
            "detector",
            "detector",
            ("message_sent", "detector-loop"),
            ("message_sent",),
            ("detector-table", "detector-loop", "block_user"),
            2,
            _fill_detector,
            _check_detector,
        ),
    )
}


@dataclass(frozen=True)
class Work:
    """What lies in Kafka before a role's rounds, and what must come out of each."""

    role: Role
    messages: int
    expected: Any

    @classmethod
    def fill(cls, kafka: Server, role: Role, messages: int, seed: int) -> "Work":
        create(kafka, *role.filled)
        return cls(role, messages, role.fill(kafka.address, messages, random.Random(seed)))

    def verify(self, address: str, check: Callable[[str, Any], list[str]] | None = None) -> None:
        """`check`, if given, looks at what must come out where the role's own check would not find it."""
        wrong = check(address, self.expected) if check else self.role.check(address, self.messages, self.expected)
        if wrong:
            raise SystemExit(f"the output of the {self.role.name} is wrong:\n" + "\n".join(wrong))
