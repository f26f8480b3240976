"""Processors on a real cluster: what callbacks do is there once, whole, and in order, over restarts and rebalances."""

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gokamsg.engine.codec import Int64, String
from gokamsg.engine.context import Context
from gokamsg.engine.graph import GroupGraph, Input, Join, Lookup, Loop, Output, Persist, define_group
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.options import ProcessorOptions
from gokamsg.errors import IdentityError, OffsetsLostError, ProcessingError, TopicError, UsageError
from tests.engine.kafka_scene import PARTITIONS, Scene
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer

Fresh = Callable[[str], str]


@pytest.fixture
def scene(kafka_cluster: KafkaCluster, tmp_path: Path) -> Scene:
    return Scene(kafka_cluster.address, tmp_path / "state")


@pytest.fixture
def topic(kafka_cluster: KafkaCluster, fresh_name: Fresh) -> Callable[..., str]:
    """Makes a topic with a name of its own."""

    def make(prefix: str, **settings: Any) -> str:
        name = fresh_name(prefix)
        kafka_cluster.create_topics({name: {"num_partitions": PARTITIONS, "replication_factor": 1, **settings}})
        return name

    return make


def counting(group: str, source: str, sink: str | None = None) -> GroupGraph:
    """Counts the records of each key; emits each count if there is a sink."""

    def count(context: Context, value: str) -> None:
        total = (context.value() or 0) + 1
        context.set_value(total)
        if sink is not None:
            context.emit(sink, context.key(), f"{value}:{total}")

    return define_group(
        group, Input(source, String(), count), Persist(Int64()), Output(sink, String()) if sink else None
    )


