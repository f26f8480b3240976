"""AddOffsetsToTxn, versions 0-4.

Behaviour: makes a group's offsets part of the transaction, which begins if none is open; durable, so a restart does
not lose it. A producer whose epoch was taken over is fenced (90, before v2 47).
Unlike Kafka: nothing.
"""

from __future__ import annotations

from kafka.protocol.producer import AddOffsetsToTxnRequest, AddOffsetsToTxnResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(25, AddOffsetsToTxnRequest, AddOffsetsToTxnResponse)
async def add_offsets_to_txn(
    broker: Broker, request: AddOffsetsToTxnRequest, context: RequestContext
) -> AddOffsetsToTxnResponse:
    code = await broker.transactions.add_group(
        request.transactional_id, request.producer_id, request.producer_epoch, request.group_id
    )
    if code is Code.PRODUCER_FENCED and context.api_version < 2:
        code = Code.INVALID_PRODUCER_EPOCH
    return AddOffsetsToTxnResponse(version=context.api_version, throttle_time_ms=0, error_code=code)
