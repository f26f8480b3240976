"""Topics on a real Kafka: made once, never changed, and refused with a way out when they do not fit."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.codec import String
from gokamsg.engine.emitter import Emitter
from gokamsg.engine.graph import Input, Join, Lookup, Loop, Output, Persist, define_group
from gokamsg.engine.topics import TopicManager
from gokamsg.errors import TopicError, UsageError
from tests.kafka_server import KafkaCluster

Names = Callable[[str], str]


@pytest.fixture
def manager(kafka_cluster: KafkaCluster) -> Iterator[TopicManager]:
    with TopicManager(ClientConfig(kafka_cluster.address)) as made:
        yield made


@pytest.mark.goka("topic manager: ensure stream, table and topic", "topic manager: partitions, get_offset")
def test_streams_are_kept_for_a_week_in_segments_of_a_day(manager: TopicManager, fresh_name: Names) -> None:
    name = fresh_name("stream")
    assert manager.ensure_stream(name)
    assert not manager.ensure_stream(name)
    assert manager.partitions(name) == 8
    config = manager.config(name)
    assert config["cleanup.policy"] == "delete"
    assert (config["retention.ms"], config["segment.ms"]) == (str(7 * 86_400_000), str(86_400_000))
    other = fresh_name("stream")
    manager.ensure_stream(other, 3, retention_ms=1000, config={"max.message.bytes": "5000"})
    assert manager.describe([other, "nowhere"])[other].partitions == 3
    config = manager.config(other)
    assert (config["retention.ms"], config["max.message.bytes"]) == ("1000", "5000")


@pytest.mark.goka("topic manager: ensure stream, table and topic")
def test_tables_are_compacted(manager: TopicManager, fresh_name: Names) -> None:
    name = fresh_name("table")
    assert manager.ensure_table(name, 2)
    assert not manager.ensure_table(name, 2)
    assert manager.config(name)["cleanup.policy"] == "compact"


@pytest.mark.any_broker("apache")
def test_a_topic_that_does_not_fit_is_refused_with_a_way_out(manager: TopicManager, fresh_name: Names) -> None:
    name = fresh_name("stream")
    manager.ensure_stream(name, 2)
    with pytest.raises(TopicError, match="has 2 partitions instead of 8"):
        manager.ensure_stream(name)
    with pytest.raises(TopicError, match=r"is a table, but its cleanup\.policy is 'delete'.*kafka-configs\.sh"):
        manager.ensure_table(name, 2)
    with pytest.raises(TopicError, match="gokamsg topics create"):
        manager.partitions(fresh_name("missing"))
    with pytest.raises(TopicError, match="cannot be created"):
        manager.ensure_stream(fresh_name("odd"), config={"cleanup.policy": "often"})
    with pytest.raises(UsageError, match="0 partitions"):
        manager.ensure_stream(name, 0)


@pytest.mark.goka("topics: loop and table with the inputs' partitions")
@pytest.mark.any_broker("apache")
def test_prepare_makes_a_groups_own_topics_like_its_inputs(manager: TopicManager, fresh_name: Names) -> None:
    group, one, two, join, lookup = (fresh_name(name) for name in ("group", "one", "two", "join", "lookup"))

    def nothing(*_: object) -> None: ...

    graph = define_group(
        group,
        Input(one, String(), nothing),
        Input(two, String(), nothing),
        Output("nowhere", String()),
        Join(join, String()),
        Lookup(lookup, String()),
        Loop(String(), nothing),
        Persist(String()),
    )
    with pytest.raises(TopicError, match="missing topic"):
        manager.prepare(graph)
    manager.ensure_stream(one, 3)
    manager.ensure_stream(two, 3)
    manager.ensure_table(join, 3)
    manager.ensure_table(lookup, 5)
    topics = manager.prepare(graph)
    assert {name: topic.partitions for name, topic in topics.items()} == {
        one: 3,
        two: 3,
        join: 3,
        lookup: 5,
        f"{group}-loop": 3,
        f"{group}-table": 3,
    }
    assert manager.config(f"{group}-table")["cleanup.policy"] == "compact"
    assert manager.prepare(graph) == topics


def test_a_groups_own_topic_does_not_fit_an_input_that_has_grown(manager: TopicManager, fresh_name: Names) -> None:
    """Neither is made to fit: a key's row would be looked for in a partition where it is not."""
    group, source = fresh_name("group"), fresh_name("source")
    graph = define_group(
        group, Input(source, String(), lambda *_: None), Loop(String(), lambda *_: None), Persist(String())
    )
    manager.ensure_stream(source, 3)
    manager.ensure_table(f"{group}-table", 2)
    told = f"'{group}-table' has 2 partitions and its group's input '{source}' has 3.* make '{source}' again with 2, or"
    with pytest.raises(TopicError, match=told):
        manager.prepare(graph, quarantine=True)
    own = [f"{group}-{what}" for what in ("loop", "quarantine", "table")]
    assert set(manager.describe(own)) == {f"{group}-table"}, "nothing is made for a group that is refused"


