"""One classic consumer group: Kafka's state machine of members, generations and assignments.

    Empty -> PreparingRebalance -> CompletingRebalance -> Stable        (and back to PreparingRebalance, or to Dead)

1. A generation begins when every member has joined, or when the longest rebalance timeout is over: dynamic members that
   did not join are then removed, static members stay until their session ends.
2. A member that waits in JoinGroup or SyncGroup never expires; who does not sync in time is removed.
3. Only the selected protocol's name decides whether a static member's return needs a rebalance, not its metadata.
4. An assignment is handed out after `save` has made it durable, and a restart brings back the last saved generation.

Not here: which groups exist, offsets, the wire. Runs on the broker's loop; time comes from the clock it is given.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum

from gokamsg.broker.clock import Clock, Timer
from gokamsg.broker.codes import Code
from gokamsg.broker.member import Joined, Joining, Member, Synced

PENDING_GRACE_S = 0.25  # the first rebalance waits so long for members that were just given their id


class State(Enum):
    """Kafka's names, as DescribeGroups shows them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class Group:
    """One group. `save(group, then)` makes the group durable and calls `then`; `new_member_id(prefix)` never repeats."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        save: Callable[[Group, Callable[[], None]], None],
        new_member_id: Callable[[str], str],
        first_join_delay_s: float = 0.0,
    ) -> None:
        self.name = name
        self.state = State.EMPTY
        self.generation = 0
        self.protocol_type: str | None = None
        self.protocol_name: str | None = None
        self.leader: str | None = None
        self.members: dict[str, Member] = {}
        self.empty_since_ms = clock.wall_ms()
        self._static: dict[str, str] = {}  # instance id -> member id
        self._pending: dict[str, Timer] = {}  # ids given out with MEMBER_ID_REQUIRED, not yet joined
        self._unsynced: set[str] = set()
        self._phase: Timer | None = None  # ends the join or sync phase
        self._first_join_until: float | None = None  # while the first rebalance waits for more members
        self._joined_meanwhile = False
        self._clock = clock
        self._save = save
        self._new_member_id = new_member_id
        self._first_join_delay_s = first_join_delay_s

    # ---- requests

    def join(self, joining: Joining) -> asyncio.Future[Joined]:
        """JoinGroup; the future resolves when the next generation begins, or at once with an error."""
        answer: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        code = self._join(joining, answer)
        if code is not None and not answer.done():
            answer.set_result(Joined(code, joining.member_id))
        return answer

    def sync(
        self,
        generation: int,
        member_id: str,
        instance_id: str | None,
        *,
        protocol: tuple[str | None, str | None] = (None, None),
        assignments: Iterable[tuple[str, bytes]] = (),
    ) -> asyncio.Future[Synced]:
        """SyncGroup; the future resolves with the member's assignment once the leader has sent all of them."""
        answer: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
        code = self.check_member(member_id, instance_id, generation)
        if code is Code.NONE and any(
            asked is not None and asked != ours
            for asked, ours in zip(protocol, (self.protocol_type, self.protocol_name), strict=True)
        ):
            code = Code.INCONSISTENT_GROUP_PROTOCOL
        if code is Code.NONE and self.state is State.PREPARING:
            code = Code.REBALANCE_IN_PROGRESS
        if code is not Code.NONE:
            answer.set_result(Synced(code))
            return answer
        member = self.members[member_id]
        self._unsynced.discard(member_id)
        self._touch(member)
        if self.state is State.STABLE:
            answer.set_result(self._synced(member))
            return answer
        member.answer_sync(Synced(Code.REBALANCE_IN_PROGRESS))
        member.sync = answer
        if member_id == self.leader:
            self._assign(dict(assignments))
        return answer

    def heartbeat(self, generation: int, member_id: str, instance_id: str | None) -> Code:
        code = self.check_member(member_id, instance_id, generation)
        if code is not Code.NONE:
            return code
        self._touch(self.members[member_id])
        return Code.REBALANCE_IN_PROGRESS if self.state is State.PREPARING else Code.NONE

    def leave(self, member_id: str, instance_id: str | None) -> Code:
        """One member of LeaveGroup; a static member may be named by its instance id alone. Call left() after the last."""
        if instance_id is not None:
            current = self._static.get(instance_id)
            if current is None:
                return Code.UNKNOWN_MEMBER_ID
            if member_id not in ("", current):
                return Code.FENCED_INSTANCE_ID
            member_id = current
        pending = self._pending.pop(member_id, None)
        if pending is not None:
            pending.cancel()
            return Code.NONE
        if member_id not in self.members:
            return Code.UNKNOWN_MEMBER_ID
        self._remove(self.members[member_id])
        return Code.NONE

    def left(self) -> None:
        """Go on without the members that left."""
        if self.state in (State.STABLE, State.COMPLETING) and (
            not self.members or self._unsynced - self.members.keys() or self._changed
        ):
            self._prepare()
        elif self.state is State.PREPARING:
            self._complete_if_all_joined()
