"""100 messages a second through filter and collector; then from POST to feed, with the service. All exactly-once.

    python -m benchmarks.latency [--rate 100] [--seconds 20] [--quick]

First filter and collector run alone, and a message's latency is from its produce to message_sent until its row is
committed in collector-table (benchmarks/pipeline.py). The same load goes before, until Kafka's compilers rest: a fresh
Kafka needs twice the CPU, half of it to compile. That takes half a minute to two minutes.

Then all roles run, with the service. Three writers post to a reader each, on schedule and in order. A message's latency
runs from the start of its POST to the end of the first GET of the reader's feed that shows it or a later one. One
reader asks, and waits for news as the page does (Prefer: wait), so the figures are a third of the messages'. Afterwards
the idle processes' CPU and memory are taken. Needs Java and Maven (or GOKAMSG_KAFKA_LIBS), and Linux.
"""

import argparse
import http.client
import itertools
import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import pipeline
from benchmarks.measure import WarmUp, cpu_s, print_table, quantile, rss_mb, tree
from benchmarks.roles import create
from tests.helpers import eventually, free_port, processes
from tests.kafka_server import KafkaServer, kafka_libs

GIVE_UP_S = 30.0
WARM_UP_STEP_S = 2.0
PAIRS = 3
ROLES = ("blocker", "translator", "collector", "filter", "detector")


