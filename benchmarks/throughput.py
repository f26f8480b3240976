"""Throughput of the filter, exactly-once, one process: gokamsg beside a naive kafka-python loop, in the same run.

    python -m benchmarks.throughput [--quick] [--on apache|embedded|both]

Work: 300,000 seeded messages of 1,005 users lie in message_sent, blocker-table and translator-table are filled, some
users are blocked. Each round starts one process with a new group and an empty message_received, gokamsg and the loop
taking turns on one Apache Kafka, on the embedded broker, or on one after the other. Rates are taken between 10 and
90 % of the output. What was written is compared, in every round, with an independent computation. Needs Linux, and for
Apache Kafka Java and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from benchmarks.measure import Progress, print_table, rss_mb, spread, tree
from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually, gokamsg_argv, gokamsg_env
from tests.kafka_server import KafkaServer, kafka_libs
from tests.system import fold

USERS = ["Alice", "Bob", "Charlie", "Dave", "Eve", *(f"user-{number:04}" for number in range(1000))]
WORDS = [
    a + b
    for a in ("lun", "din", "wal", "pap", "tog", "gar", "riv", "sun")
    for b in ("ch", "ner", "king", "er", "ether", "den")
]
PARTITIONS = 8
Server = KafkaServer | EmbeddedServer


@dataclass(frozen=True)
class Work:
    """What lies in Kafka before the rounds, and what must come out of each."""

    messages: int
    expected: dict[fold.Conversation, list[str]]


@dataclass(frozen=True)
class Round:
    rate: float
    client_us: float
    broker_us: float
    rss_mb: float


def fill(address: str, messages: int, seed: int) -> Work:
    """Writes tables and messages; the same seed writes the same."""
    rng = random.Random(seed)
    words = {word: word[::-1] for word in rng.sample(WORDS, 12)}
    silent = set(rng.sample(USERS, 16))
    producer = KafkaProducer(bootstrap_servers=address, linger_ms=20, batch_size=262_144, acks="all")
    expected: dict[fold.Conversation, list[str]] = {}

    def send(topic: str, key: str, value: str) -> None:
        producer.send(topic, value.encode(), key.encode(), partition=partitions[key])

    partitions = {key: fold.partition_of(key, PARTITIONS) for key in (*USERS, *WORDS)}
    for word, translation in words.items():
        send("translator-table", word, translation)
    for user in silent:
        send("blocker-table", user, '{"Blocked":true}')
    for _ in range(messages):
        sender, recipient = rng.sample(USERS, 2)
        content = " ".join(rng.choices(WORDS, k=5))
        send("message_sent", sender, f'{{"From":"{sender}","To":"{recipient}","Content":"{content}"}}')
        if sender not in silent:
            expected.setdefault((sender, recipient), []).append(fold.translate(content, words))
    producer.flush()
    producer.close()
    return Work(messages, expected)


STREAM = {"cleanup.policy": "delete", "retention.ms": str(7 * 86_400_000), "segment.ms": str(86_400_000)}
TOPICS = {
    "message_sent": STREAM,
    "message_received": STREAM,
    "blocker-table": {"cleanup.policy": "compact"},
    "translator-table": {"cleanup.policy": "compact"},
}


def create(kafka: Server, *topics: str) -> None:
    kafka.create_topics({name: {"num_partitions": PARTITIONS, "configs": TOPICS[name]} for name in topics})


def empty_output(kafka: Server) -> None:
    with kafka.admin() as admin:
        admin.delete_topics(["message_received"])
        eventually("message_received is gone", lambda: "message_received" not in admin.list_topics())
    create(kafka, "message_received")


def committed(admin: KafkaAdminClient, group: str) -> int:
    offsets = admin.list_group_offsets({group: None})[group]
    return sum(max(0, at.offset) for partition, at in offsets.items() if partition.topic == "message_sent")


def run_round(kafka: Server, work: Work, argv: list[str], group: str, log: Path) -> Round:
    """One process from an empty group to the end of message_sent; its output is compared."""
    empty_output(kafka)
    with log.open("wb") as output, kafka.admin() as admin:
        client = subprocess.Popen(argv, stdout=output, stderr=output, env=gokamsg_env(), start_new_session=True)
        progress = Progress(kafka.address, "message_received", client=client.pid, broker=kafka.pid)
        try:
            progress.watch(lambda: committed(admin, group) == work.messages, timeout_s=300)
            memory = sum(rss_mb(tree(client.pid)))
        except SystemExit:
            print(log.read_text(errors="replace")[-2000:])
            raise
        finally:
            progress.close()
            client.send_signal(signal.SIGTERM)
            client.wait(timeout=60)
    seconds, client_s, broker_s = progress.between()
    verify(kafka.address, work)
    counted = 0.8 * work.messages
    return Round(counted / seconds, client_s / counted * 1e6, broker_s / counted * 1e6, memory)


def verify(address: str, work: Work) -> None:
    """Every message once, in its sender's order, translated, in its recipient's partition; nothing of the blocked."""
    received = fold.read(address, "message_received")
    if wrong := fold.misplaced(received, PARTITIONS):
        raise SystemExit(f"in the wrong partition: {wrong[:3]}")
    if wrong_messages := fold.difference(work.expected, fold.conversations(received)):
        raise SystemExit("the output is wrong:\n" + "\n".join(wrong_messages))


def gokamsg_round(kafka: Server, work: Work, scratch: Path, number: int) -> Round:
    with kafka.admin() as admin:
        if any(group["group_id"] == "message_filter" for group in admin.list_groups()):
            admin.delete_groups(["message_filter"])
    arguments = [
        "process",
        "--role",
        "filter",
        "--brokers",
        kafka.address,
        "--state-dir",
        str(scratch / f"state-{number}"),
    ]
    return run_round(kafka, work, gokamsg_argv(*arguments), "message_filter", scratch / f"gokamsg-{number}.log")


def naive_round(kafka: Server, work: Work, scratch: Path, number: int) -> Round:
    group = f"naive-{number}"
    argv = [sys.executable, "-m", "benchmarks.naive_filter", "--brokers", kafka.address, "--group", group]
    return run_round(kafka, work, argv, group, scratch / f"naive-{number}.log")


CONTENDERS = {"gokamsg": gokamsg_round, "kafka-python loop, naive": naive_round}
BROKERS = {"apache": "Apache Kafka", "embedded": "embedded broker"}


def server_of(kind: str, directory: Path) -> Server:
    if kind == "embedded":
        return EmbeddedServer(directory)
    return KafkaServer(directory, kafka_libs(), jvm=["-Xmx512m"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="60,000 messages, one round: a check, not a measurement")
    parser.add_argument("--only", choices=list(CONTENDERS), help="one contender alone")
    parser.add_argument("--on", choices=(*BROKERS, "both"), default="apache", help="which broker it runs on")
    options = parser.parse_args()
    messages, rounds = (60_000, 1) if options.quick else (options.messages, options.rounds)
    kinds = list(BROKERS) if options.on == "both" else [options.on]
    contenders = [name for name in CONTENDERS if options.only in (None, name)]
    results: dict[tuple[str, str], list[Round]] = {(name, kind): [] for name in contenders for kind in kinds}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind in kinds:
            server = servers[kind] = server_of(kind, Path(directory, kind))
            stack.callback(server.close)
            server.start()
            create(server, *TOPICS)
            work = fill(server.address, messages, options.seed)
        for number in range(rounds):
            for (name, kind), rows in results.items():
                scratch = Path(directory, kind)
                rows.append(CONTENDERS[name](servers[kind], work, scratch, number))
                rate = f"{rows[-1].rate:,.0f} messages/s"
                print(f"round {number + 1}: {name}, {BROKERS[kind]}: {rate}, output verified", flush=True)
    emitted = sum(map(len, work.expected.values()))
    print(f"\nfilter, exactly-once, one process, {rounds} rounds, seed {options.seed}")
    print(f"{messages:,} messages in, {emitted:,} out; rates between 10 and 90 % of the output")
    print("median (lowest-highest); CPU in microseconds for each message\n")
    print_table(
        ("", "on", "messages/s", "CPU client", "CPU broker", "RSS MB"),
        [
            (
                name,
                BROKERS[kind],
                spread([row.rate for row in rows]),
                spread([row.client_us for row in rows], ".1f"),
                spread([row.broker_us for row in rows], ".1f"),
                spread([row.rss_mb for row in rows]),
            )
            for (name, kind), rows in results.items()
        ],
    )
    print()
    if len(contenders) == 2:
        for kind in kinds:
            ratios = compared(*(results[name, kind] for name in contenders))
            print(f"gokamsg is {ratios} times as fast as the loop on the {BROKERS[kind]}, round by round")
    if len(kinds) == 2:
        for name in contenders:
            ratios = compared(results[name, "embedded"], results[name, "apache"])
            print(f"{name} is {ratios} times as fast on the embedded broker as on Apache Kafka, round by round")


def compared(ours: list[Round], theirs: list[Round]) -> str:
    return spread([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)], ".2f")


if __name__ == "__main__":
    main()