@pytest.mark.goka("co-partitioned inputs and joins")
def test_inputs_that_are_not_copartitioned_are_refused(manager: TopicManager, fresh_name: Names) -> None:
    one, two = fresh_name("one"), fresh_name("two")
    manager.ensure_stream(one, 2)
    manager.ensure_stream(two, 3)
    with pytest.raises(TopicError, match=f"equally many partitions: '{one}' has 2, '{two}' has 3"):
        manager.check_copartitioned([one, two])
    manager.check_copartitioned([one])


@pytest.mark.goka("topic manager: mismatch ignore", "topic manager: mismatch warn", "topic manager: mismatch fail")
def test_what_is_done_about_a_mismatch_can_be_chosen(
    kafka_cluster: KafkaCluster, fresh_name: Names, caplog: pytest.LogCaptureFixture
) -> None:
    name = fresh_name("stream")
    config = ClientConfig(kafka_cluster.address)
    with TopicManager(config) as manager:
        manager.ensure_stream(name, 2, retention_ms=1000)
    with TopicManager(config, mismatch="ignore") as manager:
        assert not manager.ensure_stream(name, 3)
        assert not manager.ensure_table(name, 3)
    assert "not as it should be" not in caplog.text
    wrong = "partitions is 2, not 3, retention.ms is 1000, not 604800000"
    with TopicManager(config, mismatch="warn") as manager:
        assert not manager.ensure_stream(name, 3)
    assert f"'{name}' is not as it should be: {wrong}" in caplog.text
    with TopicManager(config, mismatch="fail") as manager:
        with pytest.raises(TopicError, match=f"is not as it should be: {wrong}"):
            manager.ensure_stream(name, 3)
        with pytest.raises(TopicError, match="replicas is 1, not 7"):
            manager.ensure_topic(name, 2, replication=7)
        assert not manager.ensure_stream(name, 2, retention_ms=1000)
        assert not manager.ensure_topic(name, 2)
    with pytest.raises(UsageError, match="'panic' is nothing to do about a mismatch"):
        TopicManager(config, mismatch="panic")  # type: ignore[arg-type]


@pytest.mark.goka("topic manager: no create")
def test_a_manager_that_makes_nothing_refuses_what_is_missing(kafka_cluster: KafkaCluster, fresh_name: Names) -> None:
    name = fresh_name("stream")
    with TopicManager(ClientConfig(kafka_cluster.address), no_create=True) as manager:
        with pytest.raises(TopicError, match="is not to be made here"):
            manager.ensure_stream(name)
        assert manager.describe([name]) == {}


@pytest.mark.goka("topic manager: partitions, get_offset")
def test_offsets_are_told_by_time(kafka_cluster: KafkaCluster, fresh_name: Names) -> None:
    name = fresh_name("stream")
    config = ClientConfig(kafka_cluster.address)
    with TopicManager(config) as manager:
        manager.ensure_stream(name, 1)
        emitter = Emitter(config, name, String())
        before = int(time.time() * 1000) - 60_000
        for value in ("a", "b"):
            emitter.emit_sync("k", value)
        emitter.finish()
        assert manager.get_offset(name, 0, -2) == 0
        assert manager.get_offset(name, 0, -1) == 2
        assert manager.get_offset(name, 0, before) == 0
        assert manager.get_offset(name, 0, before + 120_000) == -1


def test_a_topic_that_somebody_is_just_making_is_waited_for(manager: TopicManager, fresh_name: Names) -> None:
    """Brokers of a cluster learn of a new topic one after the other; asked too early, one says that there is none."""
    name = fresh_name("late")
    thread = threading.Timer(0.5, manager.ensure_table, [name, 2])
    thread.start()
    try:
        assert manager.existing([name])[name].partitions == 2
        assert manager.config(name)["cleanup.policy"] == "compact"
    finally:
        thread.join()
