"""The APIs about topics, configs and the cluster, at every version that is served."""

import uuid
from typing import Any

import pytest
from kafka.protocol import admin
from kafka.protocol.metadata import MetadataRequest, MetadataResponse

from gokamsg.broker import registry
from gokamsg.broker.runner import RunningBroker
from tests.broker.raw_client import RawClient, make_batch

TABLE = {row.key: row for row in registry.load()}
CREATE = admin.CreateTopicsRequest.CreatableTopic


def versions(key: int) -> Any:
    return pytest.mark.parametrize("version", range(TABLE[key].min_version, TABLE[key].max_version + 1))


def create_request(*topics: Any, validate_only: bool = False) -> Any:
    return admin.CreateTopicsRequest(topics=list(topics), timeout_ms=5000, validate_only=validate_only)


def topic(name: str, partitions: int = 2, replication: int = 1, configs: dict[str, str | None] | None = None) -> Any:
    rows = [CREATE.CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()]
    return CREATE(name=name, num_partitions=partitions, replication_factor=replication, assignments=[], configs=rows)


def create(client: RawClient, *topics: Any, version: int = 7, validate_only: bool = False) -> list[Any]:
    request = create_request(*topics, validate_only=validate_only)
    results: list[Any] = client.ask(request, admin.CreateTopicsResponse, version).topics
    return results


def metadata(client: RawClient, names: list[str] | None, version: int = 12) -> Any:
    asked = None if names is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in names]
    return client.ask(MetadataRequest(topics=asked, allow_auto_topic_creation=True), MetadataResponse, version)


def configs_of(client: RawClient, name: str, version: int = 4, **more: Any) -> dict[str, Any]:
    resource = admin.DescribeConfigsRequest.DescribeConfigsResource(
        resource_type=2, resource_name=name, configuration_keys=more.pop("keys", None)
    )
    answer = client.ask(
        admin.DescribeConfigsRequest(resources=[resource], **more), admin.DescribeConfigsResponse, version
    )
    assert answer.results[0].error_code == 0
    return {config.name: config for config in answer.results[0].configs}


@versions(3)
def test_metadata_names_the_broker_and_its_topics(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        topic_id = create(client, topic("t", 3))[0].topic_id
        answer = metadata(client, ["t"], version)
        everything = metadata(client, None, version)
        nothing = metadata(client, [], version)
    assert [f"{node.host}:{node.port}" for node in answer.brokers] == [broker.address]
    (found,) = answer.topics
    assert (found.error_code, found.name) == (0, "t")
    assert [(part.partition_index, part.leader_id, part.isr_nodes) for part in found.partitions] == [
        (index, 1, [1]) for index in range(3)
    ]
    assert [row.name for row in everything.topics] == ["t"]
    assert len(nothing.topics) == (1 if version == 0 else 0)
    if version >= 1:
        assert answer.controller_id == 1
    if version >= 2:
        assert len(answer.cluster_id) == 22
    if version >= 10:
        assert found.topic_id == topic_id


@versions(3)
def test_metadata_of_unknown_topic(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        (found,) = metadata(client, ["nope"], version).topics
    assert (found.error_code, found.name, found.partitions) == (3, "nope", [])


def test_metadata_by_id(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        topic_id = create(client, topic("t"))[0].topic_id
        asked = [MetadataRequest.MetadataRequestTopic(topic_id=it, name=None) for it in (topic_id, uuid.uuid4())]
        known, unknown = client.ask(MetadataRequest(topics=asked), MetadataResponse, 12).topics
    assert (known.error_code, known.name) == (0, "t")
    assert (unknown.error_code, unknown.name) == (100, None)


def test_topics_are_created_by_asking_for_them_only_if_allowed(start: Any) -> None:
    broker = start(auto_create_topics=True, default_partitions=3)
    with RawClient(broker.address) as client:
        refused = MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name="t")], allow_auto_topic_creation=False
        )
        assert client.ask(refused, MetadataResponse, 9).topics[0].error_code == 3
        (made,) = metadata(client, ["t"]).topics
        assert (made.error_code, len(made.partitions)) == (0, 3)
        assert metadata(client, ["no/slash"]).topics[0].error_code == 17


