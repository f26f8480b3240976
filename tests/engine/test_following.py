"""Joins and lookups of a worker without input: a change is there at once, whatever the worker waits for.

Such a worker wakes up once a second by itself; here once a minute, so that nothing comes about that way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from gokamsg.engine import ClientConfig
from gokamsg.engine.clients import GroupConsumer
from gokamsg.engine.codec import String
from gokamsg.engine.context import Context
from gokamsg.engine.graph import GroupGraph, Input, Join, Lookup, Output, Persist, define_group
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.quarantine.client import QuarantineClient
from gokamsg.engine.worker import Worker
from tests.engine.kafka_scene import PARTITIONS, Running, Scene, said
from tests.engine.test_processor import scene, topic  # noqa: F401 - fixtures
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer

TABLE = {"configs": {"cleanup.policy": "compact"}}


@pytest.fixture(autouse=True)
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gokamsg.engine.worker.IDLE_WAIT_S", 60.0)


class Changes:
    """Writes to two tables, and waits until a worker of `graph` has it."""

    def __init__(self, graph: GroupGraph, producer: KafkaProducer, joined: str, looked: str) -> None:
        self.graph = graph
        self._producer = producer
        self._joined = joined
        self._looked = looked
        self._written = {joined: 0, looked: 0}

    def write(self, partitions: Sequence[int] = range(PARTITIONS), *, to_both: bool = True) -> None:
        for table in (self._joined, self._looked) if to_both else (self._joined,):
            for partition in partitions:
                self._producer.send(table, key=b"key", value=b"value", partition=partition).get(timeout=20)
                self._written[table] += 1

    def followed_by(self, running: Running) -> None:
        eventually("the changes are there", lambda: self._applied(running) == self._written, interval_s=0.002)

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
    with closing(plain_producer(scene.address)) as producer:
        yield Changes(graph, producer, joined, looked)


def _nothing(context: Context, value: str) -> None:
    pass


def test_an_idle_worker_has_each_change_at_once(scene: Scene, changes: Changes) -> None:  # noqa: F811
    """Also the one right behind a change that ended the fetch which was under way."""
    with scene.running(changes.graph) as running:
        running.wait_at_work()
        for turn in range(20):
            changes.write([turn % PARTITIONS])
            changes.followed_by(running)


def test_a_worker_that_has_begun_to_run_follows(scene: Scene, changes: Changes) -> None:  # noqa: F811
    """What it has restored from is not followed by itself."""
    for _ in range(4):
        changes.write()
        with scene.running(changes.graph) as running:
            running.wait_at_work()
            changes.write()
            changes.followed_by(running)


def test_partitions_that_are_taken_over_are_followed_at_once(
    scene: Scene,  # noqa: F811
    changes: Changes,
    tmp_path: Path,
) -> None:
    """The fetch that is parked at the broker does not ask for them."""
    partitions: Callable[[Running], int] = lambda running: len(running.processor.status().partitions)  # noqa: E731
    with scene.running(changes.graph, state_dir=tmp_path / "first") as first:
        first.wait_at_work()
        with scene.running(changes.graph, state_dir=tmp_path / "second") as second:
            # Left to itself kafka-python tells of a rebalance after 5 s.
            halves = lambda: partitions(first) == partitions(second) == PARTITIONS // 2  # noqa: E731
            eventually("each has its half", halves, timeout_s=4.0)
            first.processor.stop()
            eventually("the second has all", lambda: partitions(second) == PARTITIONS, timeout_s=4.0)
            changes.write(to_both=False)  # what is looked up is asked for: a change of it would end that fetch
            changes.followed_by(second)


def test_an_idle_worker_does_a_quarantine_command_at_once(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Callable[[str], str],
) -> None:
    """Commands are read from the first parked record on, beside a table whose fetch waits at the broker for 5 s."""
    source, joined = topic("in"), topic("joined", **TABLE)
    graph = define_group(fresh_name("group"), Input(source, String(), _refuse), Join(joined, String()))
    with scene.running(graph):
        scene.produce(source, [("Ann", "bad")])
        with QuarantineClient(ClientConfig(scene.address), graph.group) as quarantine:
            (record,) = eventually("it is parked", quarantine.records, timeout_s=20)
            assert quarantine.drop(record, 3.0)


def test_a_worker_says_that_a_joined_table_is_gone_and_follows_the_next_of_its_name(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    kafka_cluster: KafkaCluster,
    fresh_name: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on with the rows that it has; that these get old must not be silent."""
    source, joined, sink = topic("in"), topic("joined", **TABLE), topic("out")
    graph = define_group(
        fresh_name("group"),
        Input(source, String(), lambda context, value: context.emit(sink, value, str(context.join(joined)))),
        Join(joined, String()),
        Output(sink, String()),
    )
    scene.produce(joined, [("Ann", "old")])
    with scene.running(graph) as running, kafka_cluster.admin() as admin:
        running.wait_at_work()
        admin.delete_topics([joined])
        eventually("it is said", lambda: said(caplog), timeout_s=30)
        scene.produce(source, [("Ann", "1")])
        eventually("input is handled", lambda: scene.read(sink) == [("1", b"old")], timeout_s=20, interval_s=0.2)
        kafka_cluster.create_topics({joined: {"num_partitions": PARTITIONS, "replication_factor": 1, **TABLE}})
        scene.produce(joined, [("Ann", "new")])
        eventually("that is said too", lambda: len(said(caplog)) == 2, timeout_s=30)

        def joins_see_the_new_one() -> bool:
            scene.produce(source, [("Ann", "2")])
            return ("2", b"new") in scene.read(sink)

        eventually("joins see the new one", joins_see_the_new_one, timeout_s=20, interval_s=0.2)
    assert said(caplog) == [
        f"{joined}/0 has no leader, or its topic was deleted; trying again until one answers",
        "the brokers answer again; going on",
    ]


