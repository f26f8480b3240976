"""What bad records cost the good ones: the filter with and without records that go into quarantine, in the same run.

    python -m benchmarks.quarantine [--quick] [--on apache|embedded|both]

Work: 200,000 seeded messages lie in the filter's input; or the same with 1,000 records among them that are no messages,
of 50 keys of their own, spread evenly. Rounds of both alternate, each with a new group and topics made anew. Rates are
of the good messages, taken between 10 and 90 % of the output. In every round the output is compared with an independent
computation, and the quarantine has to hold every bad record, and nothing else. Needs Linux, and for Apache Kafka Java
and Maven (or GOKAMSG_KAFKA_LIBS).
"""

import argparse
import contextlib
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import print_table, spread
from benchmarks.roles import ROLES, Role, Server, Work, fill_filter
from benchmarks.throughput import BROKERS, CONTENDERS, Round, compared, run_round, server_of
from tests.helpers import eventually
from tests.system import fold

FILTER = ROLES["filter"]
PARKED = f"{FILTER.group}-quarantine"
COMMANDS = f"{PARKED}-commands"
CLEAN, WITH_BAD = "clean", "with bad records"


def role_with(bad: int, keys: int) -> Role:
    """The filter, with so many bad records in its input."""

    def check(address: str, messages: int, expected: Any) -> list[str]:
        found = {(record.partition, record.key) for record in fold.read(address, PARKED) if record.value is not None}
        wrong = [] if len(found) == bad else [f"{len(found):,} records are in quarantine, of {bad:,}"]
        return wrong or FILTER.check(address, messages, expected)

    return replace(FILTER, fill=partial(fill_filter, bad=bad, bad_keys=keys), check=check)


def forget(kafka: Server) -> None:
    """Removes what the last round has left in quarantine."""
    with kafka.admin() as admin:
        if there := sorted({*admin.list_topics()} & {PARKED, COMMANDS}):
            admin.delete_topics(there)
        eventually("the quarantine is gone", lambda: not {*admin.list_topics()} & {PARKED, COMMANDS})


def measure(kafka: Server, bad: int, options: argparse.Namespace, scratch: Path, name: str) -> Round:
    forget(kafka)
    work = Work.fill(kafka, role_with(bad, options.keys), options.messages, options.seed)
    everything = replace(work, messages=options.messages + bad)
    figures = run_round(kafka, everything, CONTENDERS["gokamsg"], scratch, name)
    good = options.messages / everything.messages
    return replace(figures, rate=figures.rate * good, client_us=figures.client_us / good)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000, help="good ones")
    parser.add_argument("--bad", type=int, default=1_000)
    parser.add_argument("--keys", type=int, default=50, help="of the bad ones")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them that are not measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20,000 messages, one round: a check, not a measurement")
    parser.add_argument("--on", choices=(*BROKERS, "both"), default="apache", help="which broker it runs on")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.bad, options.rounds, options.warm_up = 20_000, 100, 1, 0
    results: dict[tuple[str, str], list[Round]] = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        for kind in list(BROKERS) if options.on == "both" else [options.on]:
            kafka = server_of(kind, Path(directory, kind))
            stack.callback(kafka.close)
            kafka.start()
            for number in range(-options.warm_up, options.rounds):
                # In turns: what a machine does beside the measurement falls on both.
                for name, bad in ((CLEAN, 0), (WITH_BAD, options.bad))[:: 1 if number % 2 else -1]:
                    scratch = Path(directory, f"{kind}-state")
                    scratch.mkdir(exist_ok=True)
                    figures = measure(kafka, bad, options, scratch, f"{kind}-{number}-{bad}")
                    if number < 0:  # Kafka still compiles, and more of it where there are bad records
                        continue
                    results.setdefault((kind, name), []).append(figures)
                    rate = f"{figures.rate:,.0f} good messages/s, output verified"
                    print(f"round {number + 1}: {name}, {BROKERS[kind]}: {rate}", flush=True)
    report(results, options)


def report(results: dict[tuple[str, str], list[Round]], options: argparse.Namespace) -> None:
    print(
        f"\n{options.messages:,} messages, {options.bad:,} bad records of {options.keys} keys, "
        f"{options.rounds} rounds, seed {options.seed}"
    )
    print("median (lowest-highest); CPU in microseconds for each good message; of clean: ratios of the same round\n")
    rows = []
    for (kind, name), rounds in results.items():
        clean = results[kind, CLEAN] if name != CLEAN else None
        rows.append(
            (
                name,
                BROKERS[kind],
                spread([row.rate for row in rounds]),
                compared(rounds, clean, lambda row: row.rate),
                spread([row.client_us for row in rounds], ".1f"),
                compared(rounds, clean, lambda row: row.client_us),
                spread([row.rss_mb for row in rounds]),
            )
        )
    print_table(("", "on", "good per second", "of clean", "CPU client", "of clean", "RSS MB"), rows)


if __name__ == "__main__":
    main()
