"""The service's topics: which there are, which of them are tables, and which must have equal partition counts.

All of it follows from the roles' graphs. Topics are co-partitioned if one role needs it; a topic that is made takes the
partition count of those that exist among its co-partitioned ones.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from gokamsg.engine import GroupGraph, TopicManager
from gokamsg.errors import TopicError

from .roles import ROLES, RoleOptions

MENDING = (
    "Delete those that are wrong (kafka-topics.sh --delete --topic NAME), "
    "then create them again with 'gokamsg topics create'."
)


class TopicSettings(Struct, frozen=True):
    """What new topics get. A replication of None is three, or as many as there are brokers."""

    partitions: int = 8
    replication: int | None = None
    retention_ms: int | None = None


def graphs() -> dict[str, GroupGraph]:
    """Every role's graph."""
    return {role.name: role.build(RoleOptions()) for role in ROLES.values()}


def tables() -> frozenset[str]:
    """The names of the topics that are tables (compacted)."""
    edges = [edge for graph in graphs().values() for edge in (graph.group_table, *graph.joint_tables)]
    return frozenset(edge.topic for edge in edges if edge is not None)


def all_topics() -> tuple[str, ...]:
    """Every topic, streams before tables."""
    names = {edge.topic for graph in graphs().values() for edge in graph.all_edges()}
    return tuple(sorted(names, key=lambda name: (name in tables(), name)))


def topics_of(role: str) -> tuple[str, ...]:
    """The topics that a role reads or writes."""
    return tuple(sorted({edge.topic for edge in graphs()[role].all_edges()}))


def copartitioned() -> tuple[frozenset[str], ...]:
    """The sets of topics with equal partition counts."""
    sets: list[frozenset[str]] = []
    for graph in graphs().values():
        own = [edge.topic for edge in (graph.loop_stream, graph.group_table) if edge is not None]
        joined = frozenset((*graph.copartitioned_topics(), *own))
        touching = [known for known in sets if known & joined]
        sets = [known for known in sets if not known & joined] + [joined.union(*touching)]
    return tuple(sorted(sets, key=sorted))


def ensure(manager: TopicManager, names: Iterable[str], settings: TopicSettings | None = None) -> Iterator[str]:
    """Creates those of `names` that are missing, and yields the names of those it created.

    Raises TopicError, before anything is made, if topics that belong together with one of them do not match.
    """
    settings = settings or TopicSettings()
    wanted = tuple(dict.fromkeys(names))
    existing = manager.describe(all_topics())
    counts = {name: topic.partitions for name, topic in existing.items()}
    if wrong := list(mismatches(counts, wanted)):
        raise TopicError(f"topics that one role reads together differ in partitions: {'; '.join(wrong)}.\n{MENDING}")
    for name in wanted:
        if name in existing:
            continue
        together = next((topics for topics in copartitioned() if name in topics), frozenset())
        partitions = next((counts[other] for other in together if other in counts), settings.partitions)
        if name in tables():
            made = manager.ensure_table(name, partitions, replication=settings.replication)
        else:
            made = manager.ensure_stream(
                name, partitions, replication=settings.replication, retention_ms=settings.retention_ms
            )
        if made:  # not by another process meanwhile
            yield name


def mismatches(partitions: Mapping[str, int], names: Collection[str] = ()) -> Iterator[str]:
    """A sentence for each set of co-partitioned topics whose partition counts differ; only sets with one of `names`."""
    for together in copartitioned():
        counts = {name: partitions[name] for name in sorted(together) if name in partitions}
        if len(set(counts.values())) > 1 and (not names or together & set(names)):
            yield ", ".join(f"{name} has {count}" for name, count in counts.items())
