"""ListTransactions, versions 0-1.

Behaviour: the transactional ids in the states and of the producer ids asked for; since v1 only those whose transaction
has been open for longer than a duration. States that do not exist are named in the answer.
Unlike Kafka: an id without an open transaction never passes the duration filter.
"""

from __future__ import annotations

from kafka.protocol.admin import ListTransactionsRequest, ListTransactionsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.transaction import TransactionState


@api(66, ListTransactionsRequest, ListTransactionsResponse)
def list_transactions(
    broker: Broker, request: ListTransactionsRequest, context: RequestContext
) -> ListTransactionsResponse:
    version = context.api_version
    states = set(request.state_filters)
    producers = set(request.producer_id_filters)
    longer_ms = request.duration_filter if version >= 1 else -1
    now_ms = broker.clock.wall_ms()
    found = [
        ListTransactionsResponse.TransactionState(
            transactional_id=transaction.id,
            producer_id=transaction.producer_id,
            transaction_state=transaction.state.value,
        )
        for transaction in broker.transactions.all()
        if (not states or transaction.state.value in states)
        and (not producers or transaction.producer_id in producers)
        and (longer_ms < 0 or (transaction.start_ms >= 0 and now_ms - transaction.start_ms > longer_ms))
    ]
    return ListTransactionsResponse(
        version=version,
        throttle_time_ms=0,
        error_code=Code.NONE,
        unknown_state_filters=sorted(states - {state.value for state in TransactionState}),
        transaction_states=found,
    )
