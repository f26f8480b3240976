"""The HTTP service under load: POST with 1 and with 64 connections, GET of feeds with 16.

    python -m benchmarks.http [--seconds 10] [--rounds 3] [--quick]

One `gokamsg serve` on one Apache Kafka, 1,000 feeds of five messages in collector-table. Connections are kept alive,
and each sends its next request when the answer to the last one is there; the client is one asyncio process beside the
service. Every answer is looked at: of a POST, that it is 200, and afterwards that message_sent holds every accepted
message once and no other; of a GET, that it is the user's feed to the byte. Latencies are in milliseconds, from
writing the request to the end of its answer. Needs Linux, and Java and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.measure import cpu_s, print_table, quantile, spread, tree
from benchmarks.roles import PARTITIONS, create, produce_to
from tests.helpers import eventually, free_port, processes
from tests.kafka_server import KafkaServer, kafka_libs
from tests.system import fold

USERS = [f"user-{number:04}" for number in range(1000)]
GIVE_UP_S = 30.0


@dataclass(frozen=True)
class Request:
    wire: bytes
    what: str
    """The content of a POST, the user of a GET."""


@dataclass
class Load:
    """What all connections of one run share."""

    requests: Iterator[Request]
    right: Callable[[Request, int, bytes], bool]
    until: float
    latencies_ms: list[float] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One kept connection; `ended` is done when its time is over or it broke."""

    def __init__(self, load: Load) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._buffer = b""
        self._request: Request | None = None
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        self._request = None
        if time.perf_counter() >= self._load.until:
            self._transport.close()
            return
        self._request = next(self._load.requests)
        self._sent_at = time.perf_counter()
        self._transport.write(self._request.wire)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._request is None:
            return
        fields = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in fields if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self._buffer = body[length:]
        self._load.latencies_ms.append((time.perf_counter() - self._sent_at) * 1000)
        status = int(fields[0].split()[1])
        if self._load.right(self._request, status, body[:length]):
            self._load.answered.append(self._request.what)
        else:
            self._load.failed.append(f"{self._request.what}: {status} {body[:100]!r}")
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._request is not None:
            self._load.failed.append(f"{self._request.what}: the connection was lost ({exc})")
        if not self.ended.done():
            self.ended.set_result(None)


async def run(port: int, connections: int, load: Load) -> None:
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(lambda: Connection(load), "127.0.0.1", port))[1] for _ in range(connections)]
    await asyncio.wait_for(asyncio.gather(*(each.ended for each in made)), load.until - time.perf_counter() + GIVE_UP_S)


@dataclass(frozen=True)
class Figures:
    rate: float
    p50: float
    p99: float
    failures: int
    service_us: float
    broker_us: float