class Service:
    """The HTTP service, over one kept connection for each thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = threading.local()

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str, str]:
        """Status, body and entity tag of the answer."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP_S)
        try:
            connection.request(method, path, body, {"Accept": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers.get("ETag", "")
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            connection.close()
            raise

    def ready(self) -> bool:
        return self.request("GET", "/-/ready")[0] == 200

    def post(self, writer: str, reader: str, content: str) -> None:
        status, text, _ = self.request("POST", f"/{writer}/send", json.dumps({"to": reader, "content": content}))
        if status != 200:
            raise SystemExit(f"POST was answered {status}: {text}")

    def newest(self, reader: str, tag: str) -> tuple[int, str]:
        """The number of the newest message in the feed, and its tag, once it is another one than `tag`; -1 where that
        takes too long."""
        _, text, found = self.request("GET", f"/{reader}/feed", **{"If-None-Match": tag, "Prefer": "wait=1"})
        numbers = re.findall(r'"message (\d+)"', text)
        return (int(numbers[-1]) if numbers else -1), found


@dataclass
class Pair:
    """A writer and a reader: when each message was posted, acknowledged and seen, by number."""

    name: str
    posted: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    _tag: str = ""

    def write(self, service: Service, first: float, interval_s: float, until: float) -> None:
        for number in itertools.count():
            due = first + number * interval_s
            if due >= until:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            self.posted.append(time.monotonic())
            service.post(f"writer-{self.name}", f"reader-{self.name}", f"message {number}")
            self.acknowledged.append(time.monotonic())

    def look(self, service: Service) -> None:
        newest, self._tag = service.newest(f"reader-{self.name}", self._tag)
        now = time.monotonic()
        self.seen += [now] * (newest + 1 - len(self.seen))


def load(service: Service, name: str, rate: float, seconds: float) -> list[Pair]:
    """Writes on schedule, and watches the first pair's feed until everything was seen."""
    pairs = [Pair(f"{name}-{number}") for number in range(PAIRS)]
    started = time.monotonic()
    writers = [
        threading.Thread(target=pair.write, args=(service, started + n / rate, PAIRS / rate, started + seconds))
        for n, pair in enumerate(pairs)
    ]
    for writer in writers:
        writer.start()
    watched = pairs[0]
    while True:
        if not any(w.is_alive() for w in writers) and len(watched.seen) == len(watched.posted):
            return pairs
        if time.monotonic() > started + seconds + GIVE_UP_S:
            raise SystemExit(f"not every message is in the feed {GIVE_UP_S} s after the last one was sent")
        watched.look(service)


class Usage:
    """CPU and memory of named processes, from one moment to another."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._trees = {name: tree(pid) for name, pid in pids.items()}
        self._before = {name: cpu_s(each) for name, each in self._trees.items()}
        self._started = time.monotonic()

    def shares(self) -> dict[str, str]:
        """Each one's share of a core since the start."""
        passed = time.monotonic() - self._started
        return {
            name: f"{(cpu_s(each) - self._before[name]) / passed * 100:.1f} %" for name, each in self._trees.items()
        }

    def memory(self) -> dict[str, str]:
        return {name: ", ".join(f"{mb:,.0f}" for mb in rss_mb(each, peak=False)) for name, each in self._trees.items()}


def quantiles(values: list[float]) -> list[str]:
    return [*(f"{quantile(values, share):,.1f}" for share in (0.5, 0.9, 0.99)), f"{max(values):,.1f}"]


def through_filter_and_collector(
    kafka: KafkaServer, directory: str, rate: float, seconds: float, longest_warm_up_s: float
) -> list[float]:
    create(kafka, "message_sent", "message_received", "collector-table")
    with processes(Path(directory, "logs-alone")) as started:
        common = ("--brokers", kafka.address, "--state-dir", f"{directory}/alone")
        workers = [started.gokamsg("process", "--role", role, *common, name=role) for role in ("filter", "collector")]
        found = pipeline.measure(kafka.address, rate, seconds, WarmUp(kafka.pid, longest_warm_up_s))
        for worker in workers:
            worker.terminate(30)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=300.0, help="seconds until Kafka's compilers rest, at most")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="5 seconds each: a check, not a measurement")
    options = parser.parse_args()
    seconds, idle_seconds, warm_up_s = options.seconds, options.idle_seconds, options.warm_up
    if options.quick:
        seconds, idle_seconds, warm_up_s = 5.0, 5.0, 5.0
    with TemporaryDirectory() as directory, processes(Path(directory, "logs")) as started:
        kafka = KafkaServer(Path(directory, "kafka"), kafka_libs(), jvm=["-Xmx512m"])
        kafka.start()
        try:
            through = through_filter_and_collector(kafka, directory, options.rate, seconds, warm_up_s)
            port = free_port()
            common = ("--brokers", kafka.address, "--state-dir", f"{directory}/state")
            workers = {
                role: started.gokamsg("process", "--role", role, *common, "--detect-messages", "1000000000", name=role)
                for role in ROLES
            }
            workers["serve"] = started.gokamsg("serve", "--port", str(port), *common, name="serve")
            service = Service(port)
            eventually("the service is ready", service.ready, timeout_s=60, interval_s=0.1)
            warm_up = WarmUp(kafka.pid, warm_up_s)
            for number in itertools.count():
                if warm_up.over():
                    break
                load(service, f"warm-up-{number}", options.rate, WARM_UP_STEP_S)
            pids = {name: process.pid for name, process in workers.items()} | {"Kafka": kafka.pid}
            usage = Usage(pids)
            pairs = load(service, "measured", options.rate, seconds)
            working = usage.shares()
            time.sleep(3)
            usage = Usage(pids)
            time.sleep(idle_seconds)
            resting, memory = usage.shares(), usage.memory()
        finally:
            kafka.close()
    print(f"{len(through):,} messages at {options.rate:,.0f}/s through filter and collector, milliseconds\n")
    head = ("", "p50", "p90", "p99", "highest")
    print_table(head, [("committed in collector-table", *quantiles(through))])
    print()
    count = sum(len(pair.posted) for pair in pairs)
    first, last = min(pair.posted[0] for pair in pairs), max(pair.posted[-1] for pair in pairs)
    reached = (count - 1) / (last - first)
    print(f"{count:,} messages at {reached:,.0f}/s, all roles exactly-once; milliseconds from the start of the POST\n")
    rows = []
    for name, column, watched in (("acknowledged", "acknowledged", pairs), ("in the feed", "seen", pairs[:1])):
        values = [
            (end - start) * 1000
            for pair in watched
            for start, end in zip(pair.posted, getattr(pair, column), strict=True)
        ]
        rows.append((name, *quantiles(values)))
    print_table(head, rows)
    print(f"\nCPU in shares of one core, idle over {idle_seconds:.0f} s; memory of each process of the command\n")
    print_table(
        ("", "at work", "idle", "RSS MB"), [(name, working[name], resting[name], memory[name]) for name in pids]
    )


if __name__ == "__main__":
    main()