@versions(19)
def test_create_topics(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        (made,) = create(client, topic("t", 4, 3, {"retention.ms": "1000"}), version=version)
        (again,) = create(client, topic("t"), version=version)
        assert (made.name, made.error_code, made.error_message) == ("t", 0, None)
        assert (again.error_code, again.error_message) == (36, "topic 't' already exists")
        assert len(metadata(client, ["t"]).topics[0].partitions) == 4
    if version >= 5:
        assert (made.num_partitions, made.replication_factor) == (4, 1)
        assert {row.name: row.value for row in made.configs}["retention.ms"] == "1000"
    if version >= 7:
        assert isinstance(made.topic_id, uuid.UUID)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (topic("no/slash"), 17),
        (topic(""), 17),
        (topic(".."), 17),
        (topic("x" * 250), 17),
        (topic("a_b"), 17),  # collides with a.b
        (topic("t", 0), 37),
        (topic("t", -2), 37),
        (topic("t", 1_000_000), 44),
        (topic("t", 1, 0), 38),
        (topic("t", configs={"no.such": "1"}), 40),
        (topic("t", configs={"retention.ms": "soon"}), 40),
        (topic("t", configs={"retention.ms": "-2"}), 40),
        (topic("t", configs={"retention.ms": None}), 40),
        (topic("t", configs={"cleanup.policy": "shred"}), 40),
        (topic("t", configs={"compression.type": "zstd"}), 40),
        (topic("t", configs={"max.message.bytes": str(1 << 40)}), 40),
        (topic("t", configs={"min.cleanable.dirty.ratio": "2"}), 40),
        (topic("t", configs={"preallocate": "maybe"}), 40),
    ],
)
def test_impossible_topics_are_refused_with_a_sentence(broker: RunningBroker, asked: Any, code: int) -> None:
    with RawClient(broker.address) as client:
        create(client, topic("a.b"))
        (result,) = create(client, asked)
        assert result.error_code == code
        assert result.error_message
        assert len(metadata(client, None).topics) == 1


def test_default_partitions_dry_run_and_assignments(start: Any) -> None:
    broker = start(default_partitions=5)
    with RawClient(broker.address) as client:
        (result,) = create(client, topic("t", -1, -1), validate_only=True)
        assert (result.error_code, result.num_partitions) == (0, 5)
        assert metadata(client, ["t"]).topics[0].error_code == 3
        create(client, topic("t", -1, -1))
        assert len(metadata(client, ["t"]).topics[0].partitions) == 5
        manual = topic("m", -1, -1)
        manual.assignments = [CREATE.CreatableReplicaAssignment(partition_index=i, broker_ids=[1]) for i in range(2)]
        assert create(client, manual)[0].num_partitions == 2
        manual.name = "n"
        manual.assignments = [CREATE.CreatableReplicaAssignment(partition_index=3, broker_ids=[1])]
        assert create(client, manual)[0].error_code == 39
        assert [row.error_code for row in create(client, topic("d"), topic("d"))] == [42, 42]


@versions(20)
def test_delete_topics(broker: RunningBroker, version: int) -> None:
    state = admin.DeleteTopicsRequest.DeleteTopicState
    with RawClient(broker.address) as client:
        create(client, topic("t"))
        client.produce("t", 0, make_batch([(b"k", b"v")]))
        request = admin.DeleteTopicsRequest(timeout_ms=1000, topic_names=["t", "nope"])
        if version >= 6:
            request = admin.DeleteTopicsRequest(timeout_ms=1000, topics=[state(name="t"), state(name="nope")])
        gone, unknown = client.ask(request, admin.DeleteTopicsResponse, version).responses
        assert (gone.name, gone.error_code) == ("t", 0)
        assert (unknown.name, unknown.error_code) == ("nope", 3)
        assert metadata(client, ["t"]).topics[0].error_code == 3
        create(client, topic("t"))  # the same name again shares nothing with the old one
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).base_offset == 0


