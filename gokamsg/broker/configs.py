"""Topic and broker configs: one table of names, defaults, types and checks; DescribeConfigs is rendered from it.

A config that this broker has no use for is accepted, kept and shown, as long as its value is valid: clients set them
for every cluster alike. What would need work that the broker does not do (compressing anew) is refused. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from msgspec import Struct

from gokamsg.broker.settings import BrokerSettings

MAX_LONG = (1 << 63) - 1
MAX_INT = (1 << 31) - 1


class ConfigType(IntEnum):
    """DescribeConfigs v3+ says what kind of value a config has."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    DOUBLE = 6
    LIST = 7


class ConfigSource(IntEnum):
    TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


class ConfigError(ValueError):
    """A config name or value that is refused; str() is the sentence for the client."""


class ConfigRow(Struct, frozen=True):
    """One config that a topic may have."""

    name: str
    type: ConfigType
    default: str
    low: float = 0
    high: float = MAX_LONG
    choices: tuple[str, ...] = ()
    setting: str | None = None  # the broker setting that its default comes from
    broker_name: str | None = None  # the broker config of the same meaning

    def check(self, value: str) -> None:
        """Raise ConfigError unless the value is one that this config can have."""
        if self.type in (ConfigType.INT, ConfigType.LONG, ConfigType.DOUBLE):
            self._check_number(value)
        elif self.type is ConfigType.BOOLEAN:
            if value.lower() not in ("true", "false"):
                raise ConfigError(f"{self.name}={value!r} is neither true nor false")
        elif self.choices:
            parts = [part.strip() for part in value.split(",")] if self.type is ConfigType.LIST else [value]
            if any(part not in self.choices for part in parts):
                raise ConfigError(f"{self.name}={value!r}: only {', '.join(self.choices)} can be had from this broker")

    def _check_number(self, value: str) -> None:
        try:
            number = float(value) if self.type is ConfigType.DOUBLE else int(value)
        except ValueError:
            raise ConfigError(f"{self.name}={value!r} is not a number") from None
        high = min(self.high, MAX_INT) if self.type is ConfigType.INT else self.high
        if not self.low <= number <= high:
            raise ConfigError(f"{self.name}={value!r} is not between {self.low:g} and {high:g}")


_BOOLEAN, _STRING, _INT, _LONG = ConfigType.BOOLEAN, ConfigType.STRING, ConfigType.INT, ConfigType.LONG
_DOUBLE, _LIST = ConfigType.DOUBLE, ConfigType.LIST

_ROWS = (
    ConfigRow("cleanup.policy", _LIST, "delete", choices=("delete", "compact"), broker_name="log.cleanup.policy"),
    ConfigRow("compression.type", _STRING, "producer", choices=("producer",), broker_name="compression.type"),
    ConfigRow(
        "delete.retention.ms",
        _LONG,
        "86400000",
        setting="delete_retention_ms",
        broker_name="log.cleaner.delete.retention.ms",
    ),
    ConfigRow("file.delete.delay.ms", _LONG, "60000"),
    ConfigRow("flush.messages", _LONG, str(MAX_LONG), low=1),
    ConfigRow("flush.ms", _LONG, str(MAX_LONG)),
    ConfigRow("follower.replication.throttled.replicas", _LIST, ""),
    ConfigRow("index.interval.bytes", _INT, "4096"),
    ConfigRow("leader.replication.throttled.replicas", _LIST, ""),
    ConfigRow("local.retention.bytes", _LONG, "-2", low=-2),
    ConfigRow("local.retention.ms", _LONG, "-2", low=-2),
    ConfigRow("max.compaction.lag.ms", _LONG, str(MAX_LONG), low=1),
    ConfigRow("max.message.bytes", _INT, "1048588", setting="message_max_bytes", broker_name="message.max.bytes"),
    ConfigRow("message.downconversion.enable", _BOOLEAN, "true"),
    ConfigRow("message.format.version", _STRING, "3.0-IV1"),
    ConfigRow("message.timestamp.after.max.ms", _LONG, str(MAX_LONG)),
    ConfigRow("message.timestamp.before.max.ms", _LONG, str(MAX_LONG)),
    ConfigRow("message.timestamp.difference.max.ms", _LONG, str(MAX_LONG)),
    ConfigRow("message.timestamp.type", _STRING, "CreateTime", choices=("CreateTime", "LogAppendTime")),
    ConfigRow("min.cleanable.dirty.ratio", _DOUBLE, "0.5", high=1),
    ConfigRow("min.compaction.lag.ms", _LONG, "0"),
    ConfigRow("min.insync.replicas", _INT, "1", low=1),
    ConfigRow("preallocate", _BOOLEAN, "false"),
    ConfigRow("remote.storage.enable", _BOOLEAN, "false"),
    ConfigRow("retention.bytes", _LONG, "-1", low=-1, setting="retention_bytes", broker_name="log.retention.bytes"),
    ConfigRow("retention.ms", _LONG, "604800000", low=-1, setting="retention_ms", broker_name="log.retention.ms"),
    ConfigRow("segment.bytes", _INT, "1073741824", low=14),
    ConfigRow("segment.index.bytes", _INT, "10485760", low=4),
    ConfigRow("segment.jitter.ms", _LONG, "0"),
    ConfigRow("segment.ms", _LONG, "604800000", low=1),
    ConfigRow("unclean.leader.election.enable", _BOOLEAN, "false"),
)
TOPIC_CONFIGS: Mapping[str, ConfigRow] = {row.name: row for row in _ROWS}


