"""What a processor can be told, validated before any I/O: Goka's options, and those of the guarantees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from gokamsg.engine.hashing import Hasher, fnv1a32
from gokamsg.errors import UsageError

if TYPE_CHECKING:
    from gokamsg.engine.context import Context
    from gokamsg.engine.tables import StorageBuilder
    from gokamsg.engine.updates import UpdateCallback

Guarantee = Literal["exactly-once", "at-least-once"]
OnError = Literal["quarantine", "skip", "stop"]
Start = Literal["earliest", "latest"]
NilHandling = Literal["ignore", "process", "decode"]

GUARANTEES: tuple[Guarantee, ...] = ("exactly-once", "at-least-once")
ON_ERROR: tuple[OnError, ...] = ("quarantine", "skip", "stop")
STARTS: tuple[Start, ...] = ("earliest", "latest")
NIL_HANDLING: tuple[NilHandling, ...] = ("ignore", "process", "decode")

TRANSACTION_MARGIN_S = 2.0
"""A transaction is given up this long before the brokers would abort it, while the outcome is still ours."""


class ProcessorOptions(Struct, frozen=True):
    """Settings of one processor. Raises UsageError when built from values that cannot work.

    on_error: a record that cannot be decoded, or whose callback raises, is put aside with the later ones of its key
    ("quarantine"), is passed over ("skip"), or ends the processor ("stop").
    nil_handling: what happens to an input record with a null value: it is passed over ("ignore"), the callback gets
    None ("process"), or the codec gets the empty bytes, as Go's codecs do ("decode").
    default_headers: go with every emit and loopback, below those of the call; not with table writes.
    hasher: places the keys of outputs and loop, and finds those of lookups; FNV-1a as Goka's.
    context_wrapper: makes of the context of each call what the callback gets.
    rebalance_callback: gets the partitions that this worker has from now on, before they are restored.
    update_callback: changes how changelog records become rows (updates.py).
    storage_builder: keeps the tables elsewhere than in files of the state directory.
    """

    state_dir: Path
    guarantee: Guarantee = "exactly-once"
    on_error: OnError = "quarantine"
    start: Start | None = None
    transaction_timeout_ms: int = 10_000
    hot_standby: bool = False  # follow the tables of all partitions, those of other instances too
    recover_ahead: bool = False  # restore the tables of all partitions before joining the group
    commit_interval_s: float = 0.0  # at least this long from the begin of one transaction to the next: gathers input
    commit_age_s: float = 0.5  # an open transaction is cut between two records at this age
    commit_bytes: int = 8 << 20  # or at this many bytes of input
    max_message_bytes: int = 1_000_000  # Kafka's default max.message.bytes is 1,048,588, batch header included
    quarantine_records: int = 100_000  # of each partition; with more the processor stops
    cache_bytes: int = 64 << 20  # for all tables of the worker together
    close_timeout_s: float = 3.0
    nil_handling: NilHandling = "ignore"
    default_headers: Mapping[str, bytes | None] = field(default_factory=dict)
    hasher: Hasher = fnv1a32
    context_wrapper: Callable[[Context], Context] | None = None
    rebalance_callback: Callable[[tuple[int, ...]], None] | None = None
    update_callback: UpdateCallback | None = None
    storage_builder: StorageBuilder | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("guarantee", self.guarantee, GUARANTEES),
            ("on-error policy", self.on_error, ON_ERROR),
            ("start", self.start, (None, *STARTS)),
            ("nil handling", self.nil_handling, NIL_HANDLING),
        ):
            if value not in allowed:
                names = ", ".join(str(a) for a in allowed if a is not None)
                raise UsageError(f"{value!r} is not a {name}; choose one of: {names}")
        if self.transaction_timeout_ms < 3_000:
            raise UsageError(
                f"a transaction timeout of {self.transaction_timeout_ms} ms is too short:"
                " the worker gives up 2 s before it, so it must be at least 3000 ms"
            )

    @property
    def record_deadline_s(self) -> float:
        """How long one record (with its deferred commit) may take."""
        return self.transaction_timeout_ms / 1000 - TRANSACTION_MARGIN_S