USERS = [user for user in map("user {}".format, range(40)) if partition_of(user.encode(), PARTITIONS)]
LATE = next(user for user in map("late {}".format, range(40)) if not partition_of(user.encode(), PARTITIONS))


class Slow:
    """A group whose callback takes its time, and an input that takes it far longer than any test."""

    def __init__(self, group: str, source: str, joined: str) -> None:
        self.graph = define_group(
            group, Input(source, String(), self._handle), Persist(String()), Join(joined, String())
        )
        self.handled = 0
        self.partitions: set[int] = set()
        self.seen: set[str | None] = set()
        self.late: list[str] = []
        self._joined = joined

    def _handle(self, context: Context, value: str) -> None:
        if value == "bad":
            raise ValueError("no")
        if value.startswith("late"):
            self.late.append(value)
            return
        time.sleep(0.005)  # the slow callback itself; nothing is waited for
        self.handled += 1
        self.partitions.add(context.partition())
        self.seen.add(context.join(self._joined))
        context.set_value(value)


@pytest.fixture
def slow(scene: Scene, topic: Any, fresh_name: Callable[[str], str]) -> Iterator[Slow]:  # noqa: F811
    """Minutes of records in every partition but one, all in one poll; Ann's is bad."""
    source, joined = topic("in"), topic("joined", **TABLE)
    slow = Slow(fresh_name("group"), source, joined)
    good = [(USERS[number % len(USERS)], str(number)) for number in range(20_000)]
    scene.produce(source, [("Ann", "bad"), *good])
    yield slow
    assert slow.handled < len(good), "the worker was through with its input: it has to be longer"


def test_a_busy_worker_does_commands_follows_tables_and_fills_its_files(
    scene: Scene,  # noqa: F811
    slow: Slow,
    tmp_path: Path,
) -> None:
    """While one poll keeps it busy for minutes."""
    with scene.running(slow.graph, state_dir=tmp_path):
        with QuarantineClient(ClientConfig(scene.address), slow.graph.group) as quarantine:
            (record,) = eventually("it is parked", quarantine.records, timeout_s=20)
            assert quarantine.drop(record, 15.0)
        scene.produce(slow.graph.joint_tables[0].topic, [(user, "new") for user in USERS])
        eventually("the callback sees what is joined", lambda: "new" in slow.seen, timeout_s=15)
        eventually("each partition has its turn", lambda: len(slow.partitions) == PARTITIONS - 1, timeout_s=15)
        files = lambda: list(tmp_path.rglob(f"{slow.graph.group}-table.*"))  # noqa: E731
        eventually("a file is made for the table", files, timeout_s=15)


def test_a_busy_worker_looks_after_its_other_partitions(scene: Scene, slow: Slow, tmp_path: Path) -> None:  # noqa: F811
    """What comes there is handled in seconds, again and again, and in order."""
    with scene.running(slow.graph, state_dir=tmp_path):
        eventually("it is at work", lambda: slow.handled > 0, timeout_s=20)
        said = [f"late {number}" for number in range(6)]
        for number in range(0, len(said), 2):
            scene.produce(slow.graph.input_streams[0].topic, [(LATE, value) for value in said[number : number + 2]])
            eventually("it is handled", lambda number=number: slow.late == said[: number + 2], timeout_s=15)


def test_a_busy_worker_gives_another_one_its_part_at_once(scene: Scene, slow: Slow, tmp_path: Path) -> None:  # noqa: F811
    """And is not put out of the group for that it does not poll."""
    with scene.running(slow.graph, state_dir=tmp_path / "first") as first:
        eventually("it is at work", lambda: slow.handled > 0, timeout_s=20)
        with scene.running(slow.graph, state_dir=tmp_path / "second") as second:
            eventually(
                "both have partitions",
                lambda: first.processor.stats().group and second.processor.stats().group,
                timeout_s=15,
            )
            first.wait_at_work(timeout_s=15)
            second.wait_at_work(timeout_s=15)


def test_a_worker_that_waits_for_its_group_rests_meanwhile(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member that goes on living but never polls may hold up the others for minutes."""
    turns, turn = 0, Worker.turn

    def count(worker: Worker) -> None:
        nonlocal turns
        turns += 1
        turn(worker)

    monkeypatch.setattr(Worker, "turn", count)
    graph = define_group(fresh_name("group"), Input(topic("in"), String(), _nothing))
    config = ClientConfig(scene.address)
    with closing(GroupConsumer(config, group=graph.group, topics=[graph.input_streams[0].topic])) as holder:
        holder.join_as("holder")
        eventually("it has joined", lambda: holder.poll(0.1) == {} and holder.events())
        with scene.running(graph) as running:
            eventually("it says what it waits for", lambda: running.processor.status().notice, timeout_s=20)
            assert turns < 100
            holder.leave()
            running.wait_at_work(timeout_s=5.0)


def _refuse(context: Context, value: str) -> None:
    raise ValueError("no")
