"""Which member of a group gets which partitions: Goka's plan, and a sticky one. Pure.

Both give a member the same partition numbers of every topic that it asked for, because the topics of a group are
co-partitioned. plan() is what a leader calls: sticky when every member speaks for itself in user data of ours, else
Goka's, so that Go and Python members can share a group.

The sticky plan: each partition stays with whoever owned it in the latest generation (a claim of an older one loses),
the numbers of partitions differ by one at most, as few move as that allows, and equal input gives an equal plan.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from math import floor
from typing import TypeAlias

from msgspec import Struct

from gokamsg.errors import TopicError

PROTOCOL = "copartition"

Plan: TypeAlias = dict[str, dict[str, list[int]]]

_MAGIC = b"gokamsg\x00"
_VERSION = 1
_HEAD = struct.Struct(">8sHiI")


class Claim(Struct, frozen=True):
    """What a member says that it owned, and in which generation of the group."""

    generation: int
    owned: tuple[int, ...]


def encode_user_data(generation: int, owned: Sequence[int]) -> bytes:
    """A member's claim as it goes into its subscription."""
    return _HEAD.pack(_MAGIC, _VERSION, generation, len(owned)) + struct.pack(f">{len(owned)}i", *sorted(owned))


def decode_user_data(data: bytes | None) -> Claim | None:
    """The claim of a member; None for what is not ours, or of another version, or damaged."""
    if not data or len(data) < _HEAD.size:
        return None
    magic, version, generation, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or len(data) != _HEAD.size + 4 * count:
        return None
    return Claim(generation, struct.unpack_from(f">{count}i", data, _HEAD.size))


def plan(
    members: Mapping[str, Collection[str]],
    user_data: Mapping[str, bytes | None],
    partitions_of: Mapping[str, Collection[int]],
) -> Plan:
    """The plan for these members (id to topics), from the raw user data of each."""
    claims: dict[str, Claim] = {}
    for member in members:
        claim = decode_user_data(user_data.get(member))
        if claim is None:
            return goka_plan(members, partitions_of)
        claims[member] = claim
    return sticky_plan(members, claims, partitions_of)


def goka_plan(members: Mapping[str, Collection[str]], partitions_of: Mapping[str, Collection[int]]) -> Plan:
    """Goka's plan: consecutive ranges for the members in the order of their ids."""
    partitions = _common_partitions(members, partitions_of)
    shares: dict[str, list[int]] = {}
    step = len(partitions) / len(members) if members else 0.0
    for index, member in enumerate(_in_order(members)):
        shares[member] = partitions[floor(index * step + 0.5) : floor((index + 1) * step + 0.5)]
    return _for_each_topic(shares, members)


def sticky_plan(
    members: Mapping[str, Collection[str]],
    claims: Mapping[str, Claim],
    partitions_of: Mapping[str, Collection[int]],
) -> Plan:
    """The plan that keeps partitions where they are; members without a claim owned nothing."""
    partitions = _common_partitions(members, partitions_of)
    if not members:
        return {}
    claimants = _claimants(members, claims, partitions)
    owned: dict[str, list[int]] = {member: [] for member in _in_order(members)}
    for partition in partitions:
        if claimants[partition]:
            owned[claimants[partition][0]].append(partition)
    quota = _quotas(owned, len(partitions))
    shares: dict[str, list[int]] = {}
    for member, mine in owned.items():
        # Gives up first what another member knew before: that one may still have its tables.
        by_worth = sorted(mine, key=lambda partition: (len(claimants[partition]) > 1, partition))
        shares[member] = by_worth[: quota[member]]
    kept = {partition for share in shares.values() for partition in share}
    homeless = [partition for partition in partitions if partition not in kept]
    for partition in list(homeless):
        for member in claimants[partition][1:]:
            if len(shares[member]) < quota[member]:
                shares[member].append(partition)
                homeless.remove(partition)
                break
    for member, share in shares.items():
        while len(share) < quota[member]:
            share.append(homeless.pop(0))
    return _for_each_topic({member: sorted(share) for member, share in shares.items()}, members)


def _claimants(
    members: Mapping[str, Collection[str]], claims: Mapping[str, Claim], partitions: Sequence[int]
) -> dict[int, list[str]]:
    """Who claims each partition, the latest generation first."""
    found: dict[int, list[str]] = {partition: [] for partition in partitions}
    known = [member for member in _in_order(members) if member in claims]
    for member in sorted(known, key=lambda member: -claims[member].generation):
        for partition in dict.fromkeys(claims[member].owned):
            if partition in found:
                found[partition].append(member)
    return found


def _quotas(owned: Mapping[str, Sequence[int]], partitions: int) -> dict[str, int]:
    """How many partitions each member gets; those that own the most get the ones that are over."""
    each, over = divmod(partitions, len(owned))
    richest_first = sorted(owned, key=lambda member: -len(owned[member]))
    return {member: each + (place < over) for place, member in enumerate(richest_first)}


def _common_partitions(
    members: Mapping[str, Collection[str]], partitions_of: Mapping[str, Collection[int]]
) -> list[int]:
    topics = sorted({topic for wanted in members.values() for topic in wanted})
    missing = [topic for topic in topics if not partitions_of.get(topic)]
    if missing:
        raise TopicError(f"topic {missing[0]!r} of the group does not exist; create it with `gokamsg topics create`")
    for topic in topics[1:]:
        if set(partitions_of[topic]) != set(partitions_of[topics[0]]):
            raise TopicError(
                f"topics {topics[0]!r} and {topic!r} are consumed together, but have {len(partitions_of[topics[0]])} "
                f"and {len(partitions_of[topic])} partitions; create one of them again with the other's number"
            )
    return sorted(set(partitions_of[topics[0]])) if topics else []


def _in_order(members: Collection[str]) -> list[str]:
    # Goka compares the ids' bytes.
    return sorted(members, key=lambda member: member.encode("utf-8", "surrogateescape"))


def _for_each_topic(shares: Mapping[str, list[int]], members: Mapping[str, Collection[str]]) -> Plan:
    return {member: {topic: list(share) for topic in sorted(members[member])} for member, share in shares.items()}
