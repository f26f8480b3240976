"""Metadata, versions 0-12.

Behaviour: one broker, which leads every partition. No topics (version 0) or a null list means all of them. An unknown
topic is created if the broker's settings and the request allow it, and answered with its partitions at once.
Unlike Kafka: authorized operations are never told, since there is no authorization.
"""

from __future__ import annotations

import uuid
from typing import Any

from kafka.protocol.metadata import MetadataRequest, MetadataResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic, TopicError

_Topic = MetadataResponse.MetadataResponseTopic
_Partition = _Topic.MetadataResponsePartition
_TOPIC_IDS_SINCE = 10
_NIL = uuid.UUID(int=0)


@api(3, MetadataRequest, MetadataResponse)
async def metadata(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    if request.topics is None or (version == 0 and not request.topics):
        topics = [_known(topic, broker, version) for topic in broker.topics]
    else:
        topics = [await _asked_for(broker, asked, request, version) for asked in request.topics]
    fields: dict[str, Any] = {
        "brokers": [
            MetadataResponse.MetadataResponseBroker(
                version=version, node_id=broker.node_id, host=broker.host, port=broker.port
            )
        ],
        "topics": topics,
    }
    if version >= 1:
        fields["controller_id"] = broker.node_id
    if version >= 2:
        fields["cluster_id"] = broker.cluster_id
    return MetadataResponse(version=version, **fields)


async def _asked_for(broker: Broker, asked: Any, request: Any, version: int) -> Any:
    by_id = version >= _TOPIC_IDS_SINCE and asked.name is None
    topic = broker.topics.by_id(asked.topic_id) if by_id else broker.topics.get(asked.name)
    if topic is not None:
        return _known(topic, broker, version)
    if by_id:
        return _unknown(None, asked.topic_id, Code.UNKNOWN_TOPIC_ID, version)
    code = Code.UNKNOWN_TOPIC_OR_PARTITION
    if broker.settings.auto_create_topics and (version < 4 or request.allow_auto_topic_creation):
        try:
            return _known(
                await broker.topics.create(asked.name, broker.settings.default_partitions, {}), broker, version
            )
        except TopicError as error:
            code = error.code
            created = broker.topics.get(asked.name)
            if created is not None:  # another request was quicker
                return _known(created, broker, version)
    return _unknown(asked.name, None, code, version)


def _known(topic: Topic, broker: Broker, version: int) -> Any:
    nodes = [broker.node_id]
    partitions = []
    for log in topic.partitions:
        fields: dict[str, Any] = {
            "partition_index": log.partition,
            "leader_id": broker.node_id,
            "replica_nodes": nodes,
            "isr_nodes": nodes,
        }
        if version >= 5:
            fields["offline_replicas"] = []
        if version >= 7:
            fields["leader_epoch"] = 0
        partitions.append(_Partition(version=version, error_code=0, **fields))
    return _Topic(version=version, error_code=0, name=topic.name, partitions=partitions, **_id(topic.id, version))


def _unknown(name: str | None, topic_id: uuid.UUID | None, code: Code, version: int) -> Any:
    if name is None and version < 12:
        name = ""
    return _Topic(version=version, error_code=int(code), name=name, partitions=[], **_id(topic_id or _NIL, version))


def _id(topic_id: uuid.UUID, version: int) -> dict[str, Any]:
    return {"topic_id": topic_id} if version >= _TOPIC_IDS_SINCE else {}
