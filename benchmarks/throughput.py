"""Throughput of filter, collector and detector: gokamsg beside plain client loops and Goka, in the same run.

    python -m benchmarks.throughput [--role filter|collector|detector|all] [--quick] [--on apache|embedded|both]

Work: 300,000 seeded messages of 1,005 users lie in the role's input, and for the filter its two tables are filled and
some users blocked. Each round starts every contender once, with a new group and empty outputs, one after the other, on
one Apache Kafka, on the embedded broker, or on one after the other:

    gokamsg                 exactly-once, one process
    gokamsg at-least-once   one process
    gokamsg, 2 workers      exactly-once
    kafka-python loop, naive
                            exactly-once, the filter only (benchmarks/naive_filter.py)
    confluent-kafka loop    exactly-once, the filter only (benchmarks/confluent_filter.py), where it is installed
    Quix Streams            exactly-once, filter and collector (benchmarks/quix_role.py), where it is installed
    Kafka Streams           exactly-once, filter and collector (benchmarks/streams), where Maven and a JDK are
    Goka                    at-least-once, its defaults (tests/goka), where Go is installed
    Goka, tuned             at-least-once, sends its batches sooner and has larger channels

Rates are taken between 10 and 90 % of the work: of the output, or, where gokamsg writes a row once for many updates, of
the offsets it commits; where a few commits are all, as with --quick, from the process's start. The detector updates its
table twice for each message, and its rates count updates. What was written is compared, in every round, with an
independent computation. Needs Linux, and for Apache Kafka Java and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import kafka_streams, quix_role
from benchmarks.measure import Committed, Progress, Written, drop_group, print_table, rss_mb, spread, tree
from benchmarks.roles import PARTITIONS, ROLES, Role, Server, Work, create
from tests.embedded_server import EmbeddedServer
from tests.helpers import eventually, gokamsg_argv, gokamsg_env
from tests.kafka_server import KafkaServer, kafka_libs
from tests.system import goka

NOBODY = "1000000000"  # messages before the detector judges a user: more than there are
BROKERS = {"apache": "Apache Kafka", "embedded": "embedded broker"}


@dataclass(frozen=True)
class Round:
    share: float
    """Of the work, that the figures were taken over."""
    rate: float
    client_us: float
    broker_us: float
    rss_mb: float


@dataclass(frozen=True)
class Start:
    """What a contender's command is made of."""

    role: Role
    address: str
    state: Path


@dataclass(frozen=True)
class OwnTable:
    """A topic that a contender keeps its table in, where that is not the role's."""

    topic: str
    check: Callable[[str, Any], list[str]]


@dataclass(frozen=True)
class Contender:
    argv: Callable[[Start], list[str]]
    every_update: bool = True
    """Whether it writes its table at every update, so that the table's growth is its progress."""
    missing: Callable[[Role], str | None] = lambda _: None
    """Why it cannot be had here; empty if it just does not do the role."""
    tables: Mapping[str, OwnTable] = field(default_factory=dict)
    """By role."""


def _gokamsg(*options: str) -> Contender:
    def argv(start: Start) -> list[str]:
        common = ["--brokers", start.address, "--state-dir", str(start.state), "--detect-messages", NOBODY]
        return gokamsg_argv("process", "--role", start.role.name, *common, *options)

    return Contender(argv, every_update=False)


def _needs(module: str, *roles: str) -> Callable[[Role], str | None]:
    def missing(role: Role) -> str | None:
        if role.name not in roles:
            return ""
        return None if importlib.util.find_spec(module) else f"{module} is not installed"

    return missing


def _module(name: str, start: Start, *options: str) -> list[str]:
    common = ["--brokers", start.address, "--group", start.role.group]
    return [sys.executable, "-m", f"benchmarks.{name}", *common, *options]


def _loop(module: str, needs: str) -> Contender:
    return Contender(lambda start: _module(module, start), missing=_needs(needs, "filter"))


def _quix(start: Start) -> list[str]:
    return _module("quix_role", start, "--role", start.role.name, "--state", str(start.state))


def goka_missing(_: Role) -> str | None:
    try:
        goka.program()
    except goka.GokaUnavailableError as error:
        return str(error)
    return None


