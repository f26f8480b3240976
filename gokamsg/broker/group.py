"""One classic consumer group: Kafka's state machine of members, generations and assignments.

    Empty -> PreparingRebalance -> CompletingRebalance -> Stable        (and back to PreparingRebalance, or to Dead)

1. A generation begins when every member has joined, or when the longest rebalance timeout is over: dynamic members that
   did not join are then removed, static members stay until their session ends.
2. A member that waits in JoinGroup or SyncGroup never expires; who does not sync in time is removed.
3. Only the selected protocol's name decides whether a static member's return needs a rebalance, not its metadata.
4. An assignment is handed out after `save` has made it durable; a restart brings back the generation saved last.

Not here: which groups exist, offsets, the wire. Runs on the broker's loop; time comes from the clock it is given.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial

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
    """One group. `save(group, then)` makes it durable, then calls `then`; `new_member_id(prefix)` never repeats."""

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
        self._unsynced: set[str] = set()  # members of this generation that have not sent SyncGroup
        self._phase: Timer | None = None  # ends the join or the sync phase
        self._first_join_left_s: float | None = None  # how much longer the first join phase may be extended
        self._joined_meanwhile = False
        self._clock = clock
        self._save = save
        self._new_member_id = new_member_id
        self._first_join_delay_s = first_join_delay_s

    # ---- requests

    def join(self, joining: Joining) -> asyncio.Future[Joined]:
        """JoinGroup; the future resolves when the next generation begins, or at once when there is no need to wait."""
        answer: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        code = Code.NONE if self._speaks(joining) else Code.INCONSISTENT_GROUP_PROTOCOL
        if code is Code.NONE and joining.member_id == "":
            self._join_new(joining, answer)
        elif code is Code.NONE and joining.member_id in self._pending:
            self._pending.pop(joining.member_id).cancel()
            self._add(joining, joining.member_id, answer)
        elif code is Code.NONE:
            code = self.check_member(joining.member_id, joining.instance_id, None)
            if code is Code.NONE:
                self._rejoin(self.members[joining.member_id], joining, answer)
        if code is not Code.NONE:
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
        """SyncGroup; the future resolves with the member's assignment once the leader's are durable."""
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
        member.answer_sync(Synced(Code.REBALANCE_IN_PROGRESS))  # an earlier SyncGroup of a lost connection
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

    def leave(self, leaving: Iterable[tuple[str, str | None]]) -> list[Code]:
        """LeaveGroup of (member id, instance id); a static member may be named by its instance id alone."""
        before = len(self.members)
        codes = [self._leave(member_id, instance_id) for member_id, instance_id in leaving]
        if len(self.members) < before:
            self._go_on_without()
        elif self.state is State.PREPARING:
            self._complete_if_all_joined()  # a member id that was given out is not waited for any more
        return codes

    def check_member(self, member_id: str, instance_id: str | None, generation: int | None) -> Code:
        """Is this a member of this generation (None: of any)?"""
        if instance_id is not None and self._static.get(instance_id, member_id) != member_id:
            return Code.FENCED_INSTANCE_ID
        if member_id not in self.members or (instance_id is not None and instance_id not in self._static):
            return Code.UNKNOWN_MEMBER_ID
        return Code.NONE if generation in (None, self.generation) else Code.ILLEGAL_GENERATION

    def check_commit(self, generation: int, member_id: str, instance_id: str | None, *, transactional: bool) -> Code:
        """May offsets be committed? Without a generation only while nobody is in the group, or in a transaction."""
        if generation < 0 and self.state is State.EMPTY:
            return Code.NONE
        if generation >= 0 or member_id != "" or instance_id is not None:
            code = self.check_member(member_id, instance_id, generation)
            if code is not Code.NONE:
                return code
            if not transactional:
                self._touch(self.members[member_id])
        elif not transactional:
            return Code.UNKNOWN_MEMBER_ID
        if not transactional and self.state is State.COMPLETING:
            return Code.REBALANCE_IN_PROGRESS
        return Code.NONE

    def restore(self, members: Iterable[Member]) -> None:
        """Stable again after a restart, with sessions that begin now."""
        for member in members:
            self.members[member.id] = member
            if member.instance_id is not None:
                self._static[member.instance_id] = member.id
            self._touch(member)
        self.state = State.STABLE if self.members else State.EMPTY

    @property
    def idle(self) -> bool:
        """True when nobody is in the group, or about to join it."""
        return self.state is State.EMPTY and not self._pending

    def close(self) -> None:
        """Stop every timer."""
        self._disarm()
        for timer in [*self._pending.values(), *(member.timer for member in self.members.values())]:
            if timer is not None:
                timer.cancel()

    # ---- joining

    def _speaks(self, joining: Joining) -> bool:
        if not joining.protocol_type or not joining.protocols:
            return False
        if not self.members:
            return True
        return joining.protocol_type == self.protocol_type and any(
            name in self._common_protocols() for name, _ in joining.protocols
        )

    def _common_protocols(self) -> set[str]:
        return set.intersection(*({name for name, _ in member.protocols} for member in self.members.values()))

    def _join_new(self, joining: Joining, answer: asyncio.Future[Joined]) -> None:
        if joining.instance_id is not None:
            member_id = self._new_member_id(joining.instance_id)
            if joining.instance_id in self._static:
                self._return_static(joining, member_id, answer)
            else:
                self._add(joining, member_id, answer)
            return
        member_id = self._new_member_id(joining.client_id)
        if not joining.needs_known_id:
            self._add(joining, member_id, answer)
            return
        forget = partial(self._forget_pending, member_id)
        self._pending[member_id] = self._clock.call_later(joining.session_timeout_ms / 1000, forget)
        answer.set_result(Joined(Code.MEMBER_ID_REQUIRED, member_id))

    def _forget_pending(self, member_id: str) -> None:
        self._pending.pop(member_id, None)
        if self.state is State.PREPARING:
            self._complete_if_all_joined()

    def _add(self, joining: Joining, member_id: str, answer: asyncio.Future[Joined]) -> None:
        member = Member.of(joining, member_id)
        member.join = answer
        if not self.members:
            self.protocol_type = joining.protocol_type
        self.members[member_id] = member
        if member.instance_id is not None:
            self._static[member.instance_id] = member_id
        self._joined_meanwhile = True
        self._touch(member)
        self._prepare_or_complete()

    def _rejoin(self, member: Member, joining: Joining, answer: asyncio.Future[Joined]) -> None:
        unchanged = member.protocols == joining.protocols
        self._touch(member)
        if unchanged and (self.state is State.COMPLETING or (self.state is State.STABLE and member.id != self.leader)):
            answer.set_result(self._joined(member))  # its answer was lost on the way
            return
        member.update(joining)
        member.answer_join(Joined(Code.REBALANCE_IN_PROGRESS, member.id))  # an earlier one of a lost connection
        member.join = answer
        self._prepare_or_complete()

    def _return_static(self, joining: Joining, member_id: str, answer: asyncio.Future[Joined]) -> None:
        """A static member is back under a new member id: the old id is fenced, the assignment stays."""
        assert joining.instance_id is not None
        old_id = self._static[joining.instance_id]
        member = self.members.pop(old_id)
        member.refuse(Code.FENCED_INSTANCE_ID)
        member.id = member_id
        member.update(joining)
        self.members[member_id] = member
        self._static[joining.instance_id] = member_id
        old_leader = self.leader
        if old_leader == old_id:
            self.leader = member_id
        if old_id in self._unsynced:
            self._unsynced.remove(old_id)
            self._unsynced.add(member_id)
        self._touch(member)
        if self.state is not State.STABLE or self._elect_protocol() != self.protocol_name:
            member.join = answer
            self._prepare_or_complete()
            return
        # An old client that learns it leads would assign anew; told the leader's former id, it takes what is there.
        leader = self.leader if joining.can_skip_assignment else old_leader
        joined = self._joined(member, leader=leader or "", skip=joining.can_skip_assignment)
        self._save(self, lambda: None if answer.done() else answer.set_result(joined))

    # ---- the phases of a rebalance

    def _prepare_or_complete(self) -> None:
        if self.state is State.PREPARING:
            self._complete_if_all_joined()
        else:
            self._prepare()

    def _prepare(self) -> None:
        first = self.state is State.EMPTY
        self.state = State.PREPARING
        self._unsynced.clear()
        for member in self.members.values():
            if member.sync is not None:
                self._touch(member)  # it could send no heartbeat while it waited
                member.answer_sync(Synced(Code.REBALANCE_IN_PROGRESS))
        delay_s = self._first_join_delay_s or (PENDING_GRACE_S if self._pending else 0.0)
        if first and delay_s:
            self._joined_meanwhile = False
            self._first_join_left_s = max(self._rebalance_timeout_s() - delay_s, 0.0)
            self._arm(delay_s, self._first_join_over)
        else:
            self._arm(self._rebalance_timeout_s(), self._begin)
        self._complete_if_all_joined()

    def _first_join_over(self) -> None:
        left_s = self._first_join_left_s or 0.0
        delay_s = min(self._first_join_delay_s, left_s)
        if self._joined_meanwhile and delay_s > 0:
            self._joined_meanwhile = False
            self._first_join_left_s = left_s - delay_s
            self._arm(delay_s, self._first_join_over)
        else:
            self._begin()

    def _complete_if_all_joined(self) -> None:
        if self._first_join_left_s is not None and self._first_join_delay_s:
            return  # the first join phase takes its time, so that members that start together share a generation
        if not self._pending and all(member.join is not None for member in self.members.values()):
            self._begin()

    def _begin(self) -> None:
        """The join phase is over: a new generation of those that joined."""
        self._first_join_left_s = None
        for member in list(self.members.values()):
            if member.join is None and member.instance_id is None:
                self._remove(member)
        joined = [member.id for member in self.members.values() if member.join is not None]
        if self.members and not joined:
            self._arm(self._rebalance_timeout_s(), self._begin)  # static members that are away: until a session ends
            return
        self.generation += 1
        if not self.members:
            self._become_empty()
            return
        if self.leader not in joined:
            self.leader = joined[0]
        self.protocol_name = self._elect_protocol()
        self.state = State.COMPLETING
        self._unsynced = set(self.members)
        self._arm(self._rebalance_timeout_s(), self._sync_overdue)
        for member in self.members.values():
            self._touch(member)
            member.answer_join(self._joined(member))

    def _become_empty(self) -> None:
        self._disarm()
        self.state, self.protocol_name, self.leader = State.EMPTY, None, None
        self.empty_since_ms = self._clock.wall_ms()
        self._save(self, lambda: None)

    def _sync_overdue(self) -> None:
        late = [self.members[member_id] for member_id in self._unsynced if member_id in self.members]
        for member in late:
            self._remove(member)
        if late:
            self._go_on_without()

    def _assign(self, assignments: dict[str, bytes]) -> None:
        for member in self.members.values():
            member.assignment = assignments.get(member.id, b"")
        self._save(self, partial(self._hand_out, self.generation))

    def _hand_out(self, generation: int) -> None:
        if self.state is not State.COMPLETING or self.generation != generation:
            return  # the next rebalance was faster than the disk
        self.state = State.STABLE
        for member in self.members.values():
            self._touch(member)
            member.answer_sync(self._synced(member))

    # ---- members and time

    def _leave(self, member_id: str, instance_id: str | None) -> Code:
        if instance_id is not None and member_id == "":
            member_id = self._static.get(instance_id, "")
        elif member_id in self._pending:
            self._pending.pop(member_id).cancel()
            return Code.NONE
        code = self.check_member(member_id, instance_id, None)
        if code is Code.NONE:
            self._remove(self.members[member_id])
        return code

    def _remove(self, member: Member) -> None:
        del self.members[member.id]
        self._unsynced.discard(member.id)
        if member.instance_id is not None:
            self._static.pop(member.instance_id, None)
        if member.timer is not None:
            member.timer.cancel()
            member.timer = None
        member.refuse(Code.UNKNOWN_MEMBER_ID)

    def _go_on_without(self) -> None:
        """Members were removed: the others need a new generation."""
        if self.state in (State.STABLE, State.COMPLETING):
            self._prepare()
        elif self.state is State.PREPARING:
            self._complete_if_all_joined()

    def _touch(self, member: Member) -> None:
        """The member's session begins anew. Its timer is moved only when it must fire earlier: heartbeats are many."""
        member.deadline = self._clock.monotonic() + member.session_timeout_ms / 1000
        if member.timer is None or member.timer_due > member.deadline:
            self._watch(member)

    def _watch(self, member: Member) -> None:
        if member.timer is not None:
            member.timer.cancel()
        member.timer_due = member.deadline
        delay_s = max(member.deadline - self._clock.monotonic(), 0.0)
        member.timer = self._clock.call_later(delay_s, partial(self._session_over, member))

    def _session_over(self, member: Member) -> None:
        member.timer = None
        if member.waits:
            self._touch(member)
        elif member.deadline > self._clock.monotonic():
            self._watch(member)
        else:
            self._remove(member)
            self._go_on_without()

    def _rebalance_timeout_s(self) -> float:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0) / 1000

    def _arm(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._disarm()
        self._phase = self._clock.call_later(delay_s, callback)

    def _disarm(self) -> None:
        if self._phase is not None:
            self._phase.cancel()
            self._phase = None

    # ---- answers

    def _elect_protocol(self) -> str:
        """Each member votes for the first of its protocols that all of them speak."""
        common = self._common_protocols()
        ballots = [[name for name, _ in member.protocols if name in common] for member in self.members.values()]
        return Counter(ballot[0] for ballot in ballots).most_common(1)[0][0]

    def _joined(self, member: Member, *, leader: str | None = None, skip: bool = False) -> Joined:
        leader = leader if leader is not None else self.leader or ""
        leads = leader == member.id
        return Joined(
            Code.NONE,
            member.id,
            self.generation,
            self.protocol_type,
            self.protocol_name,
            leader,
            [(m.id, m.instance_id, m.metadata(self.protocol_name)) for m in self.members.values()] if leads else [],
            skip and leads,
        )

    def _synced(self, member: Member) -> Synced:
        return Synced(Code.NONE, self.protocol_type, self.protocol_name, member.assignment)
