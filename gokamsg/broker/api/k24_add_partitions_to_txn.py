"""AddPartitionsToTxn, versions 0-3.

Behaviour: adds partitions to the transaction, which begins with the first. If one of them does not exist (3) none is
added (the others: 55). A producer whose epoch was taken over is fenced (90, before v2 47).
Unlike Kafka: the versions for brokers (4 and 5) are not offered.
"""

from __future__ import annotations

from kafka.protocol.producer import AddPartitionsToTxnRequest, AddPartitionsToTxnResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Topic = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult
_Partition = _Topic.AddPartitionsToTxnPartitionResult


@api(24, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse)
async def add_partitions_to_txn(
    broker: Broker, request: AddPartitionsToTxnRequest, context: RequestContext
) -> AddPartitionsToTxnResponse:
    version = context.api_version
    asked = [(topic.name, index) for topic in request.v3_and_below_topics for index in topic.partitions]
    unknown = {partition for partition in asked if broker.log(*partition) is None}
    if unknown:
        code = Code.OPERATION_NOT_ATTEMPTED
    else:
        code = await broker.transactions.add_partitions(
            request.v3_and_below_transactional_id,
            request.v3_and_below_producer_id,
            request.v3_and_below_producer_epoch,
            asked,
        )
    if code is Code.PRODUCER_FENCED and version < 2:
        code = Code.INVALID_PRODUCER_EPOCH
    topics = [
        _Topic(
            name=topic.name,
            results_by_partition=[
                _Partition(
                    partition_index=index,
                    partition_error_code=Code.UNKNOWN_TOPIC_OR_PARTITION if (topic.name, index) in unknown else code,
                )
                for index in topic.partitions
            ],
        )
        for topic in request.v3_and_below_topics
    ]
    return AddPartitionsToTxnResponse(version=version, throttle_time_ms=0, results_by_topic_v3_and_below=topics)
