"""Makes the topics that a group needs, and checks those that are there.

1. What exists is never changed; a mismatch that would lose or misplace data raises TopicError with the way out, one
   that only matters for later is logged.
2. Doing it twice, or at the same time in two processes, is harmless.
3. Streams keep seven days in segments of one day, so that what is kept does not outlast the group's offsets; tables
   are compacted.

One thread at a time.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from gokamsg.engine.clients import ClientConfig, ClusterInfo, NewTopic, Topic
from gokamsg.engine.cluster import Cluster
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.kafka_cluster import connect
from gokamsg.engine.names import quarantine_commands_of, quarantine_of
from gokamsg.errors import TopicError, UsageError

__all__ = ["Topic", "TopicManager"]

log = logging.getLogger(__name__)

Mismatch = Literal["ignore", "warn", "fail"]
MISMATCH: tuple[Mismatch, ...] = ("ignore", "warn", "fail")

PARTITIONS = 8
QUARANTINE_BYTES = 8 << 20  # a record of any input's size and what is told of it
REPLICATION = 3  # or as many as there are brokers
DAY_MS = 24 * 60 * 60 * 1000
RETENTION_MS = 7 * DAY_MS
STREAM = {"cleanup.policy": "delete", "retention.ms": str(RETENTION_MS), "segment.ms": str(DAY_MS)}
TABLE = {"cleanup.policy": "compact"}


class TopicManager:
    """See the module. A context manager: it has a connection.

    `mismatch` says what the ensure methods do about a topic that exists otherwise than they would make it, in partition
    count, the settings given, or replication where that is given: "ignore" it, "warn" of it, or "fail" (TopicError).
    By default they fail where data would be misplaced or lost, at another partition count and at a table that is not
    compacted, and ignore the rest. With `no_create` a topic that is missing is a TopicError.
    """

    def __init__(
        self, config: ClientConfig | Cluster, *, mismatch: Mismatch | None = None, no_create: bool = False
    ) -> None:
        if mismatch not in (None, *MISMATCH):
            raise UsageError(f"{mismatch!r} is nothing to do about a mismatch; choose one of: {', '.join(MISMATCH)}")
        self._mismatch = mismatch
        self._no_create = no_create
        self._admin = connect(config).admin()
        self._brokers: int | None = None

    def __enter__(self) -> "TopicManager":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connection."""
        self._admin.close()

    def cluster(self) -> ClusterInfo:
        """Who the cluster is."""
        return self._admin.cluster()

    def cluster_id(self) -> str:
        """Which cluster it is; mostly known without asking."""
        return self._admin.cluster_id()

    def describe(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those that exist, by name."""
        return dict(self._admin.describe_topics(set(names)))

    def existing(self, names: Collection[str]) -> dict[str, Topic]:
        """All of them, by name; TopicError when one does not exist, also a moment later."""
        found = dict(self._admin.existing_topics(names))
        missing = sorted(set(names) - found.keys())
        if missing:
            shown = ", ".join(repr(name) for name in missing)
            raise TopicError(f"missing topic {shown}; create it with: gokamsg topics create")
        return found

    def config(self, name: str) -> dict[str, str]:
        """Every setting of a topic that exists."""
        return dict(self._admin.topic_configs([name])[name])

    def partitions(self, name: str) -> int:
        """TopicError when the topic does not exist."""
        return self.existing([name])[name].partitions

    def get_offset(self, name: str, partition: int, time: int) -> int:
        """Goka's question: the offset at a time in milliseconds, -1 for the end, -2 for the start."""
        part = (name, partition)
        if time == -1:
            return self._admin.high_watermarks([part])[part]
        return self._admin.log_starts([part])[part] if time == -2 else self._admin.offsets_at([part], time)[part]

    def ensure_stream(
        self,
        name: str,
        partitions: int = PARTITIONS,
        *,
        replication: int | None = None,
        retention_ms: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> bool:
        """Whether it was made. TopicError when it exists with another partition count."""
        retention = {} if retention_ms is None else {"retention.ms": str(retention_ms)}
        settings = {**STREAM, **retention, **(config or {})}
        return self.ensure_topic(name, partitions, replication=replication, config=settings)

    def ensure_table(
        self,
        name: str,
        partitions: int = PARTITIONS,
        *,
        replication: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> bool:
        """Whether it was made. TopicError when it exists with another partition count, or is not compacted."""
        settings = {**TABLE, **(config or {})}
        made = self.ensure_topic(name, partitions, replication=replication, config=settings)
        if not made and self._mismatch is None:
            self._check_table(name, self.config(name))
        return made

    def ensure_topic(
        self, name: str, partitions: int, *, replication: int | None = None, config: Mapping[str, str] | None = None
    ) -> bool:
        """Whether it was made. TopicError when it exists with another partition count."""
        if partitions < 1:
            raise UsageError(f"topic {name!r} cannot have {partitions} partitions")
        existing = self.describe([name]).get(name)
        made = False
        if existing is None:
            existing, made = self._make(name, partitions, config or {}, replication)
        if self._mismatch is not None and not made:
            self._compare(existing, partitions, replication, config or {})
        elif existing.partitions != partitions:
            raise TopicError(
                f"topic {name!r} has {existing.partitions} partitions instead of {partitions}, and keys are placed by "
                "that number; ask for as many, or delete the topic to have it made again"
            )
        return made

    def prepare(self, graph: GroupGraph, *, quarantine: bool = False) -> dict[str, Topic]:
        """Makes the group's loop, table and quarantine with its inputs' partition count, and checks all that it reads.

        Returns the topics that exist, the quarantine's too. Outputs may be missing here: the first emit would tell.
        """
        inputs = [edge.topic for edge in graph.input_streams]
        tables = [edge.topic for edge in (*graph.joint_tables, *graph.lookup_tables)]
        found = self.describe({*(edge.topic for edge in graph.all_edges()), *_quarantine(graph)})
        if not found.keys() >= {*inputs, *tables}:
            found |= self.existing([*inputs, *tables])
        _refuse_unequal({name: found[name].partitions for name in graph.copartitioned_topics()})
        own = _own_topics(graph, quarantine=quarantine)
        if self._mismatch is None:
            tables += [name for name, config in own.items() if config["cleanup.policy"] == "compact" and name in found]
        source = found[inputs[0]]
        missing = [name for name in own if name not in found]
        for name in own.keys() & found.keys():  # first, so that nothing is made for a group that is refused
            self._check_own(found[name], source, own[name])
        for name in missing:
            found[name], _ = self._make(name, source.partitions, own[name])
            self._check_own(found[name], source, own[name])
        configs = self._admin.topic_configs([*inputs, *tables], ["cleanup.policy"])
        for name in tables:
            self._check_table(name, configs[name])
        for name in inputs:
            if "compact" in configs[name].get("cleanup.policy", ""):
                log.warning("topic %r is compacted: of records with the same key, unread ones may vanish", name)
        return found

    def _make(
        self, name: str, partitions: int, config: Mapping[str, str], replication: int | None = None
    ) -> tuple[Topic, bool]:
        """The topic, and whether it was this call that made it: another process may be doing the same."""
        if self._no_create:
            raise TopicError(f"topic {name!r} does not exist, and is not to be made here; create it first")
        topic = NewTopic(name, partitions, self._replication(replication), config)
        made = bool(self._admin.create_topics([topic]))
        return self.existing([name])[name], made

    def _check_own(self, topic: Topic, source: Topic, config: Mapping[str, str]) -> None:
        """A group's own topic must have its input's partition count."""
        if self._mismatch is not None:
            self._compare(topic, source.partitions, None, config)
        elif topic.partitions != source.partitions:
            raise TopicError(
                f"topic {topic.name!r} has {topic.partitions} partitions and its group's input {source.name!r} has "
                f"{source.partitions}, but a key must be in the same one of both; make {source.name!r} again with "
                f"{topic.partitions}, or delete {topic.name!r} to begin without what is in it"
            )

    def check_copartitioned(self, names: Collection[str]) -> None:
        """TopicError when they differ in partition count."""
        _refuse_unequal({name: topic.partitions for name, topic in self.existing(names).items()})

    def _compare(self, topic: Topic, partitions: int, replication: int | None, config: Mapping[str, str]) -> None:
        """Do what the option says about a topic that is other than it would be made."""
        if self._mismatch == "ignore":
            return
        found: list[tuple[str, object, object]] = [("partitions", topic.partitions, partitions)]
        if replication is not None:
            found.append(("replicas", topic.replication, replication))
        present = self.config(topic.name) if config else {}
        found += [(name, present.get(name), wanted) for name, wanted in config.items()]
        wrong = ", ".join(f"{name} is {there}, not {wanted}" for name, there, wanted in found if there != wanted)
        if wrong and self._mismatch == "fail":
            raise TopicError(f"topic {topic.name!r} is not as it should be: {wrong}; change it or delete it")
        if wrong:
            log.warning("topic %r is not as it should be: %s", topic.name, wrong)

    def _check_table(self, name: str, config: Mapping[str, str]) -> None:
        policy = config.get("cleanup.policy", "")
        if "compact" not in policy:
            raise TopicError(
                f"topic {name!r} is a table, but its cleanup.policy is {policy!r}, which would delete its rows; set it "
                f"with: kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=compact"
            )
        if "delete" in policy:
            log.warning("table %r has cleanup.policy=%s: its rows vanish after retention.ms", name, policy)

    def _replication(self, wanted: int | None) -> int:
        if wanted is not None:
            return wanted
        if self._brokers is None:
            self._brokers = self.cluster().broker_count
        return max(1, min(REPLICATION, self._brokers))


def _refuse_unequal(counts: Mapping[str, int]) -> None:
    """TopicError when the topics differ in partition count."""
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in sorted(counts.items()))
        raise TopicError(
            f"topics of one group must have equally many partitions: {shown}; "
            "delete those that are wrong to have them made again"
        )


def _own_topics(graph: GroupGraph, *, quarantine: bool) -> dict[str, Mapping[str, str]]:
    """The settings of the topics that are the group's alone."""
    own: dict[str, Mapping[str, str]] = {}
    if graph.loop_stream is not None:
        own[graph.loop_stream.topic] = STREAM
    if graph.group_table is not None:
        own[graph.group_table.topic] = TABLE
    if quarantine:
        parked, commands = _quarantine(graph)
        own[parked] = {**TABLE, "max.message.bytes": str(QUARANTINE_BYTES)}
        own[commands] = STREAM
    return own


def _quarantine(graph: GroupGraph) -> tuple[str, str]:
    return quarantine_of(graph.group), quarantine_commands_of(graph.group)
