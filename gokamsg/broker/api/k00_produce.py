"""Produce, versions 0-11.

Behaviour: one v2 batch per partition, checked and stored as it came; answered when it is durable, whether acks is 1 or
-1, with acks=0 not at all. A batch sent twice by an idempotent producer is answered with its first offset. A
transactional batch is taken only for a partition that was added to the producer's open transaction.
Unlike Kafka: 0-2 are listed, because old librdkafka compresses only if they are, and refused (35). Message formats
before v2 are refused (43).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.producer import ProduceRequest, ProduceResponse

from gokamsg.broker import batch, records
from gokamsg.broker.batch import BatchError
from gokamsg.broker.codes import Code
from gokamsg.broker.fastpath import Produced, encode_produce
from gokamsg.broker.registry import Deferred, RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.store import WriteUnit
from gokamsg.broker.topics import Topic

_ZSTD_SINCE = 7


@api(0, ProduceRequest, ProduceResponse)
def produce(broker: Broker, request: Any, context: RequestContext) -> Deferred | bytes:
    version = context.api_version
    if version < 3:
        return encode_produce(version, _refuse_all(request, Code.UNSUPPORTED_VERSION))
    if request.acks not in (-1, 0, 1):
        return encode_produce(version, _refuse_all(request, Code.INVALID_REQUIRED_ACKS))
    unit = broker.store.unit()
    waits = False
    answers: list[tuple[str, list[Produced]]] = []
    for topic_data in request.topic_data:
        topic = broker.topics.get(topic_data.name)
        partitions = [_append(broker, unit, topic, part, version) for part in topic_data.partition_data]
        waits = waits or any(it.error == 0 for it in partitions)
        answers.append((topic_data.name, partitions))
    body = None if request.acks == 0 else encode_produce(version, answers)
    if waits:  # a duplicate waits too: what it repeats may not be durable yet
        return Deferred(unit, body)
    return Deferred(unit, None) if body is None else body


def _refuse_all(request: Any, code: Code) -> list[tuple[str, list[Produced]]]:
    return [
        (topic_data.name, [Produced(part.index, code) for part in topic_data.partition_data])
        for topic_data in request.topic_data
    ]


def _append(broker: Broker, unit: WriteUnit, topic: Topic | None, part: Any, version: int) -> Produced:
    if topic is None or not 0 <= part.index < len(topic.partitions):
        return Produced(part.index, Code.UNKNOWN_TOPIC_OR_PARTITION)
    log = topic.partitions[part.index]
    config = topic.config
    try:
        header = batch.validate(part.records, max_bytes=config.max_message_bytes)
        if header.compression == batch.ZSTD and version < _ZSTD_SINCE:
            raise BatchError(Code.UNSUPPORTED_COMPRESSION_TYPE, "zstd needs Produce version 7 or newer")
        now_ms = broker.clock.wall_ms()
        if not config.append_time:
            records.check_timestamps(header, config, now_ms)
        if config.compact:
            records.check_keys(header, part.records)
        if header.producer_id >= 0:
            if header.transactional:
                code = broker.transactions.check_append(
                    header.producer_id, header.producer_epoch, topic.name, part.index
                )
                if code != Code.NONE:
                    return Produced(part.index, code)
            written = log.producers.check(
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.record_count,
                transactional=header.transactional,
            )
            if written is not None:
                return Produced(part.index, Code.NONE, written.base_offset, -1, log.log_start_offset)
        append_time_ms = now_ms if config.append_time else None
        staged = log.stage(unit, part.records, header, append_time_ms=append_time_ms)
    except BatchError as error:
        return Produced(part.index, error.code, message=error.message)
    answered_ms = -1 if append_time_ms is None else append_time_ms
    return Produced(part.index, Code.NONE, staged.base_offset, answered_ms, log.log_start_offset)