def _goka(*options: str) -> Contender:
    def argv(start: Start) -> list[str]:
        start.state.mkdir(parents=True)
        flags = ["-role", start.role.name, "-brokers", start.address, "-state", str(start.state), *options]
        return [str(goka.program()), "process", *flags, "-detect-messages", NOBODY]

    return Contender(argv, missing=goka_missing)


def _streams(start: Start) -> list[str]:
    return kafka_streams.argv(start.address, start.role.name, start.role.group, start.state)


def _streams_missing(role: Role) -> str | None:
    if role.name == "detector":
        return ""
    try:
        kafka_streams.class_path()
    except kafka_streams.StreamsUnavailableError as error:
        return str(error)
    return None


OURS = "gokamsg"
GOKA = "Goka"
CONTENDERS = {
    "gokamsg": _gokamsg(),
    "gokamsg at-least-once": _gokamsg("--guarantee", "at-least-once"),
    "gokamsg, 2 workers": _gokamsg("--workers", "2"),
    "kafka-python loop, naive": _loop("naive_filter", "kafka"),
    "confluent-kafka loop": _loop("confluent_filter", "confluent_kafka"),
    "Quix Streams": Contender(
        _quix,
        every_update=False,
        missing=_needs("quixstreams", "filter", "collector"),
        tables={"collector": OwnTable(quix_role.TABLE, quix_role.check_collector)},
    ),
    "Kafka Streams": Contender(
        _streams,
        every_update=False,
        missing=_streams_missing,
        tables={"collector": OwnTable(kafka_streams.TABLE, kafka_streams.check_collector)},
    ),
    GOKA: _goka(),
    "Goka, tuned": _goka("-tuned"),
}


def run_round(kafka: Server, work: Work, contender: Contender, scratch: Path, name: str) -> Round:
    """One contender from an empty group to the end of its input; its output is compared."""
    role = work.role
    own = contender.tables.get(role.name)
    create(kafka, *role.outputs, *([own.topic] if own else []))
    log = scratch / f"{name}.log"
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        admin = stack.enter_context(kafka.admin())
        eventually("the group of the last round is gone", lambda: drop_group(admin, role.group), timeout_s=60)
        written = stack.enter_context(contextlib.closing(Written(kafka.address, own.topic if own else role.outputs[0])))
        committed = Committed(admin, role.group, role.inputs)
        eventually("nothing is committed", lambda: committed() == 0, timeout_s=60)  # a fresh cluster has no coordinator
        loops = [topic for topic in role.inputs if topic in role.outputs]
        ends = [stack.enter_context(contextlib.closing(Written(kafka.address, topic))) for topic in loops]

        def finished() -> bool:
            if sum(committed.of(role.inputs[0]).values()) != work.messages:
                return False
            # The commit markers at a loop's end may be committed, or not.
            return all(
                end() - sum(committed.of(topic).values()) <= 2 * PARTITIONS
                for topic, end in zip(loops, ends, strict=True)
            )

        argv = contender.argv(Start(role, kafka.address, scratch / name))
        client = subprocess.Popen(argv, stdout=output, stderr=output, env=gokamsg_env(), start_new_session=True)
        by_output = contender.every_update or role.name == "filter"
        progress = Progress(written if by_output else committed, clients=[client.pid], broker=kafka.pid)
        try:
            progress.watch(finished, timeout_s=300)
            memory = sum(rss_mb(tree(client.pid)))
        except SystemExit:
            print(log.read_text(errors="replace")[-2000:])
            raise
        finally:
            client.send_signal(signal.SIGTERM)
            client.wait(timeout=60)
    work.verify(kafka.address, own.check if own else None)
    part = progress.between()
    counted = part.share * work.messages * role.counts
    per_us = 1e6 / counted
    return Round(part.share, counted / part.seconds, part.client_cpu_s * per_us, part.broker_cpu_s * per_us, memory)


def server_of(kind: str, directory: Path) -> Server:
    if kind == "embedded":
        return EmbeddedServer(directory)
    return KafkaServer(directory, kafka_libs(), jvm=["-Xmx512m"])


Results = dict[tuple[str, str, str], list[Round]]
"""By role, contender and broker."""


