"""The topics of groups: made with the right settings, checked against what is there.

Streams are kept for a week, in segments of a day, so that what is kept does not outlast the group's offsets
(offsets.retention.minutes, a week by default). Tables are compacted. Replication is three, or as many as there are
brokers. Making a topic that is there already does nothing; one that does not fit is refused with the command that mends
it, never altered behind a person's back.

Used from one thread, as a context manager.
"""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType

from gokamsg.engine.clients import Admin, ClientConfig, Topic
from gokamsg.engine.graph import GroupGraph
from gokamsg.errors import TopicError

__all__ = ["PARTITIONS", "RETENTION_MS", "Topic", "TopicManager"]

PARTITIONS = 8
REPLICATION = 3
RETENTION_MS = 7 * 24 * 3600 * 1000
SEGMENT_MS = 24 * 3600 * 1000


class TopicManager:
    """See the module."""

    def __init__(self, config: ClientConfig) -> None:
        self._admin = Admin(config)

    def __enter__(self) -> TopicManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._admin.close()

    def describe(self, names: Collection[str]) -> dict[str, Topic]:
        """Those of `names` that exist."""
        return self._admin.describe_topics(names)

    def ensure_stream(
        self,
        name: str,
        partitions: int = PARTITIONS,
        *,
        replication: int | None = None,
        retention_ms: int | None = None,
    ) -> bool:
        """Make a stream unless it is there; True if it was made. TopicError if it does not fit."""
        retention = RETENTION_MS if retention_ms is None else retention_ms
        segment = min(SEGMENT_MS, retention) if retention > 0 else SEGMENT_MS
        config = {"cleanup.policy": "delete", "retention.ms": str(retention), "segment.ms": str(max(segment, 60_000))}
        return self._ensure(name, partitions, replication, config)

    def ensure_table(self, name: str, partitions: int = PARTITIONS, *, replication: int | None = None) -> bool:
        """Make a table unless it is there; True if it was made. TopicError if it does not fit."""
        return self._ensure(name, partitions, replication, {"cleanup.policy": "compact"})

    def mend_policy(self, name: str, *, table: bool) -> None:
        """Set the cleanup policy that a table or a stream needs."""
        self._admin.alter_topic(name, {"cleanup.policy": "compact" if table else "delete"})

    def prepare(self, graph: GroupGraph) -> dict[str, Topic]:
        """All topics of a group: its own loop and table made like its inputs, the others checked.

        TopicError names what is missing or does not fit.
        """
        own = [edge for edge in (graph.loop_stream, graph.group_table) if edge is not None]
        names = {edge.topic for edge in graph.all_edges()}
        existing = self.describe(names)
        needed = {edge.topic for edge in graph.all_edges()} - {edge.topic for edge in own}
        missing = sorted(needed - existing.keys())
        if missing:
            raise TopicError(
                f"group {graph.group!r} needs topics that do not exist: {', '.join(missing)};"
                " create them with: gokamsg topics create"
            )
        partitions = self.check_copartitioned(graph, existing)
        made = [
            edge.topic
            for edge in own
            if (self.ensure_table if edge is graph.group_table else self.ensure_stream)(edge.topic, partitions)
        ]
        for edge in (*graph.joint_tables, *graph.lookup_tables):
            _check_policy(existing[edge.topic], table=True)
        if made:
            existing |= self.describe(made)
        return existing

    def check_copartitioned(self, graph: GroupGraph, existing: dict[str, Topic]) -> int:
        """The partition count that the group's inputs and joins have in common; TopicError if they differ."""
        counts = {name: existing[name].partitions for name in graph.copartitioned_topics()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise TopicError(
                f"the inputs and joins of group {graph.group!r} must have the same number of partitions, but {listed};"
                " delete the one that is wrong and make it again with: gokamsg topics create"
            )
        return next(iter(counts.values()))

    def _ensure(self, name: str, partitions: int, replication: int | None, config: dict[str, str]) -> bool:
        table = config["cleanup.policy"] == "compact"
        found = self.describe([name]).get(name)
        if found is None:
            if replication is None:
                replication = min(REPLICATION, self._admin.broker_count())
            if self._admin.create_topic(name, partitions=partitions, replication=replication, config=config):
                return True
            found = self.describe([name])[name]  # another process was faster
        if found.partitions != partitions:
            raise TopicError(
                f"topic {name!r} has {found.partitions} partitions where {partitions} are needed; delete it and make it"
                " again with: gokamsg topics create (its records are lost), or give the others as many"
            )
        _check_policy(found, table=table)
        return False


def _check_policy(topic: Topic, *, table: bool) -> None:
    policy = topic.config.get("cleanup.policy", "")
    if table and policy != "compact":
        raise TopicError(
            f"topic {topic.name!r} has cleanup.policy={policy}, so a table in it would lose rows; it needs compact:"
            " gokamsg topics create --fix"
        )
    if not table and topic.compacted:
        raise TopicError(
            f"topic {topic.name!r} has cleanup.policy={policy}, so a stream in it would lose records; it needs delete:"
            " gokamsg topics create --fix"
        )
