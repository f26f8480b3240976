"""InitProducerId, versions 0-5.

Behaviour: without a transactional id a new producer id each time. With one: the same producer id and the next epoch,
which fences whoever held it; a transaction that is open is aborted first. Since v3 a producer may say who it is: it is
then fenced itself if another took over (90, before v4 47), and told the same epoch again when it repeats a request.
After epoch 32766 comes a new producer id. Timeouts over 15 minutes are refused (50).
Unlike Kafka: an open transaction is aborted within the request, so the client is not sent away to ask again (51).
"""

from __future__ import annotations

from kafka.protocol.producer import InitProducerIdRequest, InitProducerIdResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(22, InitProducerIdRequest, InitProducerIdResponse)
async def init_producer_id(
    broker: Broker, request: InitProducerIdRequest, context: RequestContext
) -> InitProducerIdResponse:
    version = context.api_version
    given = version >= 3 and request.producer_id >= 0
    expected = (request.producer_id, request.producer_epoch) if given else None
    code, producer_id, epoch = await broker.transactions.init_producer(
        request.transactional_id, request.transaction_timeout_ms, expected
    )
    if code is Code.PRODUCER_FENCED and version < 4:
        code = Code.INVALID_PRODUCER_EPOCH
    return InitProducerIdResponse(
        version=version, throttle_time_ms=0, error_code=code, producer_id=producer_id, producer_epoch=epoch
    )