def measure(servers: dict[str, Server], role: Role, names: list[str], options: argparse.Namespace) -> Results:
    found: Results = {}
    works = {kind: Work.fill(server, role, options.messages, options.seed) for kind, server in servers.items()}
    for number in range(options.rounds):
        for name in names:
            for kind, server in servers.items():
                label = f"{role.name}-{list(CONTENDERS).index(name)}-{number}"
                scratch = options.directory / kind
                figures = run_round(server, works[kind], CONTENDERS[name], scratch, label)
                found.setdefault((role.name, name, kind), []).append(figures)
                rate = f"{figures.rate:,.0f}/s, output verified"
                print(f"round {number + 1}: {role.name}, {name}, {BROKERS[kind]}: {rate}", flush=True)
    return found


def available(role: Role, only: list[str] | None) -> list[str]:
    """The contenders that do the role here; says which are missing."""
    names = []
    for name, contender in CONTENDERS.items():
        if only and name not in only:
            continue
        missing = contender.missing(role)
        if missing is None:
            names.append(name)
        elif missing:
            print(f"{role.name}: {name} is left out: {missing}", flush=True)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--role", choices=(*ROLES, "all"), default="filter", help="which role is measured")
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="30,000 messages, one round: a check, not a measurement")
    parser.add_argument("--only", choices=list(CONTENDERS), action="append", help="a contender; repeatable")
    parser.add_argument("--on", choices=(*BROKERS, "both"), default="apache", help="which broker it runs on")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.rounds = 30_000, 1
    kinds = list(BROKERS) if options.on == "both" else [options.on]
    roles = list(ROLES.values()) if options.role == "all" else [ROLES[options.role]]
    results: Results = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        options.directory = Path(directory)
        servers: dict[str, Server] = {}
        for kind in kinds:
            server = servers[kind] = server_of(kind, Path(directory, kind))
            stack.callback(server.close)
            server.start()
        for role in roles:
            results |= measure(servers, role, available(role, options.only), options)
    report(results, options)


def report(results: Results, options: argparse.Namespace) -> None:
    print(f"\n{options.messages:,} messages, {options.rounds} rounds, seed {options.seed}")
    print("median (lowest-highest); CPU in microseconds for each message; taken over: that part of the work")
    print("detector: for each table update, two a message; of Goka's: ratios of the same round\n")
    rows = []
    for (role, name, kind), rounds in results.items():
        peer = results.get((role, GOKA, kind))
        rows.append(
            (
                f"{role}: {name}",
                BROKERS[kind],
                spread([row.rate for row in rounds]),
                compared(rounds, peer, lambda row: row.rate),
                spread([row.client_us for row in rounds], ".1f"),
                compared(rounds, peer, lambda row: row.client_us),
                spread([row.broker_us for row in rounds], ".1f"),
                spread([row.rss_mb for row in rounds]),
                spread([row.share for row in rounds], ".0%"),
            )
        )
    print_table(
        ("", "on", "per second", "of Goka's", "CPU client", "of Goka's", "CPU broker", "RSS MB", "taken over"), rows
    )
    print()
    for (role, name, kind), rounds in results.items():
        if kind == "embedded" and (apache := results.get((role, name, "apache"))):
            ratio = compared(rounds, apache, lambda row: row.rate)
            print(f"{role}: {name} is {ratio} times as fast on the embedded broker as on Apache Kafka, round by round")
    beside_peers(results)


def beside_peers(results: Results) -> None:
    """How many times as fast as each peer, by the ratios of the rounds."""
    peers = [name for name in CONTENDERS if not name.startswith(OURS) and any(key[1] == name for key in results)]
    rows = [
        [
            f"{role}: {name}, {BROKERS[kind]}",
            *(compared(rounds, results.get((role, peer, kind)), lambda row: row.rate) for peer in peers),
        ]
        for (role, name, kind), rounds in results.items()
        if name.startswith(OURS)
    ]
    if peers and rows:
        print("times as fast as\n")
        print_table(("", *peers), rows)


def compared(ours: list[Round], theirs: list[Round] | None, figure: Callable[[Round], float]) -> str:
    """The ratios of the rounds' figures; empty without a peer."""
    if theirs is None:
        return ""
    return spread([figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True)], ".2f")


if __name__ == "__main__":
    main()
