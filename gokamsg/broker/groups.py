"""The group coordinator: which consumer groups exist, what is asked of them, and when they go.

1. A group exists from its first member or commit until it is deleted, or is empty and all its offsets have expired.
2. Groups survive a restart with their members and generation (group_record); sessions begin anew then.
3. Whatever a client gets to know of an assignment is durable.

Not here: the rebalance itself (group), offsets (offsets). Runs on the broker's loop.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar
from uuid import UUID

from gokamsg.broker import group_record
from gokamsg.broker.clock import Clock, Timer
from gokamsg.broker.codes import Code
from gokamsg.broker.group import Group, State
from gokamsg.broker.member import Joined, Joining, Synced
from gokamsg.broker.offsets import Effect, OffsetStore, commit_unheard
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.store import Store

EXPIRY_CHECK_S = 600.0

T = TypeVar("T")


class GroupCoordinator:
    """Owns every group."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: random_module.Random,
        store: Store,
        offsets: OffsetStore,
        settings: BrokerSettings,
    ) -> None:
        self._clock = clock
        self._random = random
        self._store = store
        self._offsets = offsets
        self._settings = settings
        self._groups: dict[str, Group] = {}
        self._expiry: Timer | None = None

    def recover(self) -> None:
        """Read what is stored; once, after the offsets, before the first request."""
        for name, value in self._store.scan(group_record.SPACE):
            group_record.restore(self._create(name), value)
        for name in self._offsets.groups():
            if name not in self._groups:
                self._create(name)
        self._expiry = self._clock.call_later(EXPIRY_CHECK_S, self._expire)

    def close(self) -> None:
        """Stop every timer."""
        if self._expiry is not None:
            self._expiry.cancel()
        for group in self.all():
            group.close()

    # ---- membership

    def join(self, name: str, joining: Joining) -> Awaitable[Joined]:
        """JoinGroup."""
        code = Code.NONE
        timeouts = (self._settings.group_min_session_timeout_ms, self._settings.group_max_session_timeout_ms)
        if not name:
            code = Code.INVALID_GROUP_ID
        elif not timeouts[0] <= joining.session_timeout_ms <= timeouts[1]:
            code = Code.INVALID_SESSION_TIMEOUT
        elif name not in self._groups and joining.member_id:
            code = Code.UNKNOWN_MEMBER_ID
        elif name not in self._groups and not (joining.protocol_type and joining.protocols):
            code = Code.INCONSISTENT_GROUP_PROTOCOL
        if code is not Code.NONE:
            return _resolved(Joined(code, joining.member_id))
        return (self._groups.get(name) or self._create(name)).join(joining)

    def sync(
        self,
        name: str,
        generation: int,
        member_id: str,
        instance_id: str | None,
        *,
        protocol: tuple[str | None, str | None] = (None, None),
        assignments: Iterable[tuple[str, bytes]] = (),
    ) -> Awaitable[Synced]:
        """SyncGroup."""
        group = self._groups.get(name)
        if group is None:
            return _resolved(Synced(Code.UNKNOWN_MEMBER_ID if name else Code.INVALID_GROUP_ID))
        return group.sync(generation, member_id, instance_id, protocol=protocol, assignments=assignments)

    def heartbeat(self, name: str, generation: int, member_id: str, instance_id: str | None) -> Code:
        group = self._groups.get(name)
        if group is None:
            return Code.UNKNOWN_MEMBER_ID if name else Code.INVALID_GROUP_ID
        return group.heartbeat(generation, member_id, instance_id)

    def leave(self, name: str, leaving: list[tuple[str, str | None]]) -> list[Code]:
        """LeaveGroup of (member id, instance id)."""
        group = self._groups.get(name)
        return [Code.UNKNOWN_MEMBER_ID for _ in leaving] if group is None else group.leave(leaving)

    def check_commit(
        self, name: str, generation: int, member_id: str, instance_id: str | None, *, transactional: bool
    ) -> Code:
        """May offsets be committed for this member? A commit without a generation brings a group into being."""
        if not name:
            return Code.INVALID_GROUP_ID
        group = self._groups.get(name)
        if group is None and generation >= 0:
            return Code.ILLEGAL_GENERATION
        group = group or self._create(name)
        return group.check_commit(generation, member_id, instance_id, transactional=transactional)

    # ---- administration

    def get(self, name: str) -> Group | None:
        """The group, to be read only."""
        return self._groups.get(name)

    def all(self) -> list[Group]:
        """Every group, to be read only."""
        return list(self._groups.values())

    async def delete(self, name: str) -> Code:
        """DeleteGroups of one group: only while it has no members; its offsets go with it."""
        group = self._groups.get(name)
        if group is None:
            return Code.GROUP_ID_NOT_FOUND if name else Code.INVALID_GROUP_ID
        if group.state is not State.EMPTY:
            return Code.NON_EMPTY_GROUP
        self._forget(group)
        unit = self._store.unit()
        unit.delete(group_record.SPACE, name)
        self._offsets.stage_delete_group(unit, name)
        await self._store.commit(unit)
        return Code.NONE

    # ---- upkeep

    def _create(self, name: str) -> Group:
        group = Group(
            name,
            clock=self._clock,
            save=self._save,
            new_member_id=self._new_member_id,
            first_join_delay_s=self._settings.group_initial_rebalance_delay_ms / 1000,
        )
        self._groups[name] = group
        return group

    def _forget(self, group: Group) -> None:
        group.state = State.DEAD
        del self._groups[group.name]

    def _save(self, group: Group, then: Callable[[], None]) -> None:
        unit = self._store.unit()
        unit.put(group_record.SPACE, group.name, group_record.encode(group))
        unit.then(Effect(then))
        commit_unheard(self._store, unit)

    def _new_member_id(self, prefix: str) -> str:
        return f"{prefix}-{UUID(int=self._random.getrandbits(128), version=4)}"

    def _expire(self) -> None:
        """Drop expired offsets of groups without members, and then groups without offsets."""
        self._expiry = self._clock.call_later(EXPIRY_CHECK_S, self._expire)
        unit = self._store.unit()
        limit_ms = self._clock.wall_ms() - int(EXPIRY_CHECK_S * 1000)  # a new group's first commit may be on its way
        for group in self.all():
            if group.state is not State.EMPTY:
                continue
            if self._offsets.partitions(group.name):
                since_ms = group.empty_since_ms if group.protocol_type is not None else None
                self._offsets.stage_expired(unit, group.name, since_ms)
            elif group.idle and group.empty_since_ms <= limit_ms:
                self._forget(group)
                unit.delete(group_record.SPACE, group.name)
        commit_unheard(self._store, unit)


def _resolved(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
