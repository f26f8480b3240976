"""topics create, topics describe: the service's topics on the cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError, TopicError

from .kafka import client_config
from .registration import command

if TYPE_CHECKING:
    from gokamsg.engine import Admin


@command("topics create", "Create the topics of the messaging service; those that exist stay as they are.")
def create(settings: Settings) -> None:
    from gokamsg.engine import TopicManager
    from gokamsg.messaging.topics import TopicSettings, all_topics, ensure

    wanted = TopicSettings(settings.partitions, settings.replication, settings.retention_ms)
    names = all_topics()
    with TopicManager(client_config(settings)) as manager:
        created = set(ensure(manager, names, wanted))
        found = manager.existing(names)
    for name in names:
        partitions = found[name].partitions
        outcome = "created" if name in created else "exists"
        if settings.json:
            console.data({"topic": name, "partitions": partitions, "outcome": outcome})
        else:
            console.out(f"{name}: {outcome}, {partitions} partitions")


@dataclass(frozen=True, slots=True)
class TopicRow:
    """What there is to say of a topic.

    `offsets`: records, transaction markers and what compaction has removed. `bytes`: on disk, of one replica; None if
    the brokers do not tell.
    """

    topic: str
    partitions: int
    replicas: int
    policy: str
    retention_ms: int
    offsets: int
    bytes: int | None


@command("topics describe", "Show the topics of the messaging service, and check that they fit together.")
def describe(settings: Settings) -> None:
    from gokamsg.engine import Admin
    from gokamsg.messaging.topics import MENDING, all_topics, copartitioned, mismatches

    with Admin(client_config(settings)) as admin:
        rows = describe_all(admin, all_topics())
    found = {row.topic: row.partitions for row in rows}
    missing = [name for name in all_topics() if name not in found]
    if settings.json:
        for row in rows:
            console.data(asdict(row))
    else:
        show(rows)
        for together in copartitioned():
            counts = {found[name] for name in together if name in found}
            if len(counts) == 1:
                console.sentence(f"co-partitioned: {', '.join(sorted(together & found.keys()))}: {counts.pop()} each")
        if missing:
            console.note(f"not there yet: {', '.join(missing)} (gokamsg topics create)")
    if wrong := list(mismatches(found)):
        raise TopicError(f"topics that one role reads together differ in partitions: {'; '.join(wrong)}.\n{MENDING}")


def describe_all(admin: "Admin", names: tuple[str, ...]) -> list[TopicRow]:
    """The rows of those topics that exist."""
    found = admin.describe_topics(names)
    places = [(topic.name, partition) for topic in found.values() for partition in range(topic.partitions)]
    ends, starts = admin.high_watermarks(places), admin.log_starts(places)
    sizes = sizes_of(admin, found)
    configs = admin.topic_configs(found)
    rows = []
    for topic in (found[name] for name in names if name in found):
        config = configs[topic.name]
        own = [(topic.name, partition) for partition in range(topic.partitions)]
        rows.append(
            TopicRow(
                topic.name,
                topic.partitions,
                topic.replication,
                config.get("cleanup.policy", ""),
                int(config.get("retention.ms", "-1")),
                sum(ends[place] - starts[place] for place in own),
                sizes.get(topic.name),
            )
        )
    return rows


def sizes_of(admin: "Admin", names: Iterable[str]) -> Mapping[str, int]:
    """The topics' bytes; without them, and a note that says why, where the brokers do not tell."""
    try:
        return admin.topic_sizes(list(names))
    except BrokerUnavailableError as error:
        console.note(f"bytes are left out: {error}")
        return {}


def show(rows: list[TopicRow]) -> None:
    """The rows as a table; without the column of bytes where there are none."""
    columns: tuple[str, ...] = ("topic", "partitions", "replicas", "policy", "kept", "offsets", "bytes")
    cells: list[tuple[str, ...]] = [
        (
            row.topic,
            str(row.partitions),
            str(row.replicas),
            row.policy,
            kept_text(row.retention_ms) if "delete" in row.policy else "",
            console.count_text(row.offsets),
            "" if row.bytes is None else console.size_text(row.bytes),
        )
        for row in rows
    ]
    if rows and all(row.bytes is None for row in rows):
        columns, cells = columns[:-1], [cell[:-1] for cell in cells]
    console.table(columns, cells, right=("partitions", "replicas", "kept", "offsets", "bytes"))


def kept_text(retention_ms: int) -> str:
    """'7 d', '12 h', '5 min', 'for ever'."""
    if retention_ms < 0:
        return "for ever"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if retention_ms >= size and retention_ms % size == 0:
            return f"{retention_ms // size:,} {unit}"
    return f"{retention_ms:,} ms"
