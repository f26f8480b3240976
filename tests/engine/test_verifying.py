"""Local tables beside their changelogs: what differs is named and removed, what only lags behind is not.

Invariants: a copy that a worker has left behind agrees; after a removal the next start serves what the changelog says;
nothing of a running process is touched.
"""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from gokamsg.engine import (
    VIEWS,
    ClientConfig,
    GroupGraph,
    Input,
    Int64,
    LockedSlot,
    Persist,
    String,
    TableCheck,
    View,
    define_group,
    verify_tables,
)
from gokamsg.engine.clock import Clock
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.kafka_cluster import KafkaCluster
from tests.engine.kafka_scene import PARTITIONS, Scene
from tests.kafka_server import KafkaCluster as Server
from tests.plain_clients import plain_producer

KEYS = [f"key {number}" for number in range(200)]


@pytest.fixture
def scene(kafka_cluster: Server, tmp_path: Path) -> Scene:
    return Scene(kafka_cluster.address, tmp_path / "state")


@pytest.fixture
def graph(kafka_cluster: Server, fresh_name: Callable[[str], str]) -> GroupGraph:
    """Counts each key's records."""
    topic = fresh_name("verify")
    kafka_cluster.create_topics({topic: {"num_partitions": PARTITIONS}})

    def count(context: Any, value: str) -> None:
        if value == "forget":
            context.delete()
        else:
            context.set_value((context.value() or 0) + 1)

    return define_group(f"{topic}-group", Input(topic, String(), count), Persist(Int64()))


def _count(scene: Scene, graph: GroupGraph, records: Iterable[tuple[str, str]]) -> None:
    """A worker that handles these records, and stops."""
    wanted = list(records)
    scene.produce(graph.input_streams[0].topic, wanted)
    with scene.running(graph) as running:
        running.wait_at_work()
        running.caught_up(len(wanted))


def _verify(scene: Scene, *groups: str) -> list[TableCheck | LockedSlot]:
    return list(verify_tables(ClientConfig(scene.address), scene.state_dir, groups))


def _checks(scene: Scene, *groups: str) -> dict[int, TableCheck]:
    found = [one for one in _verify(scene, *groups) if isinstance(one, TableCheck)]
    assert not list(scene.state_dir.glob("*/.verify")), "temporary files are left"
    return {check.partition: check for check in found}


def _file(scene: Scene, graph: GroupGraph, partition: int) -> Path:
    assert graph.group_table is not None
    [path] = scene.state_dir.glob(f"*/{graph.group}/0/{graph.group_table.topic}.{partition}")
    return path


