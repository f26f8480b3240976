"""How soon a collector with a large table is at work: gokamsg beside Goka, cold and with its state on disk.

    python -m benchmarks.restore [--rows 500000] [--rounds 3] [--quick]

Work: collector-table holds 500,000 rows of 331 bytes in 8 partitions, and one message waits in each partition of
message_received. In every round each contender is started twice, gokamsg and Goka taking turns: cold, with an empty
state directory, and again with what that left on disk and the next eight messages. Timed is from the start of the
process until its first row is in collector-table, and until those of all partitions are. Each row must be the
restored one with the message added, so a row that was not restored is found out.

gokamsg runs exactly-once, Goka (tests/goka) with its defaults; it is left out where Go is not installed. Needs Linux,
and Java and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from benchmarks.measure import cpu_s, print_table, rss_mb, spread, tree
from benchmarks.roles import PARTITIONS, create, produce_to
from tests.helpers import Process, eventually, gokamsg_argv, gokamsg_env
from tests.kafka_server import KafkaServer, kafka_libs
from tests.system import fold, goka

ROW_BYTES = 331
INPUT, TABLE, GROUP = "message_received", "collector-table", "collector"
GIVE_UP_S = 300.0


def message(sender: str, reader: str, content: str) -> dict[str, str]:
    return {"From": sender, "To": reader, "Content": content}


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def first_row(reader: str) -> list[dict[str, str]]:
    """Five messages of 331 bytes together."""
    row = [message("w", reader, f"message {number}") for number in range(fold.FEED_LENGTH)]
    row[-1]["Content"] += "." * (ROW_BYTES - len(encoded(row)))
    return row


@dataclass
class Table:
    """What lies in Kafka: readers by partition, and the rows that have changed since they were filled."""

    readers: dict[int, list[str]]
    changed: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def row(self, reader: str) -> list[dict[str, str]]:
        return self.changed.get(reader) or first_row(reader)

    def add(self, reader: str, said: dict[str, str]) -> None:
        self.changed[reader] = [*self.row(reader), said][-fold.FEED_LENGTH :]


def fill(kafka: KafkaServer, rows: int) -> Table:
    create(kafka, INPUT, TABLE)
    readers: dict[int, list[str]] = {number: [] for number in range(PARTITIONS)}
    producer = produce_to(kafka.address)
    for number in range(rows):
        reader = f"reader-{number:06}"
        partition = fold.partition_of(reader, PARTITIONS)
        readers[partition].append(reader)
        producer.send(TABLE, encoded(first_row(reader)), reader.encode(), partition=partition)
    producer.flush()
    producer.close()
    # A table without offsets would be one whose group is lost.
    consumer = KafkaConsumer(bootstrap_servers=kafka.address, group_id=GROUP, enable_auto_commit=False)
    consumer.commit({TopicPartition(INPUT, number): OffsetAndMetadata(0, "", -1) for number in range(PARTITIONS)})
    consumer.close()
    return Table(readers)


@dataclass(frozen=True)
class Start:
    first_s: float
    all_s: float
    cpu_s: float
    rss_mb: float


def start_once(
    kafka: KafkaServer, table: Table, argv: list[str], log_dir: Path, name: str, rng: random.Random
) -> Start:
    """One start of a contender with a message waiting in each partition; its rows are compared."""
    with kafka.admin() as admin:
        eventually(
            "the last member has left",
            lambda: not admin.describe_groups([GROUP])[GROUP]["members"],
            timeout_s=60,
            interval_s=0.1,
        )
    chosen = {number: rng.sample(readers, 2) for number, readers in table.readers.items()}
    producer = produce_to(kafka.address)
    for number, (reader, other) in chosen.items():
        said = message("writer", reader, name)
        producer.send(INPUT, encoded(said), reader.encode(), partition=number)
        table.add(reader, said)
        # Goka waits for the record below the table's end, and a transaction's marker is none: the last one is a row.
        producer.send(TABLE, encoded(table.row(other)), other.encode(), partition=number)
    producer.flush()
    producer.close()
    partitions = [TopicPartition(TABLE, number) for number in range(PARTITIONS)]
    consumer = KafkaConsumer(bootstrap_servers=kafka.address, isolation_level="read_committed")
    consumer.assign(partitions)
    before = consumer.end_offsets(partitions)
    process = Process(argv, log_dir, name=name, env=gokamsg_env())
    started, first_s = process.started_at, 0.0
    try:
        while True:
            ends = consumer.end_offsets(partitions)
            written = [partition for partition in partitions if ends[partition] > before[partition]]
            now = time.monotonic()
            if written and not first_s:
                first_s = now - started
            if len(written) == PARTITIONS:
                break
            if not process.running or now > started + GIVE_UP_S:
                raise SystemExit(f"{len(written)} of {PARTITIONS} partitions came to work\n{process.tail()}")
            time.sleep(0.002)
        pids = tree(process.pid)
        figures = Start(first_s, now - started, cpu_s(pids), sum(rss_mb(pids)))
        verify(consumer, before, {pair[0]: table.row(pair[0]) for pair in chosen.values()})
        process.terminate(60)
    finally:
        process.close()
        consumer.close()
    return figures


def verify(
    consumer: KafkaConsumer, before: dict[TopicPartition, int], expected: dict[str, list[dict[str, str]]]
) -> None:
    """What was written since is the expected row of each reader and nothing else."""
    for partition, offset in before.items():
        consumer.seek(partition, offset)
    found: dict[str, Any] = {}
    deadline = time.monotonic() + 30
    while len(found) < len(expected) and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=100).values():
            found |= {record.key.decode(): json.loads(record.value) for record in records}
    if wrong := fold.difference(expected, found):
        raise SystemExit("the rows are wrong:\n" + "\n".join(wrong))


def _gokamsg(address: str, state: Path) -> list[str]:
    return gokamsg_argv("process", "--role", "collector", "--brokers", address, "--state-dir", str(state))


def _goka(address: str, state: Path) -> list[str]:
    state.mkdir(parents=True, exist_ok=True)
    return [str(goka.program()), "process", "-role", "collector", "-brokers", address, "-state", str(state)]


Command = Callable[[str, Path], list[str]]


def contenders() -> Iterator[tuple[str, Command]]:
    yield "gokamsg", _gokamsg
    try:
        goka.program()
    except goka.GokaUnavailableError as error:
        print(f"Goka is left out: {error}", flush=True)
    else:
        yield "Goka", _goka


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, one round: a check, not a measurement")
    options = parser.parse_args()
    rows, rounds = (20_000, 1) if options.quick else (options.rows, options.rounds)
    rng = random.Random(options.seed)
    commands = dict(contenders())
    results: dict[tuple[str, str], list[Start]] = {(name, how): [] for name in commands for how in ("cold", "state")}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        kafka = KafkaServer(Path(directory, "kafka"), kafka_libs(), jvm=["-Xmx512m"])
        stack.callback(kafka.close)
        kafka.start()
        table = fill(kafka, rows)
        if not options.quick:
            fold.read(kafka.address, TABLE)  # a fresh JVM is slow
        for number in range(rounds):
            for (name, how), starts in results.items():
                argv = commands[name](kafka.address, Path(directory, f"{name}-{number}"))
                label = f"{name}-{how}-{number}"
                starts.append(start_once(kafka, table, argv, Path(directory, "logs"), label, rng))
                seconds = f"{starts[-1].first_s:.2f} s, rows verified"
                print(f"round {number + 1}: {name}, {how}: {seconds}", flush=True)
    print(f"\n{rows:,} rows of {ROW_BYTES} bytes, {rounds} rounds; seconds from the process's start")
    print("median (lowest-highest); CPU until all partitions are at work\n")
    names = {"cold": "cold", "state": "with state on disk"}
    print_table(
        ("", "first row", "all partitions", "CPU s", "RSS MB"),
        [
            (
                f"{name}, {names[how]}",
                spread([each.first_s for each in starts], ".2f"),
                spread([each.all_s for each in starts], ".2f"),
                spread([each.cpu_s for each in starts], ".2f"),
                spread([each.rss_mb for each in starts]),
            )
            for (name, how), starts in results.items()
        ],
    )
    if "Goka" in commands:
        print()
        for how, words in names.items():
            ratios = [
                ours.first_s / theirs.first_s
                for ours, theirs in zip(results["gokamsg", how], results["Goka", how], strict=True)
            ]
            print(f"{words}: gokamsg takes {spread(ratios, '.2f')} of Goka's time, round by round")


if __name__ == "__main__":
    main()
