"""A member of a consumer group, and what it asks for and is told. A leaf of the group state machine.

A member that waits for the others in JoinGroup or SyncGroup holds a future here; at most one of the two is open.
"""

from __future__ import annotations

import asyncio

from msgspec import Struct, field

from gokamsg.broker.clock import Timer
from gokamsg.broker.codes import Code


class Joining(Struct, frozen=True, kw_only=True):
    """What a JoinGroup request says."""

    member_id: str
    protocol_type: str
    protocols: list[tuple[str, bytes]]
    session_timeout_ms: int
    rebalance_timeout_ms: int
    instance_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    needs_known_id: bool = True  # v4+: a new dynamic member is given its id first (79) and joins with it
    can_skip_assignment: bool = True  # v9+: a returning static leader is told to leave the assignment alone


class Joined(Struct, frozen=True):
    """What a JoinGroup response says. `members` (id, instance id, metadata) is for the leader only."""

    code: Code
    member_id: str
    generation: int = -1
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader: str = ""
    members: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    skip_assignment: bool = False


class Synced(Struct, frozen=True):
    """What a SyncGroup response says."""

    code: Code
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignment: bytes = b""


class Member(Struct):
    """One member as the coordinator knows it."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: list[tuple[str, bytes]]
    assignment: bytes = b""
    deadline: float = 0.0  # on the monotonic clock; the session ends then
    timer: Timer | None = None
    timer_due: float = 0.0
    join: asyncio.Future[Joined] | None = None
    sync: asyncio.Future[Synced] | None = None

    @classmethod
    def of(cls, joining: Joining, member_id: str) -> Member:
        return cls(
            id=member_id,
            instance_id=joining.instance_id,
            client_id=joining.client_id,
            client_host=joining.client_host,
            session_timeout_ms=joining.session_timeout_ms,
            rebalance_timeout_ms=joining.rebalance_timeout_ms,
            protocols=joining.protocols,
        )

    def update(self, joining: Joining) -> None:
        """Take over what a rejoin says."""
        self.protocols = joining.protocols
        self.session_timeout_ms = joining.session_timeout_ms
        self.rebalance_timeout_ms = joining.rebalance_timeout_ms
        self.client_id, self.client_host = joining.client_id, joining.client_host

    def metadata(self, protocol: str | None) -> bytes:
        """The member's metadata for a protocol; empty when it does not speak it."""
        return next((metadata for name, metadata in self.protocols if name == protocol), b"")

    @property
    def waits(self) -> bool:
        """True while the member waits for the others; it cannot send heartbeats then, so its session cannot end."""
        return self.join is not None or self.sync is not None

    def answer_join(self, joined: Joined) -> None:
        """Answer the JoinGroup that waits, if one does (its connection may be gone)."""
        waiting, self.join = self.join, None
        if waiting is not None and not waiting.done():
            waiting.set_result(joined)

    def answer_sync(self, synced: Synced) -> None:
        """Answer the SyncGroup that waits, if one does."""
        waiting, self.sync = self.sync, None
        if waiting is not None and not waiting.done():
            waiting.set_result(synced)

    def refuse(self, code: Code) -> None:
        """Answer whatever waits with an error."""
        self.answer_join(Joined(code, self.id))
        self.answer_sync(Synced(code))
