"""CreatePartitions, versions 0-3.

Behaviour: a topic can only grow; the new partitions are empty and there at once.
Unlike Kafka: an assignment of replicas is ignored, since there is one node.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import CreatePartitionsRequest, CreatePartitionsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import TopicError


@api(37, CreatePartitionsRequest, CreatePartitionsResponse)
async def create_partitions(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    results = []
    for asked in request.topics:
        code, message = Code.NONE, None
        try:
            topic = broker.topics.get(asked.name)
            if topic is None:
                raise TopicError(Code.UNKNOWN_TOPIC_OR_PARTITION, f"there is no topic {asked.name!r}")
            broker.topics.check_growth(topic, asked.count)
            if not request.validate_only:
                await broker.topics.grow(topic, asked.count)
        except TopicError as error:
            code, message = error.code, error.message
        results.append(
            CreatePartitionsResponse.CreatePartitionsTopicResult(
                version=version, name=asked.name, error_code=int(code), error_message=message
            )
        )
    return CreatePartitionsResponse(version=version, results=results)
