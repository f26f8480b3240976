"""The embedded broker beside Apache Kafka: what clients reach on either, and what it costs, in one run.

    python -m benchmarks.broker [--quick] [--only TEXT]

Each round does every piece of work on both brokers in turn, each on a topic of its own (4 partitions), with a client
process of its own: kafka-python and confluent-kafka produce and consume 100-byte records (acks=all), commit
transactions of ten records and an offset, and a raw socket produces one record at a time. What was written is read
back, and its count and checksums compared. The embedded broker waits for the disk (fsync) before it acknowledges;
Apache Kafka with one replica does not, so the disk's own write and fdatasync stands beside the one-record figures. At
the end the embedded broker is killed with a million records in it; how soon it is back stands beside the start of an
empty one. Needs Java and Maven (or GOKAMSG_KAFKA_LIBS), and Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from kafka import TopicPartition
from kafka.protocol.producer import ProduceResponse

from benchmarks.broker_clients import GROUP, PARTITIONS, TRANSACTION, expected_sum
from benchmarks.measure import cpu_s, print_table, rss_mb, spread
from tests.broker.raw_client import RawClient, make_batch, produce_request
from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually
from tests.kafka_server import KafkaServer, kafka_libs

LIBRARIES = ("kafka-python", "confluent-kafka")
RESTART = "restart"
EMBEDDED, APACHE = "embedded", "Apache Kafka"
PRODUCE_VERSION = 9
Server = EmbeddedServer | KafkaServer


@dataclass(frozen=True)
class Size:
    """How much of each work one round does."""

    records: dict[str, int]
    transactions: int
    single: int
    restart: int = 0  # records that lie there when the broker is killed


FULL = Size({"kafka-python": 200_000, "confluent-kafka": 2_000_000}, transactions=500, single=500, restart=1_000_000)
QUICK = Size({"kafka-python": 30_000, "confluent-kafka": 200_000}, transactions=60, single=100, restart=100_000)
WARM_UP = Size({"kafka-python": 60_000, "confluent-kafka": 600_000}, transactions=200, single=200)


@dataclass(frozen=True)
class Figure:
    """One piece of work in one round: so many a second, or the middle one's milliseconds."""

    value: float
    client_us: float = 0.0  # CPU for each record, transaction
    broker_us: float = 0.0
    disk_ms: float = 0.0


Figures = dict[str, Figure]  # by the work's name
Task = Callable[..., Figures]


@contextmanager
def topic(server: Server, name: str) -> Iterator[str]:
    """A topic for the length of a block."""
    server.create_topics({name: {"num_partitions": PARTITIONS}})
    yield name
    with server.admin() as admin:
        admin.delete_topics([name])


def client(server: Server, library: str, work: str, name: str, count: int) -> tuple[dict[str, float], float]:
    """What the client process says, and the broker's CPU seconds meanwhile."""
    argv = [sys.executable, "-m", "benchmarks.broker_clients", library, work, server.address, name, str(count)]
    before = cpu_s([server.pid])
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{library} could not {work}: {done.stderr[-2000:]}")
    return json.loads(done.stdout), cpu_s([server.pid]) - before


def rate(count: int, done: tuple[dict[str, float], float]) -> Figure:
    said, broker_s = done
    return Figure(count / said["seconds"], said["cpu_s"] / count * 1e6, broker_s / count * 1e6)


def check_read(what: str, said: dict[str, float], count: int) -> None:
    if (said["count"], said["sum"]) != (count, expected_sum(count)):
        raise SystemExit(f"{what}: {count:,} records were acknowledged, {said['count']:,.0f} read, or others")


def stream(server: Server, library: str, count: int, tag: str) -> Figures:
    """Produce, then consume the same, which is the check of both."""
    with topic(server, f"{library}-{tag}") as name:
        produced = client(server, library, "produce", name, count)
        consumed = client(server, library, "consume", name, count)
    check_read(f"{library} on {server.address}", consumed[0], count)
    return {f"{library} produce": rate(count, produced), f"{library} consume": rate(count, consumed)}


def transact(server: Server, library: str, count: int, tag: str) -> Figures:
    with topic(server, f"{library}-transactions-{tag}") as name:
        done = client(server, library, "transact", name, count)
        read, _ = client(server, "kafka-python", "consume", name, count * TRANSACTION)
        check_read(f"{library}'s transactions on {server.address}", read, count * TRANSACTION)
        with server.admin() as admin:
            stored = admin.list_group_offsets({GROUP: None})[GROUP][TopicPartition(name, 0)].offset
    if stored != count:
        raise SystemExit(f"{library}: {count} transactions were committed, and the offset is {stored}")
    return {f"{library} transactions": rate(count, done)}


