"""Views on a real Kafka: complete, followed, kept over restarts, and honest about their state."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition

from gokamsg.engine.clients import BatchSender, ClientConfig, TransactionalProducer
from gokamsg.engine.codec import String
from gokamsg.engine.emitter import Emitter
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.records import BatchBuilder
from gokamsg.engine.state import ViewState
from gokamsg.engine.view import View
from gokamsg.errors import BrokerUnavailableError, GokamsgError, TopicError
from tests.engine.kafka_scene import said
from tests.helpers import eventually, free_port
from tests.kafka_server import KafkaCluster, KafkaServer

PARTITIONS = 4


class Scene:
    """One table, written by an emitter."""

    def __init__(self, cluster: KafkaCluster, table: str, policy: str = "compact") -> None:
        self.config = ClientConfig(cluster.address)
        self.table = table
        cluster.create_topics({table: {"num_partitions": PARTITIONS, "configs": {"cleanup.policy": policy}}})
        self.emitter = Emitter(self.config, table, String())

    def put(self, rows: dict[str, str | None]) -> None:
        for key, value in rows.items():
            self.emitter.emit(key, value)
        assert self.emitter.flush(20)

    @contextmanager
    def view(self, **options: object) -> Iterator[View[str]]:
        view = View(self.config, self.table, String(), **options)  # type: ignore[arg-type]
        view.start()
        try:
            yield view
        finally:
            view.stop()


@pytest.fixture
def scene(kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]) -> Iterator[Scene]:
    made = Scene(kafka_cluster, fresh_name("table"))
    yield made
    made.emitter.finish()


@pytest.mark.goka("view: get, has, recovered, wait_running", "null values are tombstones")
def test_a_view_holds_the_table_and_follows_it(scene: Scene) -> None:
    scene.put({"a": "1", "b": "2", "gone": "3"} | {f"user{n}": str(n) for n in range(200)})
    scene.put({"gone": None, "b": "20"})
    with scene.view() as view:
        assert view.wait_running(20)
        assert view.recovered
        assert view.progress()[1] == 0
        assert (view.get("a"), view.get("b"), view.get("gone"), view.get("never")) == ("1", "20", None, None)
        assert view.has("a")
        assert not view.has("gone")
        changes: list[str] = []
        stop = view.subscribe(changes.append)
        at = scene.emitter.emit_sync("neu", "30")
        assert view.wait_for(at.partition, at.offset, 5)
        assert view.get("neu") == "30"
        assert changes == ["neu"]
        stop()
        at = scene.emitter.emit_sync("neu", "31")
        assert view.wait_for(at.partition, at.offset, 5)
        assert changes == ["neu"]
        assert not view.wait_for(at.partition, at.offset + 1, 0.1)
    assert view.state == ViewState.IDLE


@pytest.mark.goka("view: iterator in byte order over partitions", "view: iterator with range, prefix", "view: evict")
def test_rows_come_in_the_order_of_their_keys(scene: Scene) -> None:
    keys = ["", "a", "a\x00", "aa", "ab", "b", "zz", "ä", "日本"]
    scene.put({key: f"<{key}>" for key in keys})
    with scene.view() as view:
        assert view.wait_running(20)
        assert list(view.iterator()) == [(key, f"<{key}>") for key in sorted(keys, key=str.encode)]
        assert [key for key, _ in view.iterator_with_range("a", "b")] == ["a", "a\x00", "aa", "ab"]
        assert [key for key, _ in view.iterator_with_range("a")] == ["a", "a\x00", "aa", "ab"]
        view.evict("aa")
        eventually("the row is forgotten", lambda: not view.has("aa"))
        at = scene.emitter.emit_sync("aa", "again")
        assert view.wait_for(at.partition, at.offset, 5)
        assert view.get("aa") == "again"


@pytest.mark.goka("table: goes on from the stored position")
def test_a_view_on_disk_reads_only_what_is_new(scene: Scene, tmp_path: Path) -> None:
    scene.put({f"user{n}": str(n) for n in range(500)})
    with scene.view(storage_dir=tmp_path) as view:
        assert view.wait_running(20)
        assert view.progress() == (500, 0)
    scene.put({"user7": "new", "user8": None})
    with scene.view(storage_dir=tmp_path) as view:
        assert view.wait_running(20)
        assert view.progress() == (2, 0)
        assert (view.get("user6"), view.get("user7"), view.get("user8")) == ("6", "new", None)
        with scene.view(storage_dir=tmp_path) as second:  # in a slot of its own
            assert second.wait_running(20)
            assert second.progress() == (502, 0)


def test_uncommitted_rows_are_not_seen(scene: Scene) -> None:
    producer = TransactionalProducer(scene.config, transactional_id=scene.table)
    try:
        producer.init(20)
        producer.begin()
        builder = BatchBuilder()
        builder.append(b"k", b"pending", int(time.time() * 1000))
        assert producer.send(scene.table, partition_of(b"k", PARTITIONS), builder).wait(10)
        with scene.view() as view:
            assert view.wait_running(20)
            assert view.get("k") is None
            producer.commit({}, None, 10)
            assert eventually("the row", lambda: view.get("k")) == "pending"
    finally:
        producer.close()


def test_a_view_of_one_partition_knows_what_it_leaves_out(scene: Scene) -> None:
    scene.put({"a": "1", "b": "2", "c": "3"})
    mine = partition_of(b"a", PARTITIONS)
    with scene.view(partitions=[mine]) as view:
        assert view.wait_running(20)
        assert view.get("a") == "1"
        assert view.partition_of("a") == mine
        other = next(f"x{n}" for n in range(100) if partition_of(f"x{n}".encode(), PARTITIONS) != mine)
        with pytest.raises(GokamsgError, match="which this view leaves out"):
            view.get(other)


@pytest.mark.goka("view: missing table", "view: get before it is open")
@pytest.mark.any_broker
def test_why_a_view_ended_is_told(kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str]) -> None:
    unstarted = View(ClientConfig(kafka_cluster.address), "t", String())
    with pytest.raises(GokamsgError, match="start it first"):
        unstarted.get("k")
    missing = View(ClientConfig(kafka_cluster.address), fresh_name("missing"), String())
    missing.start()
    with pytest.raises(TopicError, match="does not exist"):
        missing.wait_running(20)
    with pytest.raises(GokamsgError, match="has ended"):
        missing.get("k")
    nobody = View(ClientConfig(f"127.0.0.1:{free_port()}"), "t", String())
    with pytest.raises(BrokerUnavailableError):
        nobody.run()


def test_a_damaged_value_fails_only_its_own_read(scene: Scene) -> None:
    sender = BatchSender(scene.config, enable_idempotence=True)
    builder = BatchBuilder()
    builder.append(b"bad", b"\xff\xfe", int(time.time() * 1000))
    assert sender.put(scene.table, partition_of(b"bad", PARTITIONS), builder).wait(10)
    sender.shut(1.0)
    scene.put({"good": "1"})
    with scene.view() as view:
        assert view.wait_running(20)
        assert view.get("good") == "1"
        assert view.has("bad")


def test_a_view_goes_on_after_the_broker_was_away(own_cluster: KafkaServer) -> None:
    scene = Scene(own_cluster, "table")
    scene.put({"a": "1"})
    with scene.view() as view:
        assert view.wait_running(20)
        own_cluster.kill()
        assert view.get("a") == "1"
        own_cluster.start()
        scene.put({"a": "2"})
        assert eventually("the change", lambda: view.get("a") == "2", timeout_s=30)
        assert view.recovered
    scene.emitter.finish()


@pytest.mark.goka("view: auto-reconnect", "view: states")
def test_a_view_that_reconnects_waits_for_its_broker(own_cluster: KafkaServer) -> None:
    scene = Scene(own_cluster, "table")
    scene.put({"a": "1"})
    scene.emitter.finish()
    own_cluster.stop()
    states: list[ViewState] = []
    with scene.view() as impatient:
        with pytest.raises(BrokerUnavailableError):
            impatient.wait_running(20)
        with pytest.raises(GokamsgError, match="was run before"):
            impatient.run()
    with scene.view(auto_reconnect=True) as view:
        view.observe_state_changes(states.append)
        eventually("it has tried once", lambda: states.count(ViewState.IDLE) >= 2, timeout_s=30)
        with pytest.raises(GokamsgError, match="not open"):
            view.get("a")
        own_cluster.start()
        assert view.wait_running(40)
        assert view.get("a") == "1"
    wanted = [ViewState.INITIALIZING, ViewState.CONNECTING, ViewState.CATCH_UP, ViewState.RUNNING, ViewState.IDLE]
    assert states[-5:] == wanted


@pytest.mark.goka("view: auto-reconnect")
def test_a_view_that_reconnects_can_be_stopped_while_it_waits() -> None:
    view = View(ClientConfig(f"127.0.0.1:{free_port()}"), "t", String(), auto_reconnect=True)
    states: list[ViewState] = []
    view.observe_state_changes(states.append)
    view.start()
    eventually("it has tried once", lambda: states.count(ViewState.IDLE) >= 2, timeout_s=30)
    view.stop()
    assert not view.wait_running(1)
    assert view.state == ViewState.IDLE


@pytest.mark.goka("table: compacted or emptied changelog")
def test_a_copy_whose_changelog_was_emptied_is_built_again(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    scene = Scene(kafka_cluster, fresh_name("table"), "compact,delete")
    scene.put({f"user{n}": str(n) for n in range(100)})
    with scene.view(storage_dir=tmp_path) as view:
        assert view.wait_running(20)
    scene.put({f"user{n}": "later" for n in range(100)})
    admin = kafka_cluster.admin()
    try:  # as if a broker had deleted what nobody keeps: the copy's position is below the log's start
        parts = [TopicPartition(scene.table, number) for number in range(PARTITIONS)]
        admin.delete_records(dict.fromkeys(parts, -1))
    finally:
        admin.close()
    scene.put({"user7": "new"})
    with scene.view(storage_dir=tmp_path) as view:
        assert view.wait_running(20)
        eventually("only what the log still has is there", lambda: dict(view.iterator()) == {"user7": "new"})
    scene.emitter.finish()


def test_a_view_says_once_that_its_broker_is_away_and_once_that_it_is_back(
    own_cluster: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(own_cluster, "table")
    scene.put({"a": "1"})
    with scene.view() as view:
        assert view.wait_running(20)
        own_cluster.stop()
        eventually("it is said", lambda: bool(said(caplog)), timeout_s=20)
        assert view.get("a") == "1"
        own_cluster.start()
        scene.put({"a": "2"})
        eventually("it is followed again", lambda: view.get("a") == "2", timeout_s=40)
    scene.emitter.finish()
    assert said(caplog) == [
        "no broker is connected; trying again until one answers",
        "the brokers answer again; going on",
    ]


def test_a_view_says_that_its_topic_is_gone_and_follows_the_next_of_that_name(
    scene: Scene, kafka_cluster: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    scene.put({f"old{n}": "1" for n in range(20)})
    with scene.view(partitions=[1]) as view, kafka_cluster.admin() as admin:
        assert view.wait_running(20)
        admin.delete_topics([scene.table])
        eventually("it is said", lambda: bool(said(caplog)), timeout_s=30)
        again = Scene(kafka_cluster, scene.table)
        names = [f"new{n}" for n in range(200)]
        again.put({name: str(n) for n, name in enumerate(names)})
        wanted = {name for name in names if partition_of(name.encode(), PARTITIONS) == 1}
        eventually("it has the new rows alone", lambda: {key for key, _ in view.iterator()} == wanted, timeout_s=40)
        eventually("that is said too", lambda: len(said(caplog)) == 2)
    again.emitter.finish()
    assert said(caplog) == [
        f"{scene.table}/1 has no leader, or its topic was deleted; trying again until one answers",
        "the brokers answer again; going on",
    ]
