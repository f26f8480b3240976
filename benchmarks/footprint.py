"""What it takes to be there: how soon broker and service are ready, and what they cost while nobody uses them.

    python -m benchmarks.footprint [--rounds 5] [--idle-seconds 30] [--quick]

Each round starts `gokamsg broker` on an empty directory, until it accepts a connection; and `gokamsg up` on data of an
earlier run, until it says that it is ready, asks it by every command of the tutorial, and stops it with Ctrl-C. In the
last round both are left alone for a while, and their CPU is counted. Memory of several processes is their proportional
set size (pages that are shared count once). Needs Linux.
"""

import argparse
import signal
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import cpu_s, print_table, rss_mb, spread, tree
from tests.helpers import Process, eventually, free_port, run_gokamsg

COMMANDS = {
    "send": ("Bob", "Alice", "hello"),
    "feed": ("Alice",),
    "block": ("Bob",),
    "unblock": ("Bob",),
    "translate": ("hello", "hi"),
    "status": (),
}
Figures = defaultdict[str, list[float]]


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size of all of them together."""
    size_kb = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        size_kb += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return size_kb / 1024


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def idle_percent(process: Process, seconds: float) -> float:
    """Of one core."""
    pids = tree(process.pid)
    before, began = cpu_s(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_s(pids) - before) / (time.monotonic() - began)


def broker_round(directory: Path, found: Figures, idle_seconds: float | None) -> None:
    port = free_port()
    began = time.monotonic()
    flags = ["--port", str(port), "--data-dir", str(directory / "data")]
    broker = Process.gokamsg("broker", *flags, log_dir=directory, name="broker")
    try:
        eventually("the broker accepts connections", lambda: accepts(port), interval_s=0.001)
        found["broker: accepts, ms"].append((time.monotonic() - began) * 1000)
        found["broker: RSS, MB"].append(rss_mb([broker.pid], peak=False)[0])
        if idle_seconds is not None:
            found["broker: idle, % of a core"].append(idle_percent(broker, idle_seconds))
    finally:
        broker.terminate()


def up_round(directory: Path, name: str, found: Figures, idle_seconds: float | None) -> None:
    port, broker_port = free_port(), free_port()
    flags = ["--data-dir", str(directory / "data"), "--port", str(port), "--broker-port", str(broker_port)]
    began = time.monotonic()
    everything = Process.gokamsg("up", *flags, log_dir=directory, name=name)
    try:
        everything.wait_line(r"ready in", timeout_s=60)
        found["up: ready, ms"].append((time.monotonic() - began) * 1000)
        for command, arguments in COMMANDS.items():
            done = run_gokamsg(command, *arguments, "--brokers", f"127.0.0.1:{broker_port}")
            if done.returncode:
                raise SystemExit(f"{command} failed: {done.stderr}")
            found[f"{command}: answers, ms"].append(done.seconds * 1000)
        found["up: PSS, MB"].append(pss_mb(tree(everything.pid)))
        if idle_seconds is not None:
            found["up: idle, % of a core"].append(idle_percent(everything, idle_seconds))
    finally:
        began = time.monotonic()
        everything.signal(signal.SIGINT)
        everything.wait()
        found["up: stopped by Ctrl-C, ms"].append((time.monotonic() - began) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="one round, idle for 2 s: a check, not a measurement")
    options = parser.parse_args()
    rounds, idle_seconds = (1, 2.0) if options.quick else (options.rounds, options.idle_seconds)
    found: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        up_round(Path(directory), "first", defaultdict(list), None)  # it makes the data
        for number in range(rounds):
            last = idle_seconds if number == rounds - 1 else None
            broker_round(Path(directory, f"broker-{number}"), found, last)
            up_round(Path(directory), f"up-{number}", found, last)
            print(f"round {number + 1} of {rounds}", flush=True)
    print(f"\nmedian (lowest-highest) of {rounds} rounds; idle over {idle_seconds:.0f} s\n")
    print_table(("", "figure"), [(name, spread(values, ",.1f")) for name, values in sorted(found.items())])


if __name__ == "__main__":
    main()