@pytest.mark.goka("processor.run", "processor.stop", "edge: input", "edge: persist", "edge: output")
def test_table_and_output_hold_every_record_once_over_a_restart(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, sink, group = topic("in"), topic("out"), fresh_name("group")
    keys = [f"k{i % 7}" for i in range(500)]
    scene.produce(source, [(key, str(i)) for i, key in enumerate(keys[:300])])
    with scene.running(counting(group, source, sink)) as running:
        running.caught_up(300)
    scene.produce(source, [(key, str(i)) for i, key in enumerate(keys[300:], 300)])
    with scene.running(counting(group, source, sink)) as running:
        running.caught_up(200)
    totals = {key: b"%d" % count for key, count in Counter(keys).items()}
    assert scene.table(f"{group}-table") == totals
    seen: Counter[str] = Counter()
    expected = []
    for i, key in enumerate(keys):
        seen[key] += 1
        expected.append((key, f"{i}:{seen[key]}".encode()))
    emitted = scene.read(sink)
    assert sorted(emitted) == sorted(expected)  # type: ignore[type-var]
    for key in totals:
        assert [value for k, value in emitted if k == key] == [value for k, value in expected if k == key]


@pytest.mark.goka("table: restored before anything is processed", "table: rebuilt when it is lost, damaged or ahead")
def test_a_lost_state_directory_is_rebuilt_from_the_changelog(
    scene: Scene, topic: Any, fresh_name: Fresh, tmp_path: Path
) -> None:
    source, group = topic("in"), fresh_name("group")
    scene.produce(source, [(f"k{i % 50}", "x") for i in range(400)])
    with scene.running(counting(group, source)) as running:
        running.caught_up(400)
    scene.produce(source, [(f"k{i % 50}", "x") for i in range(100)])
    with scene.running(counting(group, source), state_dir=tmp_path / "another") as running:
        running.caught_up(100)
    assert scene.table(f"{group}-table") == {f"k{i}": b"10" for i in range(50)}


@pytest.mark.any_broker("apache")
def test_nothing_is_handled_before_every_transaction_on_the_changelog_is_decided(
    scene: Scene, topic: Any, fresh_name: Fresh, tmp_path: Path
) -> None:
    """A dead owner's last transaction may be committed while its marker has not reached the changelog (KAFKA-10167):
    whoever restored up to the last stable offset would count on without its rows."""
    source, group = topic("in"), fresh_name("group")
    scene.produce(source, [("k", "x")] * 5)
    with scene.running(counting(group, source)) as running:
        running.caught_up(5)
    with closing(plain_producer(scene.address, transactional_id=fresh_name("owner"))) as owner:
        owner.init_transactions()
        owner.begin_transaction()
        owner.send(f"{group}-table", key=b"k", value=b"10", partition=partition_of(b"k", PARTITIONS)).get(timeout=20)
        scene.produce(source, [("k", "x")])
        with scene.running(counting(group, source), state_dir=tmp_path / "another") as running:
            assert not running.processor.wait_for_ready(2.0)
            notice = eventually("it says why", lambda: running.processor.status().notice, timeout_s=15)
            assert re.search(rf"{group}-table\b.* transaction .*still open", notice)
            owner.commit_transaction()
            running.caught_up(1)
            eventually("it is said no more", lambda: running.processor.status().notice is None)
    assert scene.table(f"{group}-table") == {"k": b"11"}


@pytest.mark.goka("group: partitions move and nothing is lost or doubled")
def test_two_members_share_the_partitions_and_nothing_is_lost_or_doubled(
    scene: Scene, topic: Any, fresh_name: Fresh
) -> None:
    source, group = topic("in"), fresh_name("group")
    graph = counting(group, source)
    for round_ in range(2):
        scene.produce(source, [(f"k{i % 40}", "x") for i in range(400)])
        with scene.running(graph) as first:
            first.wait_at_work()
            with scene.running(graph) as second:
                eventually(
                    "both members have partitions",
                    lambda: all(len(r.processor.status().partitions) == PARTITIONS // 2 for r in (first, second)),
                    timeout_s=30,
                )
                scene.produce(source, [(f"k{i % 40}", "x") for i in range(400)])
            eventually(
                "the first has all partitions again",
                lambda: len(first.processor.status().partitions) == PARTITIONS,
                timeout_s=30,
            )
            expected = {f"k{i}": b"%d" % (20 * (round_ + 1)) for i in range(40)}
            eventually("every record is counted once", lambda: scene.table(f"{group}-table") == expected, timeout_s=20)  # noqa: B023


@pytest.mark.goka("edge: join", "edge: lookup", "edge: loop")
def test_a_join_a_lookup_and_a_loop(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    joined = topic("join", configs={"cleanup.policy": "compact"})
    looked = topic("lookup", configs={"cleanup.policy": "compact"})
    source, sink, group = topic("in"), topic("out"), fresh_name("group")
    scene.produce(joined, [("a", "A"), ("b", "B"), ("b", None)])
    scene.produce(looked, [("blue", "bleu")])

    def handle(context: Context, value: str) -> None:
        parts = [context.key(), str(context.join(joined)), str(context.lookup(looked, value))]
        context.emit(sink, context.key(), "/".join(parts))
        context.loopback(value, context.key())

    def loop(context: Context, value: str) -> None:
        context.set_value(f"{context.value() or ''}{value}")

    graph = define_group(
        group,
        Input(source, String(), handle),
        Loop(String(), loop),
        Persist(String()),
        Output(sink, String()),
        Join(joined, String()),
        Lookup(looked, String()),
    )
    scene.produce(source, [("a", "blue"), ("b", "red"), ("c", "blue")])
    with scene.running(graph) as running:
        running.caught_up(6)
    assert sorted(value for _, value in scene.read(sink)) == [b"a/A/bleu", b"b/None/None", b"c/None/bleu"]  # type: ignore[type-var]
    table = scene.table(f"{group}-table")
    assert table["red"] == b"b"
    assert sorted(table["blue"]) == sorted(b"ac")


def test_a_skipped_record_leaves_no_trace(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, sink, group = topic("in"), topic("out"), fresh_name("group")

    def fail_on_bad(context: Context, value: int) -> None:
        context.set_value(value)
        context.emit(sink, context.key(), str(value))
        if value < 0:
            context.fail("negative")

    graph = define_group(group, Input(source, Int64(), fail_on_bad), Persist(Int64()), Output(sink, String()))
    scene.produce(source, [("k", "1"), ("k", "-2"), ("k", "words"), ("k", b"\xff"), ("k", None), ("k", "3"), ("k", "")])
    with scene.running(graph, on_error="skip") as running:
        running.caught_up(7)
        assert running.processor.status().bad_records == 4
    assert [value for _, value in scene.read(sink)] == [b"1", b"3"]
    assert scene.table(f"{group}-table") == {"k": b"3"}


@pytest.mark.goka("processor.error")
def test_a_bad_record_stops_the_processor_and_is_named(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, group = topic("in"), fresh_name("group")
    graph = define_group(
        group, Input(source, Int64(), lambda context, value: context.set_value(value)), Persist(Int64())
    )
    scene.produce(source, [("k", "1"), ("k", "words")])
    with scene.running(graph, on_error="stop") as running:
        error = running.failed()
    assert isinstance(error, ProcessingError)
    assert f"record {source}/" in str(error)
    assert "@1" in str(error)
    assert "--on-error quarantine" in str(error)


def test_at_least_once_keeps_tables_and_outputs(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, sink, group = topic("in"), topic("out"), fresh_name("group")
    scene.produce(source, [(f"k{i % 7}", str(i)) for i in range(350)])
    graph = counting(group, source, sink)
    with scene.running(graph, guarantee="at-least-once") as running:
        running.caught_up(350)
    assert scene.table(f"{group}-table") == {f"k{i}": b"50" for i in range(7)}
    assert len(scene.read(sink)) == 350


@pytest.mark.parametrize("elsewhere", [False, True], ids=["at home", "elsewhere"])
def test_offsets_that_were_deleted_are_not_guessed_at(
    scene: Scene, kafka_cluster: KafkaCluster, topic: Any, fresh_name: Fresh, tmp_path: Path, elsewhere: bool
) -> None:
    source, group = topic("in"), fresh_name("group")
    scene.produce(source, [("k", "x")] * 5)
    with scene.running(counting(group, source)) as running:
        running.caught_up(5)
    admin = kafka_cluster.admin()
    try:
        eventually("the group is deleted", lambda: admin.delete_groups([group]) is not None, timeout_s=15)
    finally:
        admin.close()
    state_dir = tmp_path / "another" if elsewhere else scene.state_dir
    with scene.running(counting(group, source), state_dir=state_dir) as running:
        error = running.failed()
    assert isinstance(error, OffsetsLostError)
    assert "--start earliest" in str(error)
    with scene.running(counting(group, source), state_dir=state_dir, start="latest") as running:
        running.wait_at_work()
        scene.produce(source, [("k", "x")])
        running.caught_up(1)
    assert scene.table(f"{group}-table") == {"k": b"6"}


@pytest.mark.any_broker("apache")
def test_a_changelog_without_a_committed_record_is_no_trace_of_an_earlier_life(
    scene: Scene, kafka_cluster: KafkaCluster, topic: Any, fresh_name: Fresh
) -> None:
    """Apache Kafka writes the abort marker of a killed worker into its topic, though that was made anew meanwhile."""
    source, group = topic("in"), fresh_name("group")
    table = f"{group}-table"
    kafka_cluster.create_topics({table: {"num_partitions": PARTITIONS, "configs": {"cleanup.policy": "compact"}}})
    scene.produce(source, [("k", "x")] * 5)
    partition = partition_of(b"k", PARTITIONS)
    with closing(plain_producer(scene.address, transactional_id=fresh_name("owner"))) as owner:
        owner.init_transactions()
        owner.begin_transaction()
        owner.send(table, key=b"k", value=b"10", partition=partition).get(timeout=20)
        with scene.running(counting(group, source)) as running:
            assert not running.processor.wait_for_ready(2.0)
            notice = eventually("it says why", lambda: running.processor.status().notice, timeout_s=15)
            assert re.search(rf"{table}/{partition}\b.* transaction .*still open", notice)
            owner.abort_transaction()
            running.caught_up(5)
    assert scene.table(table) == {"k": b"5"}


@pytest.mark.any_broker
def test_an_input_that_gets_more_partitions_ends_the_processor_with_a_sentence(
    scene: Scene, kafka_cluster: KafkaCluster, topic: Any, fresh_name: Fresh
) -> None:
    source, group = topic("in"), fresh_name("group")
    with scene.running(counting(group, source)) as running, kafka_cluster.admin() as admin:
        running.wait_at_work()
        admin.create_partitions({source: PARTITIONS + 2})
        running.processor._parts.inputs._consumer._cluster.request_update()  # type: ignore[union-attr]  # as once a minute
        error = running.failed()
    assert isinstance(error, TopicError)
    assert f"have more partitions by now than '{group}-" in str(error)
    assert f"which has {PARTITIONS}:" in str(error)


def test_of_two_workers_with_one_identity_one_stops_and_says_why(
    scene: Scene, topic: Any, fresh_name: Fresh, tmp_path: Path
) -> None:
    source, group = topic("in"), fresh_name("group")
    graph = counting(group, source)
    scene.produce(source, [(f"k{i % 8}", "x") for i in range(80)])
    with scene.running(graph) as first:
        first.caught_up(80)
        shutil.copytree(scene.state_dir, tmp_path / "copy")
        with scene.running(graph, state_dir=tmp_path / "copy") as second:
            error = first.failed()
            second.wait_at_work()
            scene.produce(source, [(f"k{i % 8}", "x") for i in range(80)])
            second.caught_up(80)
    assert isinstance(error, IdentityError)
    assert "another process uses this worker's identity" in str(error)
    assert scene.table(f"{group}-table") == {f"k{i}": b"20" for i in range(8)}


def test_a_record_that_takes_too_long_is_named(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, group = topic("in"), fresh_name("group")

    def slow(context: Context, value: str) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pass

    scene.produce(source, [("k", "x")])
    graph = define_group(group, Input(source, String(), slow))
    with scene.running(graph, transaction_timeout_ms=3_000) as running:
        error = running.failed()
    assert "@0 took 1." in str(error)
    assert "--transaction-timeout" in str(error)


@pytest.mark.goka("context.defer_commit")
def test_a_deferred_commit_holds_the_transaction(scene: Scene, topic: Any, fresh_name: Fresh) -> None:
    source, sink, group = topic("in"), topic("out"), fresh_name("group")
    open_commits: list[Callable[..., None]] = []

    def defer(context: Context, value: str) -> None:
        open_commits.append(context.defer_commit())
        context.emit(sink, context.key(), value)

    scene.produce(source, [("k", "x")])
    graph = define_group(group, Input(source, String(), defer), Output(sink, String()))
    with scene.running(graph) as running:
        eventually("the record is in its callback", lambda: open_commits, timeout_s=30)
        assert scene.read(sink) == []
        assert running.processor.status().commits == 0
        for complete in open_commits:
            complete(None)
        eventually("it is committed", lambda: scene.read(sink) == [("k", b"x")], timeout_s=20)


@pytest.mark.goka("co-partitioned inputs and joins")
@pytest.mark.any_broker
def test_topics_that_do_not_fit_are_refused_by_name(
    scene: Scene, kafka_cluster: KafkaCluster, topic: Any, fresh_name: Fresh
) -> None:
    source, other = topic("in"), topic("other", num_partitions=PARTITIONS + 1)
    graph = define_group(
        fresh_name("group"),
        Input(source, String(), lambda context, value: None),
        Input(other, String(), lambda context, value: None),
    )
    with scene.running(graph) as running:
        error = running.failed()
    assert isinstance(error, TopicError)
    assert source in str(error)
    assert other in str(error)
    missing = define_group(fresh_name("group"), Input(fresh_name("missing"), String(), lambda context, value: None))
    with scene.running(missing) as running:
        assert isinstance(running.failed(), TopicError)


def test_an_input_that_is_made_a_moment_later_is_waited_for(
    scene: Scene, kafka_cluster: KafkaCluster, fresh_name: Fresh
) -> None:
    source = fresh_name("in")
    making = threading.Timer(2.5, kafka_cluster.create_topics, [{source: {"num_partitions": PARTITIONS}}])
    making.start()
    try:
        with scene.running(counting(fresh_name("group"), source)) as running:
            running.wait_at_work()
    finally:
        making.join()


def test_options_that_cannot_work_are_refused_before_any_io(tmp_path: Path) -> None:
    for bad in (
        {"guarantee": "at-most-once"},
        {"on_error": "quarantene"},
        {"start": "now"},
        {"transaction_timeout_ms": 1},
    ):
        with pytest.raises(UsageError):
            ProcessorOptions(state_dir=tmp_path, **bad)  # type: ignore[arg-type]
