"""Administration of topics and groups: what there is, and making what is missing.

Every call has a deadline (the configuration's request timeout) and ends in BrokerUnavailableError when nobody answers.
Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from gokamsg.engine.clients.config import ClientConfig, connect, connecting
from gokamsg.engine.clients.reader import TopicPart
from gokamsg.errors import BrokerUnavailableError, TopicError


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as the cluster has it. `config` holds the settings that concern us, as Kafka spells them."""

    name: str
    topic_id: str
    partitions: int
    replicas: int
    config: Mapping[str, str] = field(default_factory=dict)

    @property
    def compacted(self) -> bool:
        """Whether old values of a key are removed, as a table needs it."""
        return "compact" in self.config.get("cleanup.policy", "")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a consumer group."""

    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    partitions: tuple[TopicPart, ...]


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """One consumer group: Kafka's state name ("Stable", "Empty", …), its members, its committed offsets."""

    group: str
    state: str
    members: tuple[Member, ...]
    committed: Mapping[TopicPart, int]


class Admin:
    """See the module."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._client: KafkaAdminClient = connect(config, KafkaAdminClient)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def broker_count(self) -> int:
        """How many brokers the cluster has."""
        with connecting(self._config):
            return len(self._client.describe_cluster()["brokers"])

    def describe_topics(self, names: Collection[str]) -> dict[str, Topic]:
        """Those of `names` that exist."""
        if not names:
            return {}
        with connecting(self._config):
            found = [t for t in self._client.describe_topics(sorted(names)) if not t["error_code"]]
            if not found:
                return {}
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic["name"]) for topic in found]
            configs = self._client.describe_configs(resources, config_filter="all").get("topic", {})
        return {topic["name"]: _topic(topic, configs.get(topic["name"], {})) for topic in found}

    def create_topic(self, name: str, *, partitions: int, replication: int, config: Mapping[str, str]) -> bool:
        """Create a topic and wait until it can be used; False if it was there already. TopicError when refused."""
        options = {"num_partitions": partitions, "replication_factor": replication, "configs": dict(config)}
        with connecting(self._config):
            try:
                self._client.create_topics({name: options}, wait_for_metadata=True)
            except kafka_errors.TopicAlreadyExistsError:
                return False
            except (
                kafka_errors.InvalidReplicationFactorError,
                kafka_errors.InvalidPartitionsError,
                kafka_errors.InvalidConfigurationError,
                kafka_errors.PolicyViolationError,
                kafka_errors.InvalidTopicError,
                kafka_errors.TopicAuthorizationFailedError,
                kafka_errors.ClusterAuthorizationFailedError,
            ) as error:
                raise TopicError(f"topic {name!r} cannot be created: {error}") from error
        return True

    def alter_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Set these settings of a topic, leaving the others."""
        with connecting(self._config):
            self._client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, dict(config))])

    def high_watermarks(self, partitions: Iterable[TopicPart]) -> dict[TopicPart, int]:
        """The end of each log, uncommitted data included."""
        return self._offsets(partitions, OffsetSpec.LATEST)

    def log_starts(self, partitions: Iterable[TopicPart]) -> dict[TopicPart, int]:
        """The first offset that each log still has."""
        return self._offsets(partitions, OffsetSpec.EARLIEST)

    def describe_groups(self, names: Collection[str]) -> dict[str, GroupDescription]:
        """Those of `names` that exist."""
        described: dict[str, GroupDescription] = {}
        with connecting(self._config):
            for name, group in self._client.describe_groups(sorted(names)).items():
                if group["error_code"] or group["group_state"] == "Dead":
                    continue
                offsets = self._client.list_group_offsets({name: None})[name]
                described[name] = GroupDescription(
                    group=name,
                    state=group["group_state"],
                    members=tuple(_member(member) for member in group["members"]),
                    committed={(tp.topic, tp.partition): offset.offset for tp, offset in offsets.items()},
                )
        return described

    def _offsets(self, partitions: Iterable[TopicPart], spec: OffsetSpec) -> dict[TopicPart, int]:
        wanted = {TopicPartition(topic, partition): spec for topic, partition in partitions}
        if not wanted:
            return {}
        with connecting(self._config):
            found = self._client.list_partition_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED)
        if len(found) != len(wanted):
            raise BrokerUnavailableError("not every partition has a leader that answers; is a broker down?")
        return {(tp.topic, tp.partition): entry.offset for tp, entry in found.items()}


def _topic(described: Mapping[str, Any], config: Mapping[str, Any]) -> Topic:
    partitions = described["partitions"]
    kept = ("cleanup.policy", "retention.ms", "retention.bytes", "segment.ms", "max.message.bytes", "min.insync.replicas")
    return Topic(
        name=described["name"],
        topic_id=str(described.get("topic_id")),
        partitions=len(partitions),
        replicas=min((len(partition["replica_nodes"]) for partition in partitions), default=0),
        config={name: str(config[name]["value"]) for name in kept if name in config},
    )


def _member(described: Mapping[str, Any]) -> Member:
    assignment = described.get("member_assignment") or {}
    partitions = [
        (topic["topic"], partition)
        for topic in assignment.get("assigned_partitions", ())
        for partition in topic["partitions"]
    ]
    return Member(
        member_id=described["member_id"],
        instance_id=described.get("group_instance_id"),
        client_id=described["client_id"],
        host=described["client_host"],
        partitions=tuple(sorted(partitions)),
    )
