"""Asks and tells the cluster: topics, groups, offsets. Any thread may call; each call has the time limit of the config.

Nothing here decides what a topic should look like; that is engine/topics.py.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, MemberToRemove, OffsetSpec
from kafka.protocol.consumer import IsolationLevel
from msgspec import Struct, field

from gokamsg.engine.clients.config import ClientConfig, ClusterInfo, connect, connecting
from gokamsg.engine.clients.reader import TopicPart
from gokamsg.errors import BrokerUnavailableError, TopicError

SETTLE_S = 5.0


class NewTopic(Struct, frozen=True):
    """A topic to be made."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


class Topic(Struct, frozen=True):
    """A topic as it is. `topic_id` changes when it is deleted and made again."""

    name: str
    partitions: int
    replication: int
    topic_id: str


class Member(Struct, frozen=True):
    """A member of a group, and what it has been assigned."""

    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    partitions: frozenset[TopicPart]


class Group(Struct, frozen=True):
    """A consumer group; the state is Kafka's word for it, `Dead` when there is no such group."""

    name: str
    state: str
    protocol: str
    members: tuple[Member, ...]


class Admin:
    """See the module. Close it: it has a thread."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._admin: KafkaAdminClient = connect(config, KafkaAdminClient)

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections."""
        self._admin.close()

    def cluster(self) -> ClusterInfo:
        """Who the cluster is."""
        with connecting(self._config):
            cluster = self._admin.describe_cluster()
        return ClusterInfo(str(cluster["cluster_id"]), len(cluster["brokers"]))

    def cluster_id(self) -> str:
        """As of cluster(), but what was told as the connection was made is not asked for again."""
        return str(self._admin._manager.cluster.cluster_id or self.cluster().cluster_id)

    def create_topics(self, topics: Iterable[NewTopic]) -> set[str]:
        """Makes them and waits until they are usable; the names of those made. One that exists is left as it is."""
        wanted = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": topic.replication,
                "configs": dict(topic.config),
            }
            for topic in topics
        }
        if not wanted:
            return set()
        with connecting(self._config):
            answer = self._admin.create_topics(wanted, raise_errors=False)
        made = set()
        for topic in answer["topics"]:
            error = kafka_errors.for_code(topic["error_code"])
            if error is kafka_errors.NoError:
                made.add(topic["name"])
            elif error is not kafka_errors.TopicAlreadyExistsError:
                why = topic.get("error_message") or error.__name__
                raise TopicError(f"topic {topic['name']!r} cannot be created: {why}")
        with connecting(self._config):
            self._admin.wait_for_topics(list(wanted), timeout_ms=self._config.request_timeout_ms)
        return made

    def delete_topics(self, names: Collection[str]) -> None:
        """Those that exist are gone when this returns."""
        existing = sorted(self.describe_topics(names))
        if existing:
            with connecting(self._config):
                self._admin.delete_topics(existing)

    def list_topics(self) -> list[str]:
        """The names of all topics."""
        with connecting(self._config):
            return sorted(self._admin.list_topics())

    def describe_topics(self, names: Collection[str]) -> dict[str, Topic]:
        """Those that exist, by name."""
        if not names:
            return {}
        with connecting(self._config):
            found = self._admin.describe_topics(sorted(names))
        topics = {}
        for topic in found:
            error = kafka_errors.for_code(topic["error_code"])
            if error is kafka_errors.UnknownTopicOrPartitionError:
                continue
            if error is not kafka_errors.NoError:
                raise TopicError(f"topic {topic['name']!r} cannot be described: {error.__name__}")
            replicas = [len(partition["replica_nodes"]) for partition in topic["partitions"]]
            topics[topic["name"]] = Topic(
                topic["name"], len(replicas), min(replicas, default=0), str(topic["topic_id"])
            )
        return topics

    def existing_topics(self, names: Collection[str], timeout_s: float = SETTLE_S) -> dict[str, Topic]:
        """The same, for topics that should be there: a new one is not known to every broker at once, so one that is
        missing is asked for again until the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.describe_topics(names)
            if found.keys() >= set(names) or time.monotonic() >= deadline:
                return found
            time.sleep(0.1)

    def topic_configs(
        self, names: Collection[str], keys: Collection[str] = (), timeout_s: float = SETTLE_S
    ) -> dict[str, dict[str, str]]:
        """These settings of each topic, or all; defaults too. New topics are waited for as in existing_topics()."""
        if not names:
            return {}
        asked = dict.fromkeys(keys) or None
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, asked) for name in sorted(set(names))]
        deadline = time.monotonic() + timeout_s
        while True:
            found: dict[str, Any] = {}
            with connecting(self._config), suppress(kafka_errors.UnknownTopicOrPartitionError):
                found = self._admin.describe_configs(resources, config_filter="all").get("topic", {})
            missing = [name for name in names if not found.get(name)]
            if not missing:
                return {
                    name: {key: str(entry["value"]) for key, entry in entries.items()}
                    for name, entries in found.items()
                }
            if time.monotonic() >= deadline:
                shown = ", ".join(repr(name) for name in missing)
                raise TopicError(f"missing topic {shown}; create it with: gokamsg topics create")
            time.sleep(0.1)

    def topic_sizes(self, names: Collection[str]) -> dict[str, int]:
        """Bytes on disk of each topic, of one replica (the largest) of each partition.

        Raises BrokerUnavailableError when a broker does not tell, for want of the right to ask or of the API.
        """
        largest: dict[TopicPart, int] = {}
        with connecting(self._config):
            answers = self._admin.describe_log_dirs(list(names))
        for directory in (directory for answer in answers for directory in answer["log_dirs"]):
            error = kafka_errors.for_code(directory["error_code"])
            if error is not kafka_errors.NoError:
                raise BrokerUnavailableError(f"a broker does not tell the sizes of its logs: {error.__name__}")
            for topic in directory["topics"]:
                for part in topic["partitions"]:
                    place = (topic["name"], part["partition_index"])
                    largest[place] = max(largest.get(place, 0), part["partition_size"])
        return {name: sum(size for place, size in largest.items() if place[0] == name) for name in names}

    def high_watermarks(self, partitions: Collection[TopicPart]) -> dict[TopicPart, int]:
        """The end of each log, pending transactions included."""
        return self._offsets(partitions, OffsetSpec.LATEST)

    def log_starts(self, partitions: Collection[TopicPart]) -> dict[TopicPart, int]:
        """The first offset that each log has."""
        return self._offsets(partitions, OffsetSpec.EARLIEST)

    def offsets_at(self, partitions: Collection[TopicPart], timestamp_ms: int) -> dict[TopicPart, int]:
        """The first offset at or after the time, -1 where there is none."""
        return self._offsets(partitions, timestamp_ms)

    def groups(self) -> dict[str, str]:
        """The state of every group, by name."""
        with connecting(self._config):
            return {group["group_id"]: group["group_state"] for group in self._admin.list_groups()}

    def describe_groups(self, names: Collection[str]) -> dict[str, Group]:
        """State, protocol and members of each group, by name; `Dead` where there is none of the name."""
        if not names:
            return {}
        with connecting(self._config):
            found = self._admin.describe_groups(list(names))
        return {
            name: Group(
                name,
                str(group["group_state"]),
                str(group["protocol_data"]),
                tuple(_member(member) for member in group["members"]),
            )
            for name, group in found.items()
        }

    def group_offsets(self, names: Collection[str]) -> dict[str, dict[TopicPart, int]]:
        """What each group has committed, by name; pending transactions are not waited for."""
        if not names:
            return {}
        with connecting(self._config):
            found = self._admin.list_group_offsets(list(names))
        return {
            name: {(tp.topic, tp.partition): at.offset for tp, at in offsets.items() if at.offset >= 0}
            for name, offsets in found.items()
        }

    def delete_group(self, name: str) -> bool:
        """Whether it is gone; a group with members stays."""
        with connecting(self._config):
            answer = self._admin.delete_groups([name])[name]
        return str(answer) in ("OK", "NoError", "GroupIdNotFoundError") or answer is None

    def remove_member(self, group: str, instance_id: str) -> bool:
        """Takes a static member out of its group; whether it was there."""
        with connecting(self._config):
            answer = self._admin.remove_group_members(group, [MemberToRemove(group_instance_id=instance_id)])
        return all(error is kafka_errors.NoError for error in answer.values())

    def _offsets(self, partitions: Collection[TopicPart], spec: Any) -> dict[TopicPart, int]:
        if not partitions:
            return {}
        wanted = {TopicPartition(topic, partition): spec for topic, partition in partitions}
        with connecting(self._config):
            found = self._admin.list_partition_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED)
        return {(tp.topic, tp.partition): int(at.offset) for tp, at in found.items()}


def _member(member: Mapping[str, Any]) -> Member:
    assignment = member["member_assignment"]
    assigned = assignment["assigned_partitions"] if isinstance(assignment, Mapping) else ()
    return Member(
        member["member_id"],
        member["group_instance_id"],
        member["client_id"],
        str(member["client_host"]).lstrip("/"),
        frozenset((topic["topic"], partition) for topic in assigned for partition in topic["partitions"]),
    )