class Bench:
    """The service, its cluster, and what must be in them."""

    def __init__(self, kafka: KafkaServer, port: int, service: int) -> None:
        self._kafka, self._port = kafka, port
        self._service, self._broker = tree(service), [kafka.pid]
        self._numbers = itertools.count()
        self._accepted: Counter[str] = Counter()
        self._failed = 0
        self.feeds = {user: self._feed(user) for user in USERS}

    def _feed(self, user: str) -> bytes:
        """The feed's answer, once it is known to be right."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP_S)
        connection.request("GET", f"/{user}/feed", headers={"Accept": "application/json"})
        body = connection.getresponse().read()
        connection.close()
        if json.loads(body)["messages"] != row(user):
            raise SystemExit(f"the feed of {user} is wrong: {body!r}")
        return body

    def _posts(self) -> Iterator[Request]:
        for number in self._numbers:
            sender, content = USERS[number % len(USERS)], f"message {number} is about lunch together"
            body = json.dumps({"to": USERS[(number * 7 + 1) % len(USERS)], "content": content}).encode()
            head = (
                f"POST /{sender}/send HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: application/json\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            yield Request(head.encode() + body, content)

    def _gets(self) -> Iterator[Request]:
        for user in itertools.cycle(USERS):
            head = f"GET /{user}/feed HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: application/json\r\n\r\n"
            yield Request(head.encode(), user)

    def post(self, connections: int, seconds: float) -> Figures:
        load = Load(self._posts(), lambda _, status, __: status == 200, time.perf_counter() + seconds)
        figures = self._run(connections, load)
        self._accepted.update(load.answered)
        self._failed += len(load.failed)
        if load.failed:
            print(f"{len(load.failed)} of the POSTs failed, for example {load.failed[0]}", flush=True)
        return figures

    def get(self, connections: int, seconds: float) -> Figures:
        def right(request: Request, status: int, body: bytes) -> bool:
            return status == 200 and body == self.feeds[request.what]

        load = Load(self._gets(), right, time.perf_counter() + seconds)
        figures = self._run(connections, load)
        if load.failed:
            raise SystemExit(f"{len(load.failed)} wrong answers, for example {load.failed[0]}")
        return figures

    def _run(self, connections: int, load: Load) -> Figures:
        started, before = time.perf_counter(), (cpu_s(self._service), cpu_s(self._broker))
        asyncio.run(run(self._port, connections, load))
        passed, done = time.perf_counter() - started, len(load.answered)
        if not done:
            raise SystemExit(f"nothing was answered: {load.failed[:3]}")
        used = cpu_s(self._service) - before[0], cpu_s(self._broker) - before[1]
        p50, p99 = (quantile(load.latencies_ms, share) for share in (0.5, 0.99))
        return Figures(done / passed, p50, p99, len(load.failed), used[0] / done * 1e6, used[1] / done * 1e6)

    def verify(self) -> None:
        """Every accepted message is in message_sent once; what failed may be there, or not."""
        sent = Counter(record.json["Content"] for record in fold.read(self._kafka.address, "message_sent"))
        if lost := self._accepted - sent:
            raise SystemExit(f"{len(lost)} accepted messages are not in message_sent, for example {min(lost)!r}")
        if (more := (sent - self._accepted).total()) > self._failed:
            raise SystemExit(f"message_sent holds {more - self._failed} messages that nobody sent")


def row(user: str) -> list[dict[str, str]]:
    return [
        {"From": "writer", "To": user, "Content": f"message {number} is about dinner in the sun"}
        for number in range(fold.FEED_LENGTH)
    ]


def fill(kafka: KafkaServer) -> None:
    create(kafka, "message_sent", "message_received", "collector-table")
    producer = produce_to(kafka.address)
    for user in USERS:
        value = json.dumps(row(user), separators=(",", ":")).encode()
        producer.send("collector-table", value, user.encode(), partition=fold.partition_of(user, PARTITIONS))
    producer.flush()
    producer.close()


def ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each load lasts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 seconds each, one round: a check, not a measurement")
    options = parser.parse_args()
    seconds, rounds = (2.0, 1) if options.quick else (options.seconds, options.rounds)
    with tempfile.TemporaryDirectory() as directory, processes(Path(directory, "logs")) as started:
        kafka = KafkaServer(Path(directory, "kafka"), kafka_libs(), jvm=["-Xmx512m"])
        try:
            kafka.start()
            fill(kafka)
            port = free_port()
            common = ("--brokers", kafka.address, "--state-dir", f"{directory}/state")
            service = started.gokamsg("serve", "--port", str(port), *common, name="serve")
            eventually("the service is ready", lambda: ready(port), timeout_s=60, interval_s=0.1)
            bench = Bench(kafka, port, service.pid)
            if not options.quick:  # a fresh JVM is slow
                bench.post(64, seconds)
            loads: dict[str, Callable[[], Figures]] = {
                "POST, 1 connection": lambda: bench.post(1, seconds),
                "POST, 64 connections": lambda: bench.post(64, seconds),
                "GET feed, 16 connections": lambda: bench.get(16, seconds),
            }
            results: dict[str, list[Figures]] = {name: [] for name in loads}
            for number in range(rounds):
                for name, load in loads.items():
                    results[name].append(load())
                    print(f"round {number + 1}: {name}: {results[name][-1].rate:,.0f}/s", flush=True)
            bench.verify()
        finally:
            kafka.close()
    print(f"\none gokamsg serve, {rounds} rounds of {seconds:.0f} s; every answer, and message_sent, verified")
    print("median (lowest-highest); latency in ms; CPU in microseconds for each request\n")
    print_table(
        ("", "per second", "p50", "p99", "failed", "CPU service", "CPU broker"),
        [
            (
                name,
                spread([each.rate for each in figures]),
                spread([each.p50 for each in figures], ".1f"),
                spread([each.p99 for each in figures], ".1f"),
                f"{sum(each.failures for each in figures):,}",
                spread([each.service_us for each in figures]),
                spread([each.broker_us for each in figures]),
            )
            for name, figures in results.items()
        ],
    )


if __name__ == "__main__":
    main()
