"""TxnOffsetCommit, versions 0-4.

Behaviour: offsets that become the group's when the transaction commits; until then readers that require stable offsets
wait. The group must have been added to the transaction (48). Since v3 the member is checked: unknown (25), of another
generation (22), or fenced (82). A producer whose epoch was taken over gets 47.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from kafka.protocol.producer import TxnOffsetCommitRequest, TxnOffsetCommitResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.offsets import MAX_METADATA_BYTES, CommittedOffset, TopicPartition
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Topic = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic


@api(28, TxnOffsetCommitRequest, TxnOffsetCommitResponse)
async def txn_offset_commit(
    broker: Broker, request: TxnOffsetCommitRequest, context: RequestContext
) -> TxnOffsetCommitResponse:
    version = context.api_version
    accepted: dict[TopicPartition, CommittedOffset] = {}
    refused: dict[TopicPartition, Code] = {}
    for topic in request.topics:
        for entry in topic.partitions:
            partition = (topic.name, entry.partition_index)
            metadata = entry.committed_metadata or ""
            if broker.log(*partition) is None:
                refused[partition] = Code.UNKNOWN_TOPIC_OR_PARTITION
            elif len(metadata) > MAX_METADATA_BYTES:
                refused[partition] = Code.OFFSET_METADATA_TOO_LARGE
            else:
                epoch = entry.committed_leader_epoch if version >= 2 else -1
                accepted[partition] = CommittedOffset(entry.committed_offset, epoch, metadata, broker.clock.wall_ms())
    code = await broker.transactions.commit_offsets(
        request.transactional_id,
        (request.producer_id, request.producer_epoch),
        request.group_id,
        accepted,
        member=(request.generation_id, request.member_id, request.group_instance_id)
        if version >= 3
        else (-1, "", None),
    )
    if code is Code.PRODUCER_FENCED:
        code = Code.INVALID_PRODUCER_EPOCH
    topics = [
        _Topic(
            name=topic.name,
            partitions=[
                _Topic.TxnOffsetCommitResponsePartition(
                    partition_index=entry.partition_index,
                    error_code=refused.get((topic.name, entry.partition_index), code),
                )
                for entry in topic.partitions
            ],
        )
        for topic in request.topics
    ]
    return TxnOffsetCommitResponse(version=version, throttle_time_ms=0, topics=topics)
