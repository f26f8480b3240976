"""How cost grows: with partitions, workers, keys, the size of messages, and the backlog; and what the knobs do.

    python -m benchmarks.growth [--axis partitions|workers|keys|sizes|backlog|knobs|all] [--rounds 1] [--quick]

One group of the benchmark's own (growth_role.py), exactly-once: each message updates the row of its key, which has 100
bytes, in a table that is there before, or, for the sizes, is emitted as it came. Along each axis one thing changes, and
the rest is 300,000 messages of 100 bytes in 8 partitions, random among 10,000 keys, and one worker (partitions and
workers: four times as many messages, so that the first transaction does not count; the sizes: 300 MB at most). The
knobs are ProcessorOptions; the cache is tried with 100,000 keys. A point is a start with an empty state directory on a
group without commits: the table is restored, then the messages are handled. Rates and CPU are taken between 10 and 90 %
of the work, as committed; RSS is a worker's highest. Every row that was written is compared with a computation of its
own, and so is everything emitted.

Ten million keys, or messages, take minutes. Needs Linux, and for Apache Kafka Java and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from benchmarks.fill import Filler, batches
from benchmarks.growth_role import GROUP, INPUT, OUTPUT, TABLE, message, row
from benchmarks.measure import Committed, Progress, drop_group, print_table, rss_mb, spread
from benchmarks.roles import Server, create, remove
from benchmarks.throughput import BROKERS, server_of
from gokamsg.engine import quarantine_of
from gokamsg.engine.names import quarantine_commands_of
from tests.helpers import Process, eventually, gokamsg_env
from tests.system import fold

BLOCK = 100_000  # messages that are made once, and sent as often as the backlog needs
START_S, SECONDS_PER_MILLION = 120.0, 60.0  # before a point is given up


@dataclass(frozen=True)
class Point:
    axis: str
    label: str
    partitions: int = 8
    workers: int = 1
    keys: int = 10_000
    size: int = 100
    messages: int = 300_000
    mode: str = "table"
    options: tuple[str, ...] = ()
    """Of the processor, as growth_role.py takes them."""


@dataclass(frozen=True)
class Cost:
    rate: float
    client_us: float
    broker_us: float
    rss_mb: float
    """Of the largest worker."""
    first_s: float
    """From the start to the first commit: with the restore."""


def points(quick: bool) -> list[Point]:
    """Every axis, from small to large."""
    base = Point("", "", keys=1_000, messages=20_000) if quick else Point("", "")
    long = base if quick else replace(base, messages=4 * base.messages)
    partitions = (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    workers = (1, 2) if quick else (1, 2, 4)
    keys = (1_000, 10_000) if quick else (10_000, 100_000, 1_000_000, 10_000_000)
    sizes = (100, 10_000) if quick else (100, 1_000, 10_000, 100_000)
    backlogs = (20_000, 100_000) if quick else (100_000, 1_000_000, 10_000_000)
    return [
        *(replace(long, axis="partitions", label=counted(n, "partition"), partitions=n) for n in partitions),
        *(replace(long, axis="workers", label=counted(n, "worker"), workers=n) for n in workers),
        *(replace(base, axis="keys", label=f"{n:,} keys", keys=n) for n in keys),
        *(
            replace(base, axis="sizes", label=f"{n:,} bytes", size=n, mode="pass", messages=_many(base, n))
            for n in sizes
        ),
        *(replace(base, axis="backlog", label=f"{n:,} messages", messages=n) for n in backlogs),
        *_knobs(base, quick),
    ]


def _knobs(base: Point, quick: bool) -> Iterator[Point]:
    """Each option around its default."""
    knobs: dict[str, tuple[float, ...]] = {
        "commit_age_s": (0.5,) if quick else (0.05, 0.5, 2.0),
        "commit_bytes": (8 << 20,) if quick else (1 << 20, 8 << 20, 32 << 20),
        "cache_bytes": (8 << 20,) if quick else (8 << 20, 64 << 20, 256 << 20),
    }
    for name, values in knobs.items():
        keys = 10 * base.keys if name == "cache_bytes" else base.keys
        for value in values:
            shown = f"{value:g}" if name.endswith("_s") else f"{int(value) >> 20} MiB"
            yield replace(base, axis="knobs", label=f"{name} {shown}", keys=keys, options=(f"{name}={value}",))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _many(base: Point, size: int) -> int:
    return min(base.messages, base.messages * 1_000 // size)


# --- what lies in Kafka, and what must come out --------------------------------------------------------------------


def key_of(number: int) -> bytes:
    return b"key-%08d" % number


def rows(point: Point) -> Iterator[tuple[int, bytes, bytes]]:
    """A row for each key: nothing was counted yet."""
    empty = row(0, 0)
    for number in range(point.keys):
        key = key_of(number)
        yield partition_of(key, point.partitions), key, empty


def partition_of(key: bytes, count: int) -> int:
    """As fold.partition_of, for keys by the million."""
    total = 2166136261
    for byte in key:
        total = (total ^ byte) * 16777619 & 0xFFFFFFFF
    return (total if total < 0x80000000 else 0x100000000 - total) % count


@dataclass
class Expected:
    """What must come out: counts and sums by key (table), or a checksum of each partition (pass)."""

    rows: dict[bytes, tuple[int, int]]
    sums: dict[int, int]


def fill(kafka: Server, point: Point, seed: int) -> Expected:
    remove(kafka, quarantine_of(GROUP), quarantine_commands_of(GROUP))  # they have as many partitions as the input
    create(kafka, INPUT, TABLE, OUTPUT, partitions=point.partitions)
    rng = random.Random(seed)
    expected = Expected({}, {})
    if point.mode == "table":
        with Filler(kafka.address, TABLE) as filler:
            for partition, batch in batches(rows(point)):
                filler.send(partition, batch)
    block = min(BLOCK, point.messages)
    repeats, rest = divmod(point.messages, block)
    if rest:
        raise SystemExit(f"{point.messages:,} messages are not a multiple of {block:,}")
    sent = []
    for number in range(block):
        key, value = key_of(rng.randrange(point.keys)), message(number, point.size)
        sent.append((partition_of(key, point.partitions), key, value))
        count, total = expected.rows.get(key, (0, 0))
        expected.rows[key] = (count + repeats, total + number * repeats)
    made = list(batches(sent))
    with Filler(kafka.address, INPUT) as filler:
        for _ in range(repeats):
            for partition, batch in made:
                filler.send(partition, batch)
            if point.mode == "pass":
                for partition, key, value in sent:
                    expected.sums[partition] = zlib.crc32(value, zlib.crc32(key, expected.sums.get(partition, 0)))
    # A table without offsets would be one whose group is lost.
    consumer = KafkaConsumer(bootstrap_servers=kafka.address, group_id=GROUP, enable_auto_commit=False)
    consumer.commit({TopicPartition(INPUT, n): OffsetAndMetadata(0, "", -1) for n in range(point.partitions)})
    consumer.close()
    return expected


def verify(address: str, point: Point, expected: Expected, before: dict[TopicPartition, int]) -> None:
    """Every key's last row written since is the expected one; or everything emitted is what came, in its order."""
    found: dict[bytes, bytes] = {}
    sums: dict[int, int] = {}
    for partition, key, value in since(address, before):
        if point.mode == "table":
            found[key] = value
        else:
            sums[partition] = zlib.crc32(value, zlib.crc32(key, sums.get(partition, 0)))
    if point.mode == "table":
        wrong = fold.difference({key: row(*counted) for key, counted in expected.rows.items()}, found)
    else:
        wrong = fold.difference(expected.sums, sums)
    if wrong:
        raise SystemExit(f"{point.axis}, {point.label}: the output is wrong:\n" + "\n".join(wrong))


