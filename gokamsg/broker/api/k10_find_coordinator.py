"""FindCoordinator, versions 0-6.

Behaviour: this node coordinates every group (key type 0) and every transactional id (1); since v4 for several keys at
once. Other key types are refused (42).
Unlike Kafka: share groups (key type 2, v6) do not exist here, so they are refused as an unknown type.
"""

from __future__ import annotations

from kafka.protocol.metadata import FindCoordinatorRequest, FindCoordinatorResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

GROUP, TRANSACTION = 0, 1


@api(10, FindCoordinatorRequest, FindCoordinatorResponse)
def find_coordinator(
    broker: Broker, request: FindCoordinatorRequest, context: RequestContext
) -> FindCoordinatorResponse:
    version = context.api_version
    if version < 1 or request.key_type in (GROUP, TRANSACTION):
        code, message, node = Code.NONE, None, (broker.node_id, broker.host, broker.port)
    else:
        code, message = Code.INVALID_REQUEST, f"key type {request.key_type} has no coordinator here; use 0 or 1"
        node = (-1, "", -1)
    node_id, host, port = node
    answer = {"error_code": code, "error_message": message, "node_id": node_id, "host": host, "port": port}
    if version < 4:
        return FindCoordinatorResponse(version=version, throttle_time_ms=0, **answer)
    coordinators = [FindCoordinatorResponse.Coordinator(key=key, **answer) for key in request.coordinator_keys]
    return FindCoordinatorResponse(version=version, throttle_time_ms=0, coordinators=coordinators)
