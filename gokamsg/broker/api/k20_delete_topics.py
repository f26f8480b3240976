"""DeleteTopics, versions 1-6.

Behaviour: by name, or from version 6 on by id. The topic is gone for every client at once, its committed offsets too;
its space in the data file is freed in the background.
Unlike Kafka: a topic that has a partition in an open transaction is deleted all the same.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DeleteTopicsRequest, DeleteTopicsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic, TopicError


@api(20, DeleteTopicsRequest, DeleteTopicsResponse)
async def delete_topics(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    if version >= 6:
        responses = [await _delete_one(broker, asked.name, asked.topic_id, version) for asked in request.topics]
    else:
        responses = [await _delete_one(broker, name, None, version) for name in request.topic_names]
    return DeleteTopicsResponse(version=version, responses=responses)


async def _delete_one(broker: Broker, name: str | None, topic_id: Any, version: int) -> Any:
    code, message = Code.NONE, None
    topic: Topic | None = None
    if name is not None and topic_id is not None:
        code, message = Code.INVALID_REQUEST, f"topic {name!r} is named by name and by id; one of them is enough"
    elif name is not None:
        topic = broker.topics.get(name)
        if topic is None:
            code, message = Code.UNKNOWN_TOPIC_OR_PARTITION, f"there is no topic {name!r}"
    else:
        topic = broker.topics.by_id(topic_id)
        if topic is None:
            code, message = Code.UNKNOWN_TOPIC_ID, f"there is no topic with the id {topic_id}"
    if topic is not None:
        name, topic_id = topic.name, topic.id
        try:
            await broker.topics.delete(topic)
        except TopicError as error:
            code, message = error.code, error.message
    fields: dict[str, Any] = {"name": name if version >= 6 or name is not None else ""}
    if version >= 5:
        fields["error_message"] = message
    if version >= 6:
        fields["topic_id"] = topic_id
    return DeleteTopicsResponse.DeletableTopicResult(version=version, error_code=int(code), **fields)
