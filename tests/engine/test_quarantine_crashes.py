"""Quarantine over crashes, refused and unanswered commits, in memory: nothing lost, doubled or out of order.

Invariant: the rows and the output of a key are those of all its records up to its first bad one; and once that is
mended and the key retried, those of all its records, each once, in order.
"""

import random
from typing import Any

import pytest

from gokamsg.engine import Context, GroupGraph, Input, Output, Persist, String, define_group, quarantine_of
from gokamsg.engine.names import quarantine_commands_of
from gokamsg.engine.quarantine.commands import RETRY, Command
from gokamsg.engine.tester import Tester

KEYS = ("a", "b", "c", "d", "e")
RECORDS = 60


def _graph(broken: set[str]) -> GroupGraph:
    def handle(context: Context, value: str) -> None:
        if value in broken:
            context.emit("out", context.key(), "must not be seen")
            raise ValueError(value)
        context.set_value(f"{context.value() or ''}{value} ")
        context.emit("out", context.key(), value)

    return define_group("group", Input("in", String(), handle), Persist(String()), Output("out", String()))


def _parked(tester: Tester) -> int:
    return sum(not key.startswith("\x00") for key in tester.get_table_keys(quarantine_of("group")))


@pytest.mark.parametrize(
    "trouble", [{"crash_rate": 0.02}, {"trouble_rate": 0.1}, {"crash_rate": 0.01, "trouble_rate": 0.05}], ids=str
)
@pytest.mark.parametrize(
    "options", [{}, {"commit_bytes": 1}, {"commit_age_s": 0.0}], ids=["drained", "small", "each by itself"]
)
def test_trouble_changes_nothing(seed: int, trouble: dict[str, float], options: dict[str, Any]) -> None:
    for number in range(6):
        rng = random.Random(seed + number)
        records = [(rng.choice(KEYS), str(index)) for index in range(RECORDS)]
        broken = set(rng.sample([value for _, value in records], 6))
        with Tester(partitions=3, seed=seed + number, **trouble) as tester:
            tester.emitter("out", String())
            out = tester.new_queue_tracker("out")
            for _ in range(1 + number % 2):
                tester.processor(_graph(broken), on_error="quarantine", **options)
            emitter = tester.emitter("in", String())
            for key, value in records:
                emitter.emit(key, value)
                if rng.random() < 0.3:
                    tester.run(rng.randint(1, 3))
            tester.catchup()
            said = {key: [value for at, value in records if at == key] for key in KEYS}
            before = {
                key: values[: next((n for n, value in enumerate(values) if value in broken), len(values))]
                for key, values in said.items()
            }
            assert _rows(tester) == {key: values for key, values in before.items() if values}
            assert _parked(tester) == RECORDS - sum(map(len, before.values()))

            broken.clear()
            for key in KEYS:
                tester.write(quarantine_commands_of("group"), key.encode(), Command(RETRY, key=key.encode()).encode())
            for _ in range(4000):  # one after the other, between crashes
                tester.run(10)
                if not _parked(tester):
                    break
            tester.catchup()
            assert _rows(tester) == {key: values for key, values in said.items() if values}
            found: dict[str, list[str]] = {}
            for key, value in out.rest():
                found.setdefault(key, []).append(value)
            assert found == {key: values for key, values in said.items() if values}


def _rows(tester: Tester) -> dict[str, list[str]]:
    return {key: str(tester.table_value("group-table", key)).split() for key in tester.get_table_keys("group-table")}