def since(address: str, before: dict[TopicPartition, int]) -> Iterator[tuple[int, bytes, bytes]]:
    """Committed records from these offsets on, to the end as of now."""
    consumer = KafkaConsumer(
        bootstrap_servers=address,
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_poll_records=10_000,
        max_partition_fetch_bytes=4 << 20,
    )
    try:
        consumer.assign(list(before))
        for partition, offset in before.items():
            consumer.seek(partition, offset)
        ends = consumer.end_offsets(list(before))
        while any(consumer.position(partition) < ends[partition] for partition in before):
            for partition, records in consumer.poll(timeout_ms=200).items():
                for record in records:
                    yield partition.partition, record.key, record.value
    finally:
        consumer.close()


# --- a point -------------------------------------------------------------------------------------------------------


def run_point(kafka: Server, point: Point, scratch: Path, seed: int) -> Cost:
    with kafka.admin() as admin, contextlib.ExitStack() as stack:
        eventually("the group of the last point is gone", lambda: drop_group(admin, GROUP), timeout_s=60)
        expected = fill(kafka, point, seed)
        output = TABLE if point.mode == "table" else OUTPUT
        partitions = [TopicPartition(output, number) for number in range(point.partitions)]
        with contextlib.closing(KafkaConsumer(bootstrap_servers=kafka.address)) as consumer:
            before = consumer.end_offsets(partitions)
        workers = []
        for number in range(point.workers):
            argv = [sys.executable, "-m", "benchmarks.growth_role", "--brokers", kafka.address, "--mode", point.mode]
            argv += ["--state", str(scratch / "state"), *(f"--option={option}" for option in point.options)]
            workers.append(Process(argv, scratch, name=f"worker-{number}", env=gokamsg_env()))
            stack.callback(workers[-1].close)
        pids = [worker.pid for worker in workers]
        committed = Committed(admin, GROUP, [INPUT])

        def done() -> int:
            if ended := [worker for worker in workers if not worker.running]:
                raise SystemExit(f"{point.axis}, {point.label}: a worker has ended\n{ended[0].tail()}")
            return committed()

        progress = Progress(done, clients=pids, broker=kafka.pid)
        limit_s = START_S + SECONDS_PER_MILLION * (point.messages + point.keys) / 1e6
        try:
            progress.watch(lambda: committed() == point.messages, timeout_s=limit_s)
        except SystemExit:
            print("\n".join(worker.tail() for worker in workers))
            raise
        memory = max(rss_mb(pids))
        for worker in workers:
            worker.signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(60)
        verify(kafka.address, point, expected, before)
        part = progress.between()
        first = next(sample.at for sample in progress.samples if sample.done)
        per_us = 1e6 / (part.share * point.messages)
        return Cost(
            part.share * point.messages / part.seconds,
            part.client_cpu_s * per_us,
            part.broker_cpu_s * per_us,
            memory,
            first - min(worker.started_at for worker in workers),
        )


