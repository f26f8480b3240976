"""OffsetFetch, versions 1-9.

Behaviour: the committed offset of the partitions asked for, -1 where there is none, also for groups that do not exist;
without a list (v2+) of every partition the group has. Since v7 a reader that requires stable offsets is told to wait
(88) where an open transaction holds one. Since v8 several groups at once.
Unlike Kafka: the member id and epoch of v9 belong to a group protocol that is not spoken here, and are ignored.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.consumer import OffsetFetchRequest, OffsetFetchResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.offsets import TopicPartition
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Group = OffsetFetchResponse.OffsetFetchResponseGroup
_GroupTopic = _Group.OffsetFetchResponseTopics
_Topic = OffsetFetchResponse.OffsetFetchResponseTopic


@api(9, OffsetFetchRequest, OffsetFetchResponse)
def offset_fetch(broker: Broker, request: OffsetFetchRequest, context: RequestContext) -> OffsetFetchResponse:
    version = context.api_version
    stable = version >= 7 and request.require_stable
    if version < 8:
        asked = _asked(broker, request.group_id, request.topics)
        topics = _topics(broker, request.group_id, asked, stable, _Topic, _Topic.OffsetFetchResponsePartition)
        return OffsetFetchResponse(version=version, throttle_time_ms=0, error_code=Code.NONE, topics=topics)
    groups = []
    for group in request.groups:
        asked = _asked(broker, group.group_id, group.topics)
        topics = _topics(broker, group.group_id, asked, stable, _GroupTopic, _GroupTopic.OffsetFetchResponsePartitions)
        groups.append(_Group(group_id=group.group_id, topics=topics, error_code=Code.NONE))
    return OffsetFetchResponse(version=version, throttle_time_ms=0, groups=groups)


def _asked(broker: Broker, group: str, topics: Any) -> dict[str, list[int]]:
    """Topic -> partitions in the order of the request; all that the group has when there is no list."""
    asked: dict[str, list[int]] = {}
    if topics is None:
        for topic, partition in broker.offsets.partitions(group):
            asked.setdefault(topic, []).append(partition)
        return asked
    for entry in topics:
        asked.setdefault(entry.name, []).extend(entry.partition_indexes)
    return asked


def _topics(
    broker: Broker, group: str, asked: dict[str, list[int]], stable: bool, topic_type: Any, partition_type: Any
) -> list[Any]:
    return [
        topic_type(
            name=topic,
            partitions=[partition_type(**_partition(broker, group, (topic, index), stable)) for index in indexes],
        )
        for topic, indexes in asked.items()
    ]


def _partition(broker: Broker, group: str, partition: TopicPartition, stable: bool) -> dict[str, Any]:
    unstable = stable and broker.offsets.is_unstable(group, partition)
    committed = None if unstable else broker.offsets.fetch(group, partition)
    return {
        "partition_index": partition[1],
        "committed_offset": -1 if committed is None else committed.offset,
        "committed_leader_epoch": -1 if committed is None else committed.leader_epoch,
        "metadata": "" if committed is None else committed.metadata,
        "error_code": Code.UNSTABLE_OFFSET_COMMIT if unstable else Code.NONE,
    }
