"""From POST to feed: 100 messages a second through filter, collector and the service, all roles exactly-once.

    python -m benchmarks.latency [--rate 100] [--seconds 20] [--quick]

A message's latency runs from the start of its POST to the end of the first GET of its recipient's feed that shows it;
the feed is asked every few milliseconds, so figures are late by about half of that. Afterwards the idle workers' CPU
and memory are taken. Needs Java and Maven (or GOKAMSG_KAFKA_LIBS), and Linux.
"""

import argparse
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import cpu_s, print_table, quantile, rss_mb, tree
from tests.helpers import Process, eventually, free_port, processes
from tests.kafka_server import KafkaServer, kafka_libs

ASK_EVERY_S = 0.004
GIVE_UP_S = 20.0
RECIPIENTS = 64  # so many that no feed of five loses a message before it is seen
ROLES = ("blocker", "translator", "collector", "filter", "detector")


class Service:
    """The HTTP service, over one kept connection for each thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = threading.local()

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP_S)
        try:
            connection.request(method, path, body, {"Accept": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            connection.close()
            raise

    def ready(self) -> bool:
        return self.request("GET", "/-/ready")[0] == 200

    def deliver(self, number: int) -> tuple[float, float]:
        """Sends one message and waits until its recipient's feed shows it: milliseconds to the answer, to the feed."""
        content = f"message {number} of {time.time_ns()}"
        recipient = f"reader-{number % RECIPIENTS}"
        started = time.monotonic()
        body = json.dumps({"to": recipient, "content": content})
        status, text = self.request("POST", f"/writer-{number % 50}/send", body)
        answered = time.monotonic()
        assert status == 200, f"{status}: {text}"
        while content not in self.request("GET", f"/{recipient}/feed")[1]:
            if time.monotonic() - started > GIVE_UP_S:
                raise SystemExit(f"message {number} is not in the feed of {recipient} after {GIVE_UP_S} s")
            time.sleep(ASK_EVERY_S)
        return (answered - started) * 1000, (time.monotonic() - started) * 1000


def load(service: Service, rate: float, seconds: float) -> tuple[list[tuple[float, float]], float]:
    """Sends on schedule, whatever the answers; the latencies, and the rate that was reached."""
    count = int(rate * seconds)
    with ThreadPoolExecutor(max_workers=64) as pool:
        started = time.monotonic()
        futures = []
        for number in range(count):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            futures.append(pool.submit(service.deliver, number))
        reached = count / (time.monotonic() - started)
        return [future.result() for future in futures], reached


def idle(workers: dict[str, Process], seconds: float) -> list[tuple[str, str, str]]:
    """CPU share and memory of each process while nothing happens."""
    pids = {name: tree(process.pid) for name, process in workers.items()}
    before = {name: cpu_s(of) for name, of in pids.items()}
    started = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - started
    rows = []
    for name, of in pids.items():
        share = (cpu_s(of) - before[name]) / passed * 100
        memory = ", ".join(f"{size:,.0f}" for size in rss_mb(of, peak=False))
        rows.append((name, f"{share:.2f} %", memory))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="5 seconds each: a check, not a measurement")
    options = parser.parse_args()
    seconds, idle_seconds = (5.0, 5.0) if options.quick else (options.seconds, options.idle_seconds)
    with TemporaryDirectory() as directory, processes(Path(directory, "logs")) as started:
        kafka = KafkaServer(Path(directory, "kafka"), kafka_libs(), jvm=["-Xmx512m"])
        kafka.start()
        try:
            port = free_port()
            common = ("--brokers", kafka.address, "--state-dir", f"{directory}/state")
            workers = {
                role: started.gokamsg("process", "--role", role, *common, "--detect-messages", "1000000000", name=role)
                for role in ROLES
            }
            workers["serve"] = started.gokamsg("serve", "--port", str(port), *common, name="serve")
            service = Service(port)
            eventually("the service is ready", service.ready, timeout_s=60, interval_s=0.1)
            eventually("the first message goes through", lambda: service.deliver(0), timeout_s=60)
            load(service, options.rate, 3.0)  # connections, caches
            taken, reached = load(service, options.rate, seconds)
            time.sleep(3)
            resting = idle(workers, idle_seconds)
        finally:
            kafka.close()
    print(f"{len(taken):,} messages at {reached:,.0f}/s, all roles exactly-once; milliseconds from the POST on\n")
    rows = []
    for name, column in (("acknowledged", 0), ("in the feed", 1)):
        values = [row[column] for row in taken]
        rows.append((name, *(f"{quantile(values, share):,.1f}" for share in (0.5, 0.9, 0.99)), f"{max(values):,.1f}"))
    print_table(("", "p50", "p90", "p99", "highest"), rows)
    print(f"\nidle over {idle_seconds:.0f} s (memory: each process of the command)\n")
    print_table(("", "CPU of one core", "RSS MB"), resting)


if __name__ == "__main__":
    main()
