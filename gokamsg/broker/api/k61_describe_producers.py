"""DescribeProducers, versions 0-0.

Behaviour: what each partition knows of its idempotent producers, and where their open transactions begin.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DescribeProducersRequest, DescribeProducersResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Topic = DescribeProducersResponse.TopicResponse
_Partition = _Topic.PartitionResponse


@api(61, DescribeProducersRequest, DescribeProducersResponse)
def describe_producers(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    topics = [
        _Topic(
            version=version,
            name=asked.name,
            partitions=[_describe(broker, asked.name, index, version) for index in asked.partition_indexes],
        )
        for asked in request.topics
    ]
    return DescribeProducersResponse(version=version, topics=topics)


def _describe(broker: Broker, name: str, index: int, version: int) -> Any:
    log = broker.log(name, index)
    if log is None:
        return _Partition(
            version=version,
            partition_index=index,
            error_code=int(Code.UNKNOWN_TOPIC_OR_PARTITION),
            error_message=f"there is no partition {name}/{index}",
            active_producers=[],
        )
    producers = [
        _Partition.ProducerState(
            version=version,
            producer_id=producer_id,
            producer_epoch=producer.epoch,
            last_sequence=producer.last_sequence,
            last_timestamp=producer.last_timestamp,
            coordinator_epoch=producer.coordinator_epoch,
            current_txn_start_offset=producer.transaction_start,
        )
        for producer_id, producer in log.producers.by_id.items()
    ]
    return _Partition(
        version=version, partition_index=index, error_code=0, error_message=None, active_producers=producers
    )