def one_by_one(server: Server, count: int, tag: str, scratch: Path) -> Figures:
    """One record, then the next; blocks of them and of the disk's own writes take turns."""
    with topic(server, f"single-{tag}") as name, RawClient(server.address) as socket:
        request = produce_request([(name, 0, make_batch([(None, bytes(100))]))])

        def leads() -> bool:
            socket.send(request, PRODUCE_VERSION)
            return not produced_error(socket.receive_frame())

        eventually("the broker leads the new partition", leads)
        times: list[float] = []
        disk: list[float] = []
        before = cpu_s([server.pid])
        for _ in range(5):
            disk += writes(scratch, count // 5)
            for _ in range(count // 5):
                started = time.perf_counter()
                correlation_id = socket.send(request, PRODUCE_VERSION)
                answer = socket.receive_frame()
                times.append(time.perf_counter() - started)
                if error := produced_error(answer):
                    raise SystemExit(f"record {correlation_id} was refused by {server.address} with error {error}")
        used = cpu_s([server.pid]) - before
        with server.admin() as admin:
            partition = TopicPartition(name, 0)
            end = admin.list_partition_offsets({partition: -1})[partition].offset
    if end != len(times) + 1:
        raise SystemExit(f"{len(times) + 1} records were sent one by one, the topic has {end}")
    middle, disk_ms = statistics.median(times) * 1000, statistics.median(disk) * 1000
    return {"one record, p50 ms": Figure(middle, broker_us=used / len(times) * 1e6, disk_ms=disk_ms)}


def produced_error(answer: bytes) -> int:
    """The error code of a Produce answer for one partition."""
    decoded = ProduceResponse.decode(answer, version=PRODUCE_VERSION, header=True)
    return int(decoded.responses[0].partition_responses[0].error_code)


def writes(scratch: Path, count: int) -> list[float]:
    """Seconds of each write of a page with fdatasync."""
    found = []
    path = scratch / "disk"
    with path.open("ab", buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - started)
    path.unlink()
    return found


def restarts(server: EmbeddedServer, empty: EmbeddedServer, count: int) -> tuple[list[float], list[float]]:
    """Seconds from the start of a killed broker with `count` records, and of one without, to accepting connections."""
    with topic(server, "restarts") as name:
        client(server, "confluent-kafka", "produce", name, count)
        found: dict[EmbeddedServer, list[float]] = {server: [], empty: []}
        for _ in range(5):
            for each, seconds in found.items():
                each.kill()
                started = time.monotonic()
                each.start()
                seconds.append(time.monotonic() - started)
        said, _ = client(server, "confluent-kafka", "consume", name, count)
    empty.kill()
    check_read("after kill -9", said, count)
    return found[server], found[empty]


def tasks(size: Size, scratch: Path) -> dict[str, Task]:
    """Every piece of work by its name; called with the broker and a tag that no earlier call had."""
    found: dict[str, Task] = {}
    for each in LIBRARIES:
        found[f"{each} produce and consume"] = partial(stream, library=each, count=size.records[each])
        found[f"{each} transactions"] = partial(transact, library=each, count=size.transactions)
    found["one record"] = partial(one_by_one, count=size.single, scratch=scratch)
    return found


def run_round(servers: dict[str, Server], size: Size, tag: str, only: str, scratch: Path) -> dict[str, Figures]:
    found: dict[str, Figures] = {broker: {} for broker in servers}
    for what, task in tasks(size, scratch).items():
        if only in what:
            for broker, server in servers.items():
                found[broker] |= task(server, tag=tag)
    return found


def report(rounds: list[dict[str, Figures]]) -> None:
    rows = []
    for work in rounds[0][EMBEDDED]:
        mine, theirs = ([each[broker][work] for each in rounds] for broker in (EMBEDDED, APACHE))
        form = ",.0f" if mine[0].value > 10 else ",.2f"
        ratios = [a.value / b.value for a, b in zip(mine, theirs, strict=True)]
        rows.append(
            (
                work,
                spread([each.value for each in mine], form),
                spread([each.value for each in theirs], form),
                spread(ratios, ".2f"),
                *(
                    f"{statistics.median(getattr(each, used) for each in on):,.1f}"
                    for used in ("client_us", "broker_us")
                    for on in (mine, theirs)
                ),
            )
        )
        if mine[0].disk_ms:
            disk = spread([each.disk_ms for each in mine], ".2f")
            rows.append(
                ("  the disk alone, beside it", disk, spread([each.disk_ms for each in theirs], ".2f"), *[""] * 5)
            )
            over = spread([each.value - each.disk_ms for each in mine], ".2f")
            rows.append(("  what the broker adds", over, "", *[""] * 5))
    head = ("per second", EMBEDDED, APACHE, "ratio", "client µs", "(Apache)", "broker µs", "(Apache)")
    print_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the work whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="little of everything, one round: a check of the outputs")
    options = parser.parse_args()
    size, count = (QUICK, 1) if options.quick else (FULL, options.rounds)
    names = [*tasks(size, Path()), RESTART]
    if not any(options.only in name for name in names):
        parser.error(f"--only {options.only!r} is in none of: {', '.join(names)}")
    with TemporaryDirectory() as directory:
        scratch = Path(directory)
        embedded, empty = (EmbeddedServer(scratch / name) for name in ("embedded", "empty"))
        apache = KafkaServer(scratch / "apache", kafka_libs(), jvm=["-Xmx512m"])
        try:
            embedded.start()
            apache.start()
            (at_start,) = rss_mb([embedded.pid], peak=False)
            if not options.quick:  # a fresh JVM is slow
                run_round({APACHE: apache}, WARM_UP, "warm-up", options.only, scratch)
            rounds = []
            for number in range(count):
                orders: list[dict[str, Server]] = [
                    {EMBEDDED: embedded, APACHE: apache},
                    {APACHE: apache, EMBEDDED: embedded},
                ]
                rounds.append(run_round(orders[number % 2], size, str(number), options.only, scratch))
                print(f"round {number + 1} of {count}: done, outputs verified", flush=True)
            (peak,) = rss_mb([embedded.pid])
            back = restarts(embedded, empty, size.restart) if options.only in RESTART else None
        finally:
            for server in (embedded, empty, apache):
                server.close()
    if rounds[0][EMBEDDED]:
        print("\nmedian (lowest-highest); CPU in microseconds for each record or transaction\n")
        report(rounds)
    if back:
        full, bare = (spread(seconds, ".2f") for seconds in back)
        print(
            f"\nback after kill -9 with {size.restart:,} records, all there: {full} s; an empty one starts in {bare} s"
        )
    print(f"\nmemory of the embedded broker: {at_start:,.0f} MB at its start, {peak:,.0f} MB at its highest")


if __name__ == "__main__":
    main()
