"""What a broker is told when it starts; a frozen value without behaviour.

The defaults are Apache Kafka's where Kafka has the setting. Times are in milliseconds where Kafka's are (the names end
in _ms), in seconds elsewhere (_s). The broker reads nothing but this: no environment, no files.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

MIB = 1024 * 1024


class BrokerSettings(Struct, frozen=True, kw_only=True):
    """One broker's settings; only data_dir has no default."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 9092  # 0 takes any free port
    advertised_host: str | None = None  # what clients are told to connect to; None means the host itself
    advertised_port: int | None = None  # None means the port that is really listened on
    fsync: bool = True  # False survives kill -9, but power loss may take the last acknowledged records

    # topics
    default_partitions: int = 8
    auto_create_topics: bool = False
    message_max_bytes: int = 1_048_588
    retention_ms: int = 7 * 24 * 3600 * 1000
    retention_bytes: int = -1
    delete_retention_ms: int = 24 * 3600 * 1000
    max_partitions: int = 10_000

    # groups and transactions
    group_initial_rebalance_delay_ms: int = 0
    group_min_session_timeout_ms: int = 6_000
    group_max_session_timeout_ms: int = 1_800_000
    offsets_retention_ms: int = 7 * 24 * 3600 * 1000
    transaction_max_timeout_ms: int = 900_000
    transaction_check_interval_ms: int = 1_000
    transactional_id_expiration_ms: int = 7 * 24 * 3600 * 1000
    producer_id_expiration_ms: int = 24 * 3600 * 1000

    # bounds: what a client may cost
    max_connections: int = 1_000
    max_request_bytes: int = 100 * MIB
    max_in_flight_requests: int = 32  # per connection: pipelined Produce requests that wait for the disk
    max_queued_bytes: int = 128 * MIB  # requests received and not yet answered, over all connections
    max_unsent_bytes: int = 256 * MIB  # answers that clients have not read yet, over all connections
    fetch_max_bytes: int = 55 * MIB
    idle_connection_s: float = 600.0
    cache_bytes: int = 32 * MIB  # newest batches kept in memory for readers at the end of a log

    # upkeep
    upkeep_interval_s: float = 15.0  # retention, compaction, snapshots
    compaction_max_keys: int = 500_000  # keys compared in one pass; a larger log takes several
    wal_checkpoint_bytes: int = 16 * MIB
