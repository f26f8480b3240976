"""OffsetDelete, versions 0-0.

Behaviour: deletes a group's offsets of partitions that none of its members is subscribed to (86 otherwise). Only groups
of consumers can be asked that while they have members; others are refused (68), unknown groups too (69).
Unlike Kafka: nothing.
"""

from __future__ import annotations

import struct

from kafka.protocol.consumer import OffsetDeleteRequest, OffsetDeleteResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.group import Group, State
from gokamsg.broker.offsets import TopicPartition
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Topic = OffsetDeleteResponse.OffsetDeleteResponseTopic


@api(47, OffsetDeleteRequest, OffsetDeleteResponse)
async def offset_delete(broker: Broker, request: OffsetDeleteRequest, context: RequestContext) -> OffsetDeleteResponse:
    group = broker.groups.get(request.group_id)
    code = Code.NONE
    if group is None:
        code = Code.GROUP_ID_NOT_FOUND
    elif group.state is not State.EMPTY and group.protocol_type != "consumer":
        code = Code.NON_EMPTY_GROUP
    if group is None or code is not Code.NONE:
        return OffsetDeleteResponse(version=context.api_version, error_code=code, throttle_time_ms=0, topics=[])
    subscribed = _subscribed(group)
    deleted: list[TopicPartition] = []
    topics = []
    for topic in request.topics:
        partitions = []
        for entry in topic.partitions:
            one = Code.NONE
            if subscribed is None or topic.name in subscribed:
                one = Code.GROUP_SUBSCRIBED_TO_TOPIC
            elif broker.log(topic.name, entry.partition_index) is None:
                one = Code.UNKNOWN_TOPIC_OR_PARTITION
            else:
                deleted.append((topic.name, entry.partition_index))
            partitions.append(
                _Topic.OffsetDeleteResponsePartition(partition_index=entry.partition_index, error_code=one)
            )
        topics.append(_Topic(name=topic.name, partitions=partitions))
    unit = broker.store.unit()
    broker.offsets.stage_delete(unit, request.group_id, deleted)
    await broker.store.commit(unit)
    return OffsetDeleteResponse(version=context.api_version, error_code=code, throttle_time_ms=0, topics=topics)


def _subscribed(group: Group) -> set[str] | None:
    """The topics that members consume; None when a member's subscription cannot be read, so that nothing is deleted."""
    topics: set[str] = set()
    for member in group.members.values():
        for name, metadata in member.protocols:
            if group.protocol_name in (None, name):
                try:
                    topics.update(_topics(metadata))
                except (struct.error, UnicodeDecodeError):
                    return None
    return topics


def _topics(subscription: bytes) -> list[str]:
    """The topics of a consumer's subscription: a version, then an array of strings in every version of it."""
    (count,) = struct.unpack_from(">i", subscription, 2)
    position, topics = 6, []
    for _ in range(count):
        (length,) = struct.unpack_from(">h", subscription, position)
        position += 2 + length
        topics.append(subscription[position - length : position].decode())
    return topics