def _alter(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    connection = sqlite3.connect(path)
    try:
        for sql, values in statements:
            assert connection.execute(sql, values).rowcount == 1, sql
        connection.commit()
    finally:
        connection.close()


def _of(partition: int) -> list[bytes]:
    return [key.encode() for key in KEYS if partition_of(key.encode(), PARTITIONS) == partition]


def test_rows_altered_by_hand_are_counted_and_the_next_worker_serves_the_right_ones(
    scene: Scene, graph: GroupGraph
) -> None:
    _count(scene, graph, [*((key, "go") for key in KEYS), *((key, "go") for key in KEYS[:50]), (KEYS[60], "forget")])
    before = _checks(scene, graph.group)
    assert {number: check.outcome for number, check in before.items()} == dict.fromkeys(range(PARTITIONS), "agrees")
    assert sum(check.rows for check in before.values()) == len(KEYS) - 1
    changed, removed, also_removed = _of(1)[:3]
    path = _file(scene, graph, 1)
    _alter(
        path,
        ("UPDATE rows SET value = ? WHERE key = ?", (b"77", changed)),
        ("DELETE FROM rows WHERE key = ?", (removed,)),
        ("DELETE FROM rows WHERE key = ?", (also_removed,)),
        ("INSERT INTO rows VALUES (?, ?)", (b"nobody", b"1")),
        # As somebody types them: text, and no key at all. Both sort before every row.
        ("INSERT INTO rows VALUES (?, ?)", ("typed", "1")),
        ("INSERT INTO rows VALUES (NULL, ?)", (b"1",)),
    )
    after = _checks(scene, graph.group)
    assert {number for number, check in after.items() if check.outcome == "agrees"} == set(range(PARTITIONS)) - {1}
    wrong = after[1]
    assert (wrong.outcome, wrong.missing, wrong.extra, wrong.different) == ("removed", 2, 3, 1)
    assert wrong.finding == "rows that differ from its changelog: 2 missing, 3 extra, 1 different"
    assert not path.exists()
    assert set(_checks(scene, graph.group)) == set(range(PARTITIONS)) - {1}
    with scene.running(graph) as running:
        running.wait_at_work()
        for key in (changed, removed, also_removed):
            name = key.decode()
            assert running.processor.get(name) == (2 if name in KEYS[:50] else 1)
        assert running.processor.get("nobody") is None
    assert {check.outcome for check in _checks(scene, graph.group).values()} == {"agrees"}


def test_a_copy_that_lags_behind_agrees_unless_a_row_differs_that_it_will_not_read_again(
    scene: Scene, graph: GroupGraph, tmp_path: Path
) -> None:
    _count(scene, graph, [(key, "go") for key in KEYS])
    kept = tmp_path / "kept"
    shutil.copytree(scene.state_dir, kept)
    fresh, deleted, untouched = _of(0)[0], _of(0)[1], _of(0)[2]
    _count(scene, graph, [(fresh.decode(), "go"), (deleted.decode(), "forget"), ("new", "go")])
    shutil.rmtree(scene.state_dir)
    shutil.copytree(kept, scene.state_dir)
    assert {check.outcome for check in _checks(scene, graph.group).values()} == {"agrees"}
    path = _file(scene, graph, 0)
    _alter(path, ("UPDATE rows SET value = ? WHERE key = ?", (b"77", fresh)))
    assert _checks(scene, graph.group)[0].outcome == "agrees", "the next start reads that row again"
    _alter(path, ("UPDATE rows SET value = ? WHERE key = ?", (b"77", untouched)))
    wrong = _checks(scene, graph.group)[0]
    assert (wrong.outcome, wrong.missing, wrong.extra, wrong.different) == ("removed", 0, 0, 1)


def test_the_slot_of_a_running_worker_is_named_and_left_alone(scene: Scene, graph: GroupGraph) -> None:
    _count(scene, graph, [(key, "go") for key in KEYS])
    with scene.running(graph) as running:
        running.wait_at_work()
        assert _verify(scene, graph.group) == [LockedSlot(group=graph.group, slot=0)]
        assert running.processor.get(KEYS[0]) == 1
    assert {check.outcome for check in _checks(scene, graph.group).values()} == {"agrees"}


def test_files_that_the_next_start_would_not_trust_are_removed(scene: Scene, graph: GroupGraph) -> None:
    _count(scene, graph, [(key, "go") for key in KEYS])
    paths = [_file(scene, graph, number) for number in range(4)]
    _alter(paths[0], ("UPDATE meta SET value = ? WHERE key = 'position'", (10_000,)))
    _alter(paths[1], ("UPDATE meta SET value = ? WHERE key = 'topic'", ("another",)))
    paths[2].write_bytes(b"no database" * 1000)
    paths[3].with_name(paths[3].name.replace(".3", ".77")).write_bytes(b"")
    found = _checks(scene, graph.group)
    assert {number: check.outcome for number, check in found.items()} == {
        **dict.fromkeys((0, 1, 2), "removed"),
        3: "agrees",
        77: "left",
    }
    assert found[0].finding.startswith("it is at position 10000, and its changelog has 0 to ")
    assert found[1].finding == "it belongs to an earlier topic of that name"
    assert found[2].finding == "it is damaged"
    assert found[77].finding.startswith("its topic, or that partition of it, does not exist")
    assert [path.exists() for path in paths] == [False, False, False, True]


def test_a_views_copy_is_compared_with_the_same_reading(scene: Scene, graph: GroupGraph) -> None:
    _count(scene, graph, [(key, "go") for key in KEYS])
    assert graph.group_table is not None
    table = graph.group_table.topic
    view = View(ClientConfig(scene.address), table, Int64(), storage_dir=scene.state_dir)
    view.start()
    assert view.wait_running(30)
    view.stop()
    [path] = scene.state_dir.glob(f"*/{VIEWS}/0/{table}.2")
    _alter(path, ("DELETE FROM rows WHERE key = ?", (_of(2)[0],)))
    progress: list[tuple[int, int]] = []
    found = list(
        verify_tables(
            ClientConfig(scene.address),
            scene.state_dir,
            [graph.group, VIEWS],
            on_progress=lambda *at: progress.append(at),
        )
    )
    wrong = [one for one in found if isinstance(one, TableCheck) and one.outcome != "agrees"]
    assert [(one.group, one.partition, one.outcome, one.missing) for one in wrong] == [(VIEWS, 2, "removed", 1)]
    assert len(found) == 2 * PARTITIONS
    read, total = progress[-1]
    assert read == total >= len(KEYS)


@pytest.mark.any_broker("apache")
def test_a_copy_is_not_judged_while_a_transaction_on_its_changelog_stays_open(scene: Scene, graph: GroupGraph) -> None:
    """What lies below the changelog's end and is not decided yet may be what a dead owner has committed."""
    _count(scene, graph, [(key, "go") for key in KEYS])
    assert graph.group_table is not None
    cluster = KafkaCluster(ClientConfig(scene.address))
    cluster.clock = Clock(monotonic=lambda: time.monotonic() * 10)  # its patience is 3 s
    producer = plain_producer(scene.address, transactional_id=f"{graph.group}-open")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(graph.group_table.topic, key=b"key 1", value=b"9", partition=1).get(timeout=20)
        found = [
            check for check in verify_tables(cluster, scene.state_dir, [graph.group]) if isinstance(check, TableCheck)
        ]
        assert [check.outcome for check in found] == ["agrees", "left", "agrees", "agrees"]
        assert found[1].finding.startswith("a transaction on its changelog does not end")
        assert _file(scene, graph, 1).exists()
        producer.abort_transaction()
    finally:
        producer.close()
    assert {check.outcome for check in _checks(scene, graph.group).values()} == {"agrees"}