# --- the table -----------------------------------------------------------------------------------------------------


Results = dict[Point, list[Cost]]


def report(results: Results) -> None:
    head = ("", "", "per second", "MB/s", "CPU worker", "CPU broker", "RSS MB", "first commit s")
    lines = []
    for point, costs in results.items():
        rates = [cost.rate for cost in costs]
        lines.append(
            (
                point.axis,
                point.label,
                spread(rates),
                spread([rate * point.size / 1e6 for rate in rates], ",.1f"),
                spread([cost.client_us for cost in costs], ".1f"),
                spread([cost.broker_us for cost in costs], ".1f"),
                spread([cost.rss_mb for cost in costs]),
                spread([cost.first_s for cost in costs], ".1f"),
            )
        )
    print_table(head, lines)
    print()
    for line in growths(results):
        print(line)


def growths(results: Results) -> Iterator[str]:
    """What the largest point of each axis takes of a smaller one."""

    def of(axis: str, what: str, large: str, small: str) -> Iterator[str]:
        found = {point.label: costs for point, costs in results.items() if point.axis == axis}
        if large in found and small in found:
            ratio = _middle(found[large], what) / _middle(found[small], what)
            names = {"client_us": "CPU per message", "rss_mb": "RSS", "rate": "messages a second"}
            yield f"{names[what]}, {large}: {ratio:.2f} of {small}"

    yield from of("partitions", "client_us", "64 partitions", "8 partitions")
    yield from of("keys", "client_us", "10,000,000 keys", "10,000 keys")
    yield from of("backlog", "rss_mb", "10,000,000 messages", "100,000 messages")
    yield from of("workers", "rate", "2 workers", "1 worker")


def _middle(costs: Sequence[Cost], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    axes = list(dict.fromkeys(point.axis for point in points(quick=True)))
    parser.add_argument("--axis", choices=(*axes, "all"), default="all", help="what grows")
    parser.add_argument("--label", default="", metavar="TEXT", help="only the points whose name has this in it")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--on", choices=BROKERS, default="apache", help="which broker it runs on")
    parser.add_argument("--quick", action="store_true", help="two small points of each axis, one round: a check")
    options = parser.parse_args()
    chosen = [
        point for point in points(options.quick) if options.axis in ("all", point.axis) and options.label in point.label
    ]
    results: Results = {}
    with tempfile.TemporaryDirectory() as directory:
        server = server_of(options.on, Path(directory, "broker"))
        try:
            server.start()
            if not options.quick:  # a fresh JVM is slow
                run_point(server, Point("warm-up", ""), Path(directory, "warm-up"), options.seed)
            for number in range(1 if options.quick else options.rounds):
                for point in chosen:
                    with tempfile.TemporaryDirectory(dir=directory) as scratch:
                        cost = run_point(server, point, Path(scratch), options.seed + number)
                    results.setdefault(point, []).append(cost)
                    used = f"{cost.client_us:.1f} µs, {cost.rss_mb:.0f} MB, first commit after {cost.first_s:.1f} s"
                    figures = f"{cost.rate:,.0f}/s, {used}, output verified"
                    print(f"round {number + 1}: {point.axis}, {point.label}: {figures}", flush=True)
        finally:
            server.close()
    print(
        f"\n{BROKERS[options.on]}, seed {options.seed}; median (lowest-highest); CPU in microseconds for each message\n"
    )
    report(results)


if __name__ == "__main__":
    main()
