"""The Kafka cluster at the addresses of a ClientConfig, and state directories on this machine's disk."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gokamsg.engine.clients import (
    Admin,
    BatchSender,
    ClientConfig,
    ClusterInfo,
    GroupConsumer,
    IdempotentProducer,
    Patience,
    TableConsumer,
    TransactionalProducer,
    check_broker,
)
from gokamsg.engine.clock import Clock
from gokamsg.engine.cluster import Cluster
from gokamsg.engine.identity import Identity, acquire
from gokamsg.engine.offsets import HandledMarks
from gokamsg.engine.storage import Storage
from gokamsg.engine.tables import sqlite_builder


class KafkaCluster:
    """See engine/cluster.py. Raises BrokerUnavailableError where nobody answers, StateError for the directory."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self.clock = Clock()

    def check(self) -> ClusterInfo:
        return check_broker(self._config)

    def admin(self) -> Admin:
        return Admin(self._config)

    def group_consumer(self, *, group: str, topics: Sequence[str], patience: Patience) -> GroupConsumer:
        return GroupConsumer(self._config, group=group, topics=topics, patience=patience)

    def table_consumer(
        self,
        *,
        topics: Iterable[str] = (),
        patience: Patience | None = None,
        fetched: Callable[[], None] | None = None,
    ) -> TableConsumer:
        return TableConsumer(self._config, topics=topics, patience=patience, fetched=fetched)

    def transactional_producer(
        self, *, transactional_id: str, transaction_timeout_ms: int, topics: Iterable[str], patience: Patience
    ) -> TransactionalProducer:
        return TransactionalProducer(
            self._config,
            transactional_id=transactional_id,
            transaction_timeout_ms=transaction_timeout_ms,
            topics=topics,
            patience=patience,
        )

    def idempotent_producer(self, *, topics: Iterable[str], patience: Patience) -> IdempotentProducer:
        return IdempotentProducer(self._config, topics=topics, patience=patience)

    def sender(self) -> BatchSender:
        return BatchSender(self._config, enable_idempotence=True)

    def home(self, state_dir: Path, cluster_id: str, group: str) -> "DiskHome":
        return DiskHome(acquire(state_dir, cluster_id, group))


class DiskHome:
    """A locked slot in the state directory."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.instance_id = identity.instance_id
        self.transactional_id = identity.transactional_id
        self.marks = HandledMarks(identity.directory.parent / "handled")
        self._build = sqlite_builder(identity.directory)

    def storage(self, topic: str, partition: int, topic_id: str) -> Storage:
        return self._build(topic, partition, topic_id)

    def release(self) -> None:
        self._identity.release()


def connect(config: ClientConfig | Cluster) -> Cluster:
    """The cluster of a configuration; a cluster stands for itself."""
    return KafkaCluster(config) if isinstance(config, ClientConfig) else config
