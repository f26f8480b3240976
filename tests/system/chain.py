"""The tutorial's chain of five roles, each Goka's or gokamsg's, on input that has one outcome.

What the roles write is compared record by record, so nothing in it may depend on who is faster:

1. Everything is sent before the first role starts, and the filter starts when blocker, translator and detector are
   through: joins and lookups are not ordered with the input.
2. All messages to the recipients of one partition come from the senders of one partition, so the order within each
   partition of message_received and detector-loop is that of message_sent.
3. Who is over the detector's limit never receives anything, and nobody else can reach it in any order of counting.

A Goka process restores a table up to the record below the partition's end, and for ever waits for it where a
transaction's marker stands there. So roles of ours whose table one of Goka's joins or looks up run at-least-once; all
others run exactly-once.

How often a table's row is written depends on the batches in which a role commits: of tables the last row of each key
is compared, of streams every record.
"""

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kafka import TopicPartition
from kafka.admin import OffsetSpec

from tests.helpers import eventually
from tests.kafka_server import MESSAGING_TOPICS, KafkaCluster
from tests.system import fold
from tests.system.goka import Goka, Line
from tests.system.messaging import ROLES, Messaging
from tests.system.tail import Tail
from tests.system.traffic import PEOPLE, WORDS

PARTITIONS = 8
TABLES = ("blocker-table", "translator-table", "collector-table", "detector-table")
STREAMS = ("translate-word", "block_user", "message_sent", "message_received", "detector-loop")
READ_BY_FILTER = ("blocker", "translator")
DETECT_MESSAGES = 20
DETECT_SHARE = 0.9
MOST_SENT = 15  # by others: with five or more received their share stays at 0.75, with less they stay below the limit
SPAM = 35

# Other ways to write a message, all of which Go's encoding/json reads. TO is the recipient.
SPELLINGS = (
    '{"from":"Someone","to":"TO","content":"lower case"}',
    '{"FROM":"A","tO":"TO","CONTENT":"any case","Other":[1,{"x":null}]}',
    ' { "To" : "TO" , "Content" : "white space\\n\\t\\b\\f and \\u00e9scapes \\ud83d\\ude42" } ',
    '{"Content":"twice","From":"A","To":"nobody","to":"TO","content":"the last one counts"}',
    '{"From":null,"To":"TO","Content":null}',
    '{"To":"TO","Content":"half of a pair: \\ud800 and \\u2028 and \\u0000 and \\u007f"}',
    '{"To":"TO","Content":""}',
    '{"To":"TO","Content":"  two  spaces  "}',
)
# The same for a message that names nobody: its recipient is the empty name.
NAMELESS = ("null", "{}", '{"From":"A","Content":"to nobody"}')

Row = tuple[int, str, bytes]
"""Partition, key, value."""


@dataclass(frozen=True)
class Outcome:
    """What is in Kafka at the end."""

    streams: dict[str, dict[int, list[tuple[str, bytes | None]]]]
    """By topic and partition, key and value of every record."""
    tables: dict[str, list[Row]]
    """By topic, the rows in the order of their keys."""

    def differences(self, other: "Outcome") -> list[str]:
        """Readable; empty when both are equal."""
        found = []
        for topic, partitions in self.streams.items():
            differing = fold.difference(partitions, other.streams[topic])
            found += [f"{topic}: partition {difference}" for difference in differing]
        for topic, rows in self.tables.items():
            mine, theirs = set(rows), set(other.tables[topic])
            found += [f"{topic}: only the first has {row}" for row in sorted(mine - theirs)[:5]]
            found += [f"{topic}: only the second has {row}" for row in sorted(theirs - mine)[:5]]
        return found


def lines(seed: int) -> list[Line]:
    """The input: topic, key, value."""
    rng = random.Random(seed)
    return [*_words(), *_blocks(rng), *_messages(rng)]


def _words() -> Iterator[Line]:
    for number, word in enumerate(WORDS):
        yield "translate-word", word, f"word<{number}>&\u2029é"
    yield "translate-word", "please", ""  # deletes the word from messages
    yield "translate-word", "lunch", "1[_]n<)-("
    yield "translate-word", "lunch", None  # ignored
    yield "translate-word", "", "nothing"  # between two spaces stands the empty word


def _blocks(rng: random.Random) -> Iterator[Line]:
    for person in rng.sample(PEOPLE, 12):
        yield "block_user", person, rng.choice(('{"Unblock":false}', "{}", "null", '{"unblock":false,"Reason":"spam"}'))
        if rng.random() < 0.7:
            yield "block_user", person, '{"Unblock":true}'
    yield "block_user", PEOPLE[0], None  # ignored


