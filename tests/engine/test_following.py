"""Joins and lookups of a worker without input: a change is there in an instant, whatever the worker waits for.

Such a worker wakes up twice a second by itself. Every test measures some changes and looks at the one in the middle, so
that a machine that is busy elsewhere for a moment fails nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from gokamsg.engine.codec import String
from gokamsg.engine.context import Context
from gokamsg.engine.graph import GroupGraph, Input, Join, Lookup, define_group
from tests.engine.kafka_scene import PARTITIONS, Running, Scene
from tests.engine.test_processor import scene, topic  # noqa: F401 - fixtures
from tests.helpers import eventually

TABLE = {"configs": {"cleanup.policy": "compact"}}
INSTANT_S = 0.2


class Changes:
    """Writes to two tables, and times until a worker of `graph` has it."""

    def __init__(self, graph: GroupGraph, producer: KafkaProducer, joined: str, looked: str) -> None:
        self.graph = graph
        self._producer = producer
        self._joined = joined
        self._looked = looked
        self._written = {joined: 0, looked: 0}

    def timed(self, running: Running) -> float:
        """Seconds for two changes, right after one that ended the fetch that was under way."""
        self._write(self._looked, 0)
        self._seconds(running)
        self._write(self._joined, 1)
        self._write(self._looked, 1)
        return self._seconds(running)

    def timed_everywhere(self, running: Running) -> float:
        """Seconds for a change in every partition."""
        self.write_everywhere()
        return self._seconds(running)

    def write_everywhere(self) -> None:
        for table in (self._joined, self._looked):
            for partition in range(PARTITIONS):
                self._write(table, partition)

    def _write(self, table: str, partition: int) -> None:
        self._producer.send(table, key=b"key", value=b"value", partition=partition).get(timeout=20)
        self._written[table] += 1

    def _seconds(self, running: Running) -> float:
        started = time.monotonic()
        eventually("the changes are there", lambda: self._applied(running) == self._written, interval_s=0.002)
        return time.monotonic() - started

    def _applied(self, running: Running) -> dict[str, int]:
        stats = running.processor.stats()
        return {
            self._joined: sum(partition.joined[self._joined].offset for partition in stats.group.values()),
            self._looked: sum(table.offset for table in stats.lookup[self._looked].values()),
        }


@pytest.fixture
def changes(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Callable[[str], str],
) -> Iterator[Changes]:
    """Two tables and a group that reads them."""
    source, joined, looked = topic("in"), topic("joined", **TABLE), topic("looked", **TABLE)
    graph = define_group(
        fresh_name("group"), Input(source, String(), _nothing), Join(joined, String()), Lookup(looked, String())
    )
    with closing(KafkaProducer(bootstrap_servers=scene.address)) as producer:
        yield Changes(graph, producer, joined, looked)


def _nothing(context: Context, value: str) -> None:
    pass


def middle(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


def test_an_idle_worker_has_each_change_at_once(scene: Scene, changes: Changes) -> None:  # noqa: F811
    with scene.running(changes.graph) as running:
        running.wait_at_work()
        took = [changes.timed(running) for _ in range(9)]
    assert middle(took) < INSTANT_S, took


def test_a_worker_that_has_begun_to_run_follows(scene: Scene, changes: Changes) -> None:  # noqa: F811
    """What it has restored from is not followed by itself."""
    took = []
    for _ in range(5):
        changes.write_everywhere()
        with scene.running(changes.graph) as running:
            running.wait_at_work()
            took.append(changes.timed_everywhere(running))
    assert middle(took) < INSTANT_S, took


def test_partitions_that_are_taken_over_are_followed_at_once(
    scene: Scene,  # noqa: F811
    changes: Changes,
    tmp_path: Path,
) -> None:
    """The fetch that is parked at the broker does not ask for them."""
    took = []
    partitions: Callable[[Running], int] = lambda running: len(running.processor.status().partitions)  # noqa: E731
    with scene.running(changes.graph) as staying:
        staying.wait_at_work()
        for turn in range(3):
            with scene.running(changes.graph, state_dir=tmp_path / str(turn)) as leaving:
                eventually("each has its half", lambda: partitions(staying) == partitions(leaving) == PARTITIONS // 2)
            eventually("the first has all", lambda: partitions(staying) == PARTITIONS, interval_s=0.002)
            took.append(changes.timed_everywhere(staying))
    assert middle(took) < INSTANT_S, took
