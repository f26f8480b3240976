"""OffsetCommit, versions 2-9.

Behaviour: commits for a member of the current generation, or without a generation (-1) for a group that has no members;
answered when durable. Unknown partitions (3) and metadata over 4096 bytes (12) are refused one by one.
Unlike Kafka: the retention time of v2-4 is ignored, the broker's own setting counts.
"""

from __future__ import annotations

from kafka.protocol.consumer import OffsetCommitRequest, OffsetCommitResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.offsets import MAX_METADATA_BYTES, CommittedOffset, TopicPartition
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(8, OffsetCommitRequest, OffsetCommitResponse)
async def offset_commit(broker: Broker, request: OffsetCommitRequest, context: RequestContext) -> OffsetCommitResponse:
    version = context.api_version
    code = broker.groups.check_commit(
        request.group_id,
        request.generation_id_or_member_epoch,
        request.member_id,
        request.group_instance_id if version >= 7 else None,
        transactional=False,
    )
    accepted: dict[TopicPartition, CommittedOffset] = {}
    topics = []
    for topic in request.topics:
        partitions = []
        for entry in topic.partitions:
            metadata = entry.committed_metadata or ""
            one = code
            if code is Code.NONE and broker.log(topic.name, entry.partition_index) is None:
                one = Code.UNKNOWN_TOPIC_OR_PARTITION
            elif code is Code.NONE and len(metadata) > MAX_METADATA_BYTES:
                one = Code.OFFSET_METADATA_TOO_LARGE
            if one is Code.NONE:
                epoch = entry.committed_leader_epoch if version >= 6 else -1
                accepted[topic.name, entry.partition_index] = CommittedOffset(
                    entry.committed_offset, epoch, metadata, broker.clock.wall_ms()
                )
            partitions.append(
                OffsetCommitResponse.OffsetCommitResponseTopic.OffsetCommitResponsePartition(
                    partition_index=entry.partition_index, error_code=one
                )
            )
        topics.append(OffsetCommitResponse.OffsetCommitResponseTopic(name=topic.name, partitions=partitions))
    if accepted:
        await broker.offsets.commit(request.group_id, accepted)
    return OffsetCommitResponse(version=version, throttle_time_ms=0, topics=topics)