def _messages(rng: random.Random) -> Iterator[Line]:
    names: dict[int, list[str]] = defaultdict(list)
    for name in (*PEOPLE, *(f"guest {number}" for number in range(24))):
        names[fold.partition_of(name, PARTITIONS)].append(name)
    spammers = [names[partition].pop() for partition in (2, 2, 5)]
    queues = [[(sender, SPAM) for sender in spammers]]
    queues.append([(sender, rng.randrange(4, 8)) for group in names.values() for sender in group])
    senders = [sender for sender, count in itertools.chain(*queues) for _ in range(count)]
    rng.shuffle(senders)
    for number, sender in enumerate(senders):
        recipients = names[_towards(sender)]
        content = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        yield "message_sent", sender, message(sender, rng.choice(recipients), f"{content} {number}", rng.random() < 0.5)
    for group in names.values():
        sender = group[0]
        for spelling in SPELLINGS:
            yield "message_sent", sender, spelling.replace("TO", names[_towards(sender)][0])
        yield "message_sent", sender, None  # ignored
        if _towards(sender) == fold.partition_of("", PARTITIONS):
            for spelling in NAMELESS:
                yield "message_sent", sender, spelling


def message(sender: str, recipient: str, content: str, escaped: bool = False) -> str:
    """As a client would write it; `escaped` makes it ASCII."""
    return json.dumps({"From": sender, "To": recipient, "Content": content}, ensure_ascii=escaped)


def _towards(sender: str) -> int:
    """The partition that a sender's recipients lie in: another one for each partition of senders."""
    return (3 * fold.partition_of(sender, PARTITIONS) + 1) % PARTITIONS


def make_topics(cluster: KafkaCluster) -> None:
    """All topics of the service, as gokamsg or Goka would make them; returns when every partition answers.

    Tables are compacted, but not while a test runs: earlier values are looked at too. Leaders are waited for because a
    Goka process ends when a partition of its lookup table has none yet.
    """
    options = {"num_partitions": PARTITIONS}
    compacted = {**options, "configs": {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}}
    cluster.create_topics({topic: compacted if topic in TABLES else options for topic in MESSAGING_TOPICS})
    partitions = [TopicPartition(topic, number) for topic in MESSAGING_TOPICS for number in range(PARTITIONS)]
    with cluster.admin() as admin:
        eventually(
            "every partition has a leader",
            lambda: admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST)),
        )


def run(messaging: Messaging, goka: Goka, seed: int, *, of_goka: Collection[str]) -> Outcome:
    """The chain's outcome with the roles `of_goka` run by Goka and the others by gokamsg; all end with the test."""
    make_topics(messaging.cluster)
    goka.emit(messaging.cluster.address, lines(seed))
    with Tail(messaging.cluster, MESSAGING_TOPICS) as tail:
        try:
            _start(messaging, goka, [role for role in ROLES if role != "filter"], of_goka)
            tail.drained("translator", "detector", "blocker")
            _start(messaging, goka, ["filter"], of_goka)
            tail.drained("message_filter", "collector")
        except AssertionError as error:
            raise AssertionError(f"{error}\n\n{messaging.started.tails()}") from None
        tail.catch_up()
        return _outcome(tail)


def _start(messaging: Messaging, goka: Goka, roles: Collection[str], of_goka: Collection[str]) -> None:
    limits = ("detect-messages", str(DETECT_MESSAGES)), ("detect-share", str(DETECT_SHARE))
    for role in roles:
        if role in of_goka:
            goka.role(messaging, role, *(f"-{name}={value}" for name, value in limits))
    flags = [f"--{name}={value}" for name, value in limits]
    ours = {role for role in roles if role not in of_goka}
    careful = {*READ_BY_FILTER} & ours if "filter" in of_goka else set()
    if careful:
        messaging.role(*sorted(careful), options=[*flags, "--guarantee=at-least-once"])
    if ours - careful:
        messaging.role(*sorted(ours - careful), options=flags)


def _outcome(tail: Tail) -> Outcome:
    streams = {
        topic: {
            number: [(record.key, record.value) for record in records]
            for number, records in tail.by_partition(topic).items()
        }
        for topic in STREAMS
    }
    tables: dict[str, list[Row]] = {}
    for topic in TABLES:
        last = {(record.key, record.partition): record.value for record in tail.records[topic]}
        tables[topic] = sorted((number, key, value) for (key, number), value in last.items() if value is not None)
    return Outcome(streams, tables)
