"""DescribeLogDirs, versions 1-4.

Behaviour: one directory, the broker's, with the bytes of every partition that is asked for (null: all of them).
Unlike Kafka: a partition's size is that of its batches, without the data file's own structure.
"""

from __future__ import annotations

import shutil
from typing import Any

from kafka.protocol.admin import DescribeLogDirsRequest, DescribeLogDirsResponse

from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Result = DescribeLogDirsResponse.DescribeLogDirsResult
_Topic = _Result.DescribeLogDirsTopic
_Partition = _Topic.DescribeLogDirsPartition


@api(35, DescribeLogDirsRequest, DescribeLogDirsResponse)
def describe_log_dirs(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    wanted: dict[str, set[int] | None]
    if request.topics is None:
        wanted = {topic.name: None for topic in broker.topics}
    else:
        wanted = {asked.topic: set(asked.partitions) for asked in request.topics}
    topics = []
    for name, indexes in wanted.items():
        topic = broker.topics.get(name)
        if topic is None:
            continue
        partitions = [
            _Partition(
                version=version,
                partition_index=log.partition,
                partition_size=log.size_bytes,
                offset_lag=0,
                is_future_key=False,
            )
            for log in topic.partitions
            if indexes is None or log.partition in indexes
        ]
        topics.append(_Topic(version=version, name=name, partitions=partitions))
    fields: dict[str, Any] = {}
    if version >= 4:
        usage = shutil.disk_usage(broker.settings.data_dir)
        fields = {"total_bytes": usage.total, "usable_bytes": usage.free}
    result = _Result(version=version, error_code=0, log_dir=str(broker.settings.data_dir), topics=topics, **fields)
    return DescribeLogDirsResponse(version=version, results=[result])
