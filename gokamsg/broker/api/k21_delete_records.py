"""DeleteRecords, versions 0-2.

Behaviour: moves the log's start to the given offset, -1 meaning the high watermark; durable before it is answered. The
batches below are deleted; one that the new start cuts in two stays, and readers never see below the start.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DeleteRecordsRequest, DeleteRecordsResponse

from gokamsg.broker import retention
from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic

_Topic = DeleteRecordsResponse.DeleteRecordsTopicResult


@api(21, DeleteRecordsRequest, DeleteRecordsResponse)
async def delete_records(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    topics = []
    for asked in request.topics:
        topic = broker.topics.get(asked.name)
        partitions = [
            await _delete_up_to(broker, topic, part.partition_index, part.offset, version) for part in asked.partitions
        ]
        topics.append(_Topic(version=version, name=asked.name, partitions=partitions))
    return DeleteRecordsResponse(version=version, topics=topics)


async def _delete_up_to(broker: Broker, topic: Topic | None, partition: int, offset: int, version: int) -> Any:
    code, low_watermark = Code.NONE, -1
    if topic is None or not 0 <= partition < len(topic.partitions):
        code = Code.UNKNOWN_TOPIC_OR_PARTITION
    elif not topic.config.delete:
        code = Code.POLICY_VIOLATION  # a compacted log must keep the last record of each key
    else:
        log = topic.partitions[partition]
        wanted = log.high_watermark if offset == -1 else offset
        if not 0 <= wanted <= log.high_watermark:
            code = Code.OFFSET_OUT_OF_RANGE
        else:
            await retention.delete_below(broker, log, wanted)
            low_watermark = log.log_start_offset
    return _Topic.DeleteRecordsPartitionResult(
        version=version, partition_index=partition, low_watermark=low_watermark, error_code=int(code)
    )
