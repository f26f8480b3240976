"""ListOffsets, versions 1-9.

Behaviour: -1 the end (the last stable offset for readers of committed data), -2 the start, -3 the record with the
largest timestamp, -4 the start of what is local (everything is), -5 the end of what is tiered (nothing is: -1); any
other timestamp finds the first record at or after it, or -1.
Unlike Kafka: leader epochs are always 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kafka.protocol.consumer import ListOffsetsRequest, ListOffsetsResponse

from gokamsg.broker import records
from gokamsg.broker.batch import BatchError, read_header
from gokamsg.broker.codes import Code
from gokamsg.broker.compression import CompressionError
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED = -1, -2, -3, -4, -5
_SINCE_VERSION = {MAX_TIMESTAMP: 7, EARLIEST_LOCAL: 8, LATEST_TIERED: 9}


@api(2, ListOffsetsRequest, ListOffsetsResponse)
async def list_offsets(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    committed = request.isolation_level == 1
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            code, timestamp, offset = Code.UNKNOWN_TOPIC_OR_PARTITION, -1, -1
            log = broker.log(topic.name, part.partition_index)
            if log is not None:
                code, timestamp, offset = await _look_up(broker, log, part, version, committed=committed)
            row = {
                "partition_index": part.partition_index,
                "error_code": int(code),
                "timestamp": timestamp,
                "offset": offset,
            }
            if version >= 4:
                row["leader_epoch"] = 0 if offset >= 0 else -1
            partitions.append(
                ListOffsetsResponse.ListOffsetsTopicResponse.ListOffsetsPartitionResponse(version=version, **row)
            )
        topics.append(
            ListOffsetsResponse.ListOffsetsTopicResponse(version=version, name=topic.name, partitions=partitions)
        )
    return ListOffsetsResponse(version=version, topics=topics)


async def _look_up(
    broker: Broker, log: PartitionLog, part: Any, version: int, *, committed: bool
) -> tuple[Code, int, int]:
    wanted = part.timestamp
    if part.current_leader_epoch > 0:
        return Code.UNKNOWN_LEADER_EPOCH, -1, -1
    if version < _SINCE_VERSION.get(wanted, 0) or wanted < LATEST_TIERED:
        return Code.UNSUPPORTED_VERSION, -1, -1
    end_offset = log.last_stable_offset if committed else log.high_watermark
    if wanted == LATEST:
        return Code.NONE, -1, end_offset
    if wanted in (EARLIEST, EARLIEST_LOCAL):
        return Code.NONE, -1, log.log_start_offset
    if wanted == LATEST_TIERED:
        return Code.NONE, -1, -1
    try:
        found = await _find(broker, log, wanted, end_offset)
    except (BatchError, CompressionError):
        return Code.CORRUPT_MESSAGE, -1, -1
    return (Code.NONE, -1, -1) if found is None else (Code.NONE, found[1], found[0])


async def _find(broker: Broker, log: PartitionLog, wanted: int, end_offset: int) -> tuple[int, int] | None:
    """Offset and time of the record that a timestamp asks for."""
    start_offset = log.log_start_offset
    if wanted == MAX_TIMESTAMP:
        batch = await broker.reader.latest(log.number, start_offset, end_offset)
        return None if batch is None else await broker.reader.compute(partial(_newest, batch))
    while True:
        batch = await broker.reader.first_at(log.number, start_offset, end_offset, wanted)
        if batch is None:
            return None
        found = await broker.reader.compute(partial(records.first_at, batch, wanted, start_offset))
        if found is not None:
            return found
        # the record with the batch's largest timestamp is gone: compacted, or below the log's start
        start_offset = read_header(batch).last_offset + 1


def _newest(batch: bytes) -> tuple[int, int]:
    header = read_header(batch)
    return records.first_at(batch, header.max_timestamp) or (header.last_offset, header.max_timestamp)
