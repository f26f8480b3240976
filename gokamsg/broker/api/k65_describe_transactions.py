"""DescribeTransactions, versions 0-0.

Behaviour: state, producer and partitions of each transactional id; unknown ones get 105.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DescribeTransactionsRequest, DescribeTransactionsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_State = DescribeTransactionsResponse.TransactionState


@api(65, DescribeTransactionsRequest, DescribeTransactionsResponse)
def describe_transactions(
    broker: Broker, request: DescribeTransactionsRequest, context: RequestContext
) -> DescribeTransactionsResponse:
    states = [_described(broker, transactional_id) for transactional_id in request.transactional_ids]
    return DescribeTransactionsResponse(version=context.api_version, throttle_time_ms=0, transaction_states=states)


def _described(broker: Broker, transactional_id: str) -> Any:
    transaction = broker.transactions.get(transactional_id)
    if transaction is None:
        return _State(
            error_code=Code.TRANSACTIONAL_ID_NOT_FOUND if transactional_id else Code.INVALID_REQUEST,
            transactional_id=transactional_id,
            transaction_state="",
            transaction_timeout_ms=0,
            transaction_start_time_ms=-1,
            producer_id=-1,
            producer_epoch=-1,
            topics=[],
        )
    topics: dict[str, list[int]] = {}
    for topic, partition in sorted(transaction.partitions):
        topics.setdefault(topic, []).append(partition)
    return _State(
        error_code=Code.NONE,
        transactional_id=transactional_id,
        transaction_state=transaction.state.value,
        transaction_timeout_ms=transaction.timeout_ms,
        transaction_start_time_ms=transaction.start_ms,
        producer_id=transaction.producer_id,
        producer_epoch=transaction.epoch,
        topics=[_State.TopicData(topic=topic, partitions=partitions) for topic, partitions in topics.items()],
    )
