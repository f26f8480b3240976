"""EndTxn, versions 0-4.

Behaviour: commits or aborts the open transaction, and answers when its markers and offsets are durable and visible.
Repeating the request is answered alike; the opposite of what was done is refused (48), and so is ending what never
began. A producer whose epoch was taken over, or whose transaction timed out, is fenced (90, before v2 47).
Unlike Kafka: there is no moment between the decision and its markers, so readers see the end at once.
"""

from __future__ import annotations

from kafka.protocol.producer import EndTxnRequest, EndTxnResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(26, EndTxnRequest, EndTxnResponse)
async def end_txn(broker: Broker, request: EndTxnRequest, context: RequestContext) -> EndTxnResponse:
    code = await broker.transactions.end(
        request.transactional_id, request.producer_id, request.producer_epoch, commit=request.committed
    )
    if code is Code.PRODUCER_FENCED and context.api_version < 2:
        code = Code.INVALID_PRODUCER_EPOCH
    return EndTxnResponse(version=context.api_version, throttle_time_ms=0, error_code=code)
