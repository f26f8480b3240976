"""One worker of the group that benchmarks/growth.py measures, written with the engine's public names alone.

table   each message is counted and summed up in its key's row, which always has 100 bytes
pass    each message is emitted as it came
"""

import argparse
import signal
from pathlib import Path
from typing import Any

from gokamsg.engine import (
    Bytes,
    ClientConfig,
    Context,
    GroupGraph,
    Input,
    Output,
    Persist,
    Processor,
    ProcessorOptions,
    define_group,
)

GROUP, INPUT, TABLE, OUTPUT = "growth", "growth_in", "growth-table", "growth_out"
DIGITS = 12
ROW_BYTES = 100


def message(number: int, size: int) -> bytes:
    return b"%0*d" % (DIGITS, number) + b"." * (size - DIGITS)


def row(count: int, total: int) -> bytes:
    return b"%0*d%0*d" % (DIGITS, count, 2 * DIGITS, total) + b"." * (ROW_BYTES - 3 * DIGITS)


def fold(context: Context, value: bytes) -> None:
    """The row of the key counts and sums up its messages."""
    before = context.value()
    count, total = (0, 0) if before is None else (int(before[:DIGITS]), int(before[DIGITS : 3 * DIGITS]))
    context.set_value(row(count + 1, total + int(value[:DIGITS])))


def pass_on(context: Context, value: bytes) -> None:
    context.emit(OUTPUT, context.key(), value)


def graph(mode: str) -> GroupGraph:
    if mode == "table":
        return define_group(GROUP, Input(INPUT, Bytes(), fold), Persist(Bytes()))
    return define_group(GROUP, Input(INPUT, Bytes(), pass_on), Output(OUTPUT, Bytes()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--mode", choices=("table", "pass"), required=True)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=NUMBER", help="of ProcessorOptions")
    options = parser.parse_args()
    knobs: dict[str, Any] = {}
    for name, _, number in (option.partition("=") for option in options.option):
        knobs[name] = int(number) if number.isdigit() else float(number)
    processor = Processor(ClientConfig(options.brokers), graph(options.mode), ProcessorOptions(options.state, **knobs))
    signal.signal(signal.SIGTERM, lambda *_: processor.stop())
    processor.run()


if __name__ == "__main__":
    main()
