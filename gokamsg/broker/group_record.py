"""How a group is kept in the store (space "group", key = the group's name). Pure.

Written when a generation gets its assignment, when a static member returns under a new id, and when the last member is
gone. So a broker that was killed comes back with the members it had, as Kafka does: heartbeats, commits and
transactions go on without a rebalance, and generations never run backwards.
"""

from __future__ import annotations

import msgspec

from gokamsg.broker.group import Group
from gokamsg.broker.member import Member

SPACE = "group"


class MemberRecord(msgspec.Struct, frozen=True):
    """One member of a stored group."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: list[tuple[str, bytes]]
    assignment: bytes


class GroupRecord(msgspec.Struct, frozen=True):
    """One stored group."""

    generation: int
    protocol_type: str | None
    protocol_name: str | None
    leader: str | None
    empty_since_ms: int
    members: list[MemberRecord]


_FIELDS = MemberRecord.__struct_fields__


def encode(group: Group) -> bytes:
    members = [MemberRecord(**{name: getattr(member, name) for name in _FIELDS}) for member in group.members.values()]
    record = GroupRecord(
        group.generation, group.protocol_type, group.protocol_name, group.leader, group.empty_since_ms, members
    )
    return msgspec.msgpack.encode(record)


def restore(group: Group, value: bytes) -> None:
    """Bring a new Group to the state that was stored."""
    record = msgspec.msgpack.decode(value, type=GroupRecord)
    group.generation = record.generation
    group.protocol_type, group.protocol_name = record.protocol_type, record.protocol_name
    group.leader, group.empty_since_ms = record.leader, record.empty_since_ms
    group.restore(Member(**{name: getattr(member, name) for name in _FIELDS}) for member in record.members)
