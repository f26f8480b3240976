"""What a processor can be told, validated before any I/O. Leaf: imports only errors and the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gokamsg.errors import UsageError

Guarantee = Literal["exactly-once", "at-least-once"]
OnError = Literal["stop", "skip"]
Start = Literal["earliest", "latest"]

GUARANTEES: tuple[Guarantee, ...] = ("exactly-once", "at-least-once")
ON_ERROR: tuple[OnError, ...] = ("stop", "skip")
STARTS: tuple[Start, ...] = ("earliest", "latest")

TRANSACTION_MARGIN_S = 2.0
"""A transaction is given up this long before the brokers would abort it, while the outcome is still ours."""


@dataclass(frozen=True, slots=True)
class ProcessorOptions:
    """Settings of one processor. Raises UsageError when built from values that cannot work."""

    state_dir: Path
    guarantee: Guarantee = "exactly-once"
    on_error: OnError = "stop"
    start: Start | None = None
    transaction_timeout_ms: int = 10_000
    hot_standby: bool = False  # follow the tables of all partitions, those of other instances too
    recover_ahead: bool = False  # restore the tables of all partitions before joining the group
    commit_interval_s: float = 0.0  # at least this long from the begin of one transaction to the next: gathers input
    commit_age_s: float = 0.5  # an open transaction is cut between two records at this age
    commit_bytes: int = 8 << 20  # or at this many bytes of input
    max_message_bytes: int = 1_000_000  # Kafka's default max.message.bytes is 1,048,588, batch header included
    cache_bytes: int = 64 << 20  # for all tables of the worker together
    close_timeout_s: float = 3.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("guarantee", self.guarantee, GUARANTEES),
            ("on-error policy", self.on_error, ON_ERROR),
            ("start", self.start, (None, *STARTS)),
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