class TopicConfig(Struct, frozen=True):
    """A topic's configs as the broker acts on them."""

    compact: bool
    delete: bool
    append_time: bool
    max_message_bytes: int
    retention_ms: int
    retention_bytes: int
    delete_retention_ms: int
    min_dirty_ratio: float
    min_compaction_lag_ms: int
    max_compaction_lag_ms: int
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int

    @classmethod
    def of(cls, configs: Mapping[str, str], settings: BrokerSettings) -> TopicConfig:
        """The effective values: what is set on the topic, else the broker's defaults."""

        def value(name: str) -> str:
            return configs.get(name) or default_of(TOPIC_CONFIGS[name], settings)

        policies = {part.strip() for part in value("cleanup.policy").split(",")}
        difference = int(value("message.timestamp.difference.max.ms"))
        return cls(
            compact="compact" in policies,
            delete="delete" in policies,
            append_time=value("message.timestamp.type") == "LogAppendTime",
            max_message_bytes=int(value("max.message.bytes")),
            retention_ms=int(value("retention.ms")),
            retention_bytes=int(value("retention.bytes")),
            delete_retention_ms=int(value("delete.retention.ms")),
            min_dirty_ratio=float(value("min.cleanable.dirty.ratio")),
            min_compaction_lag_ms=int(value("min.compaction.lag.ms")),
            max_compaction_lag_ms=int(value("max.compaction.lag.ms")),
            timestamp_before_max_ms=min(difference, int(value("message.timestamp.before.max.ms"))),
            timestamp_after_max_ms=min(difference, int(value("message.timestamp.after.max.ms"))),
        )


def default_of(row: ConfigRow, settings: BrokerSettings) -> str:
    """What a topic gets that does not set this config."""
    return row.default if row.setting is None else str(getattr(settings, row.setting))


def check_topic_configs(configs: Mapping[str, str | None]) -> dict[str, str]:
    """The configs, every one known and valid; raises ConfigError."""
    checked: dict[str, str] = {}
    for name, value in configs.items():
        row = TOPIC_CONFIGS.get(name)
        if row is None:
            raise ConfigError(f"there is no topic config {name!r}")
        if value is None:
            raise ConfigError(f"the topic config {name!r} has no value")
        row.check(value)
        checked[name] = value
    return checked


# broker configs that clients ask for: name -> (type, value)
_BROKER_CONFIGS: Mapping[str, tuple[ConfigType, Callable[[BrokerSettings], object]]] = {
    "auto.create.topics.enable": (_BOOLEAN, lambda s: str(s.auto_create_topics).lower()),
    "broker.id": (_INT, lambda s: 1),
    "default.replication.factor": (_INT, lambda s: 1),
    "delete.topic.enable": (_BOOLEAN, lambda s: "true"),
    "group.initial.rebalance.delay.ms": (_INT, lambda s: s.group_initial_rebalance_delay_ms),
    "group.max.session.timeout.ms": (_INT, lambda s: s.group_max_session_timeout_ms),
    "group.min.session.timeout.ms": (_INT, lambda s: s.group_min_session_timeout_ms),
    "log.cleaner.delete.retention.ms": (_LONG, lambda s: s.delete_retention_ms),
    "log.cleanup.policy": (_LIST, lambda s: "delete"),
    "log.dirs": (_STRING, lambda s: str(s.data_dir)),
    "log.retention.bytes": (_LONG, lambda s: s.retention_bytes),
    "log.retention.ms": (_LONG, lambda s: s.retention_ms),
    "message.max.bytes": (_INT, lambda s: s.message_max_bytes),
    "min.insync.replicas": (_INT, lambda s: 1),
    "num.partitions": (_INT, lambda s: s.default_partitions),
    "offsets.retention.minutes": (_INT, lambda s: s.offsets_retention_ms // 60_000),
    "offsets.topic.replication.factor": (_INT, lambda s: 1),
    "socket.request.max.bytes": (_INT, lambda s: s.max_request_bytes),
    "transaction.max.timeout.ms": (_INT, lambda s: s.transaction_max_timeout_ms),
    "transaction.state.log.replication.factor": (_INT, lambda s: 1),
}


def broker_configs(settings: BrokerSettings) -> dict[str, tuple[ConfigType, str]]:
    """The broker's own configs, read-only: name -> (type, value)."""
    return {name: (kind, str(value(settings))) for name, (kind, value) in _BROKER_CONFIGS.items()}
