"""OffsetForLeaderEpoch, versions 2-4.

Behaviour: the only leader epoch is 0, and it ends at the high watermark; no other epoch ever was.
Unlike Kafka: the leader epoch does not grow at a restart, since nothing that was acknowledged is ever cut off.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.consumer import OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Topic = OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult


@api(23, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse)
def offset_for_leader_epoch(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    topics = []
    for asked in request.topics:
        partitions = []
        for part in asked.partitions:
            log = broker.log(asked.topic, part.partition)
            code, epoch, end_offset = Code.NONE, -1, -1
            if log is None:
                code = Code.UNKNOWN_TOPIC_OR_PARTITION
            elif part.current_leader_epoch > 0:
                code = Code.UNKNOWN_LEADER_EPOCH
            elif part.leader_epoch == 0:
                epoch, end_offset = 0, log.high_watermark
            partitions.append(
                _Topic.EpochEndOffset(
                    version=version,
                    error_code=int(code),
                    partition=part.partition,
                    leader_epoch=epoch,
                    end_offset=end_offset,
                )
            )
        topics.append(_Topic(version=version, topic=asked.topic, partitions=partitions))
    return OffsetForLeaderEpochResponse(version=version, topics=topics)