def test_delete_topics_by_id(broker: RunningBroker) -> None:
    state = admin.DeleteTopicsRequest.DeleteTopicState
    with RawClient(broker.address) as client:
        topic_id = create(client, topic("t"))[0].topic_id
        request = admin.DeleteTopicsRequest(
            timeout_ms=1000, topics=[state(topic_id=topic_id), state(topic_id=uuid.uuid4())]
        )
        gone, unknown = client.ask(request, admin.DeleteTopicsResponse, 6).responses
    assert (gone.error_code, gone.name, gone.topic_id) == (0, "t", topic_id)
    assert unknown.error_code == 100


@versions(37)
def test_create_partitions(broker: RunningBroker, version: int) -> None:
    asked = admin.CreatePartitionsRequest.CreatePartitionsTopic

    def grow(client: RawClient, name: str, count: int, *, dry: bool = False) -> int:
        request = admin.CreatePartitionsRequest(
            topics=[asked(name=name, count=count, assignments=None)], timeout_ms=1000, validate_only=dry
        )
        code: int = client.ask(request, admin.CreatePartitionsResponse, version).results[0].error_code
        return code

    with RawClient(broker.address) as client:
        create(client, topic("t", 2))
        client.produce("t", 1, make_batch([(b"k", b"v")]))
        assert grow(client, "t", 4, dry=True) == 0
        assert grow(client, "t", 2) == 37
        assert grow(client, "nope", 2) == 3
        assert grow(client, "t", 4) == 0
        assert len(metadata(client, ["t"]).topics[0].partitions) == 4
        assert client.produce("t", 3, make_batch([(b"k", b"v")])).base_offset == 0
        assert client.produce("t", 1, make_batch([(b"k", b"v")])).base_offset == 1


