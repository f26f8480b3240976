"""How soon a worker that was killed is at work again, with its state on disk.

    python -m benchmarks.restart [--roles filter,collector] [--delays 0,40] [--kills 5] [--quick]

One worker of each role runs on an embedded broker in this process, which answers every request so many milliseconds
late. Each is killed (kill -9) in turn and started again by its command; the time runs from the kill until the command
says that the worker runs with all its partitions, and so holds the command's own pause of 0.1 s. Needs Linux.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import print_table, spread
from gokamsg.broker.control import Delay
from gokamsg.broker.runner import RunningBroker, running_broker
from tests.helpers import Process, eventually, run_gokamsg

REST_S = 10.5  # a worker that ends sooner after its start waits longer for the next one
APIS = range(100)


def late(broker: RunningBroker, delay_ms: float) -> None:
    """From now on it answers so late."""
    for key in APIS if delay_ms else ():
        broker.control.on(key, lambda request, context: Delay(delay_ms / 1000), times=None)


def wait_for_start(process: Process, number: int) -> None:
    """Until the command has said so many times that its worker runs."""

    def begun() -> bool:
        said = [json.loads(line) for line in process.stdout().split("\n")[:-1]]
        running = [status.get("state") == "running" and bool(status.get("partitions")) for status in said]
        return sum(now and not before for before, now in pairwise([False, *running])) >= number

    eventually(f"the worker runs for the {number}. time", begun, timeout_s=60, interval_s=0.005)


def killed(process: Process, kills: int) -> list[float]:
    """The seconds from each kill until the worker runs again."""
    took = []
    wait_for_start(process, 1)
    for number in range(2, kills + 2):
        time.sleep(REST_S)
        began = time.monotonic()
        for worker in process.children():
            os.kill(worker, signal.SIGKILL)
        wait_for_start(process, number)
        took.append(time.monotonic() - began)
    return took


def measure(role: str, delay_ms: float, kills: int, directory: Path) -> list[float]:
    with running_broker(data_dir=directory / "broker") as broker:
        environment = {"GOKAMSG_BROKERS": broker.address, "GOKAMSG_STATE_DIR": str(directory / "state")}
        created = run_gokamsg("topics", "create", env=environment)
        if created.returncode:
            raise SystemExit(str(created))
        late(broker, delay_ms)
        process = Process.gokamsg(
            "process", "--role", role, "--json", env=environment, log_dir=directory, name="process"
        )
        try:
            return killed(process, kills)
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", default="filter,collector")
    parser.add_argument("--delays", default="0,40", help="milliseconds that each answer takes")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one kill of one role each: is it still measured?")
    options = parser.parse_args()
    roles = options.roles.split(",")[: 1 if options.quick else None]
    kills = 1 if options.quick else options.kills
    rows = []
    for role in roles:
        for delay in options.delays.split(","):
            with tempfile.TemporaryDirectory() as directory:
                took = measure(role, float(delay), kills, Path(directory))
            rows.append((role, f"{delay} ms", spread(took, ".2f")))
    print(f"seconds, median (lowest-highest); kills of each: {kills}\n")
    print_table(("role", "answers after", "at work again"), rows)


if __name__ == "__main__":
    main()
