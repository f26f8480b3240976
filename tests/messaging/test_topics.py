"""Which topics there are, which belong together, and how they are made on a real cluster."""

import pytest

from gokamsg.engine import ClientConfig, TopicManager
from gokamsg.errors import TopicError
from gokamsg.messaging.topics import TopicSettings, all_topics, copartitioned, ensure, mismatches, tables, topics_of
from tests.kafka_server import MESSAGING_TOPICS, KafkaCluster


def test_every_topic_follows_from_the_roles() -> None:
    assert sorted(all_topics()) == sorted(MESSAGING_TOPICS)
    assert tables() == {"blocker-table", "collector-table", "detector-table", "translator-table"}
    assert topics_of("filter") == ("blocker-table", "message_received", "message_sent", "translator-table")


def test_topics_belong_together_when_one_role_reads_them() -> None:
    assert [sorted(together) for together in copartitioned()] == [
        ["block_user", "blocker-table", "detector-loop", "detector-table", "message_sent"],
        ["collector-table", "message_received"],
        ["translate-word", "translator-table"],
    ]


def test_differing_partition_counts_are_named() -> None:
    assert list(mismatches({"message_received": 8, "collector-table": 8, "message_sent": 4})) == []
    (sentence,) = mismatches({"message_received": 8, "collector-table": 4})
    assert sentence == "collector-table has 4, message_received has 8"


def test_missing_topics_are_made_once(clean_cluster: KafkaCluster) -> None:
    with TopicManager(ClientConfig(clean_cluster.address)) as manager:
        settings = TopicSettings(partitions=3, retention_ms=3_600_000)
        assert list(ensure(manager, all_topics(), settings)) == list(all_topics())
        assert list(ensure(manager, all_topics(), settings)) == []
        found = manager.describe(all_topics())
        assert {topic.partitions for topic in found.values()} == {3}
        assert manager.config("message_sent")["retention.ms"] == "3600000"
        assert manager.config("message_sent")["cleanup.policy"] == "delete"
        assert manager.config("blocker-table")["cleanup.policy"] == "compact"


def test_a_topic_that_two_processes_find_missing_is_told_by_the_one_that_made_it(clean_cluster: KafkaCluster) -> None:
    with TopicManager(ClientConfig(clean_cluster.address)) as manager:
        one, other = ensure(manager, all_topics()), ensure(manager, all_topics())
        first = next(one)  # by now it has looked what is missing: everything
        others = list(other)
        assert [first, *others] == list(all_topics())
        assert list(one) == []


def test_new_topics_match_those_that_are_there(clean_cluster: KafkaCluster) -> None:
    clean_cluster.create_topics({"message_received": {"num_partitions": 3}})
    with TopicManager(ClientConfig(clean_cluster.address)) as manager:
        assert list(ensure(manager, ["collector-table", "message_sent"])) == ["collector-table", "message_sent"]
        found = manager.describe(["collector-table", "message_sent"])
        assert (found["collector-table"].partitions, found["message_sent"].partitions) == (3, 8)


def test_topics_that_cannot_match_are_refused(clean_cluster: KafkaCluster) -> None:
    clean_cluster.create_topics({"message_sent": {"num_partitions": 3}, "block_user": {"num_partitions": 4}})
    with (
        TopicManager(ClientConfig(clean_cluster.address)) as manager,
        pytest.raises(TopicError, match="block_user has 4, message_sent has 3"),
    ):
        list(ensure(manager, ["blocker-table"]))
    assert "blocker-table" not in describe(clean_cluster)


def test_topics_that_do_not_concern_a_role_do_not_stop_it(clean_cluster: KafkaCluster) -> None:
    clean_cluster.create_topics({"message_sent": {"num_partitions": 3}, "block_user": {"num_partitions": 4}})
    with TopicManager(ClientConfig(clean_cluster.address)) as manager:
        assert list(ensure(manager, ["collector-table"])) == ["collector-table"]


def describe(cluster: KafkaCluster) -> set[str]:
    with TopicManager(ClientConfig(cluster.address)) as manager:
        return set(manager.describe(all_topics()))