@versions(32)
def test_describe_configs(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        create(client, topic("t", configs={"retention.ms": "1000"}))
        configs = configs_of(client, "t", version, include_synonyms=version >= 1)
        only = configs_of(client, "t", version, keys=["retention.ms"])
        broker_resource = admin.DescribeConfigsRequest.DescribeConfigsResource(
            resource_type=4, resource_name="1", configuration_keys=["num.partitions"]
        )
        unknown = admin.DescribeConfigsRequest.DescribeConfigsResource(
            resource_type=2, resource_name="nope", configuration_keys=None
        )
        answer = client.ask(
            admin.DescribeConfigsRequest(resources=[broker_resource, unknown]), admin.DescribeConfigsResponse, version
        )
    assert configs["retention.ms"].value == "1000"
    assert configs["cleanup.policy"].value == "delete"
    assert list(only) == ["retention.ms"]
    if version == 0:
        assert (configs["retention.ms"].is_default, configs["cleanup.policy"].is_default) == (False, True)
    else:
        assert (configs["retention.ms"].config_source, configs["cleanup.policy"].config_source) == (1, 5)
        assert [row.name for row in configs["retention.ms"].synonyms] == ["retention.ms", "log.retention.ms"]
    if version >= 3:
        assert configs["retention.ms"].config_type == 5
    assert [(row.name, row.value, row.read_only) for row in answer.results[0].configs] == [
        ("num.partitions", "8", True)
    ]
    assert answer.results[1].error_code == 3


@versions(33)
def test_alter_configs_replaces_all(broker: RunningBroker, version: int) -> None:
    resource = admin.AlterConfigsRequest.AlterConfigsResource

    def alter(client: RawClient, kind: int, name: str, configs: dict[str, str], *, dry: bool = False) -> int:
        rows = [resource.AlterableConfig(name=key, value=value) for key, value in configs.items()]
        request = admin.AlterConfigsRequest(
            resources=[resource(resource_type=kind, resource_name=name, configs=rows)], validate_only=dry
        )
        code: int = client.ask(request, admin.AlterConfigsResponse, version).responses[0].error_code
        return code

    with RawClient(broker.address) as client:
        create(client, topic("t", configs={"retention.ms": "1000"}))
        assert alter(client, 2, "t", {"retention.bytes": "7"}, dry=True) == 0
        assert configs_of(client, "t")["retention.ms"].value == "1000"
        assert alter(client, 2, "t", {"retention.bytes": "7"}) == 0
        configs = configs_of(client, "t")
        assert (configs["retention.bytes"].value, configs["retention.ms"].config_source) == ("7", 5)
        assert alter(client, 2, "t", {"retention.bytes": "x"}) == 40
        assert alter(client, 2, "nope", {}) == 3
        assert alter(client, 4, "1", {"num.partitions": "3"}) == 42


@versions(44)
def test_incremental_alter_configs(broker: RunningBroker, version: int) -> None:
    resource = admin.IncrementalAlterConfigsRequest.AlterConfigsResource

    def alter(client: RawClient, *changes: tuple[str, int, str | None]) -> int:
        rows = [resource.AlterableConfig(name=key, config_operation=how, value=value) for key, how, value in changes]
        request = admin.IncrementalAlterConfigsRequest(
            resources=[resource(resource_type=2, resource_name="t", configs=rows)], validate_only=False
        )
        code: int = client.ask(request, admin.IncrementalAlterConfigsResponse, version).responses[0].error_code
        return code

    with RawClient(broker.address) as client:
        create(client, topic("t", configs={"retention.ms": "1000"}))
        assert alter(client, ("segment.ms", 0, "500"), ("retention.ms", 1, None)) == 0
        configs = configs_of(client, "t")
        assert (configs["segment.ms"].value, configs["retention.ms"].value) == ("500", "604800000")
        assert alter(client, ("cleanup.policy", 2, "compact")) == 0
        assert configs_of(client, "t")["cleanup.policy"].value == "delete,compact"
        assert alter(client, ("cleanup.policy", 3, "delete")) == 0
        assert configs_of(client, "t")["cleanup.policy"].value == "compact"
        assert alter(client, ("retention.ms", 2, "5")) == 40  # not a list
        assert alter(client, ("no.such", 0, "5")) == 40
        assert alter(client, ("retention.ms", 0, "5"), ("segment.ms", 0, "x")) == 40  # all or nothing
        assert configs_of(client, "t")["retention.ms"].value == "604800000"


@versions(35)
def test_describe_log_dirs(broker: RunningBroker, version: int) -> None:
    batch = make_batch([(b"k", b"v")])
    with RawClient(broker.address) as client:
        create(client, topic("t", 2))
        client.produce("t", 1, batch)
        (everything,) = client.ask(
            admin.DescribeLogDirsRequest(topics=None), admin.DescribeLogDirsResponse, version
        ).results
        asked = admin.DescribeLogDirsRequest.DescribableLogDirTopic(topic="t", partitions=[1])
        (one,) = client.ask(
            admin.DescribeLogDirsRequest(topics=[asked]), admin.DescribeLogDirsResponse, version
        ).results
    assert everything.error_code == 0
    assert everything.log_dir == str(broker.settings.data_dir)
    assert [part.partition_size for part in everything.topics[0].partitions] == [0, len(batch)]
    assert [part.partition_index for part in one.topics[0].partitions] == [1]
    if version >= 4:
        assert everything.total_bytes > everything.usable_bytes > 0


@versions(60)
def test_describe_cluster(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        answer = client.ask(admin.DescribeClusterRequest(endpoint_type=1), admin.DescribeClusterResponse, version)
        cluster_id = metadata(client, None).cluster_id
        if version >= 1:
            refused = client.ask(admin.DescribeClusterRequest(endpoint_type=2), admin.DescribeClusterResponse, version)
            assert refused.error_code == 115
    assert (answer.error_code, answer.cluster_id, answer.controller_id) == (0, cluster_id, 1)
    assert [f"{node.host}:{node.port}" for node in answer.brokers] == [broker.address]


@versions(43)
def test_elect_leaders(broker: RunningBroker, version: int) -> None:
    asked = admin.ElectLeadersRequest.TopicPartitions
    with RawClient(broker.address) as client:
        create(client, topic("t", 1))
        request = admin.ElectLeadersRequest(topic_partitions=[asked(topic="t", partitions=[0, 5])], timeout_ms=1000)
        (result,) = client.ask(request, admin.ElectLeadersResponse, version).replica_election_results
    assert [(row.partition_id, row.error_code) for row in result.partition_result] == [(0, 84), (5, 3)]


@versions(46)
def test_list_partition_reassignments(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        request = admin.ListPartitionReassignmentsRequest(timeout_ms=1000, topics=None)
        answer = client.ask(request, admin.ListPartitionReassignmentsResponse, version)
    assert (answer.error_code, answer.topics) == (0, [])
