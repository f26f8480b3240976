"""Heartbeat, versions 0-4.

Behaviour: keeps the member's session; tells it to rejoin (27) while a rebalance waits for members.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from kafka.protocol.consumer import HeartbeatRequest, HeartbeatResponse

from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(12, HeartbeatRequest, HeartbeatResponse)
def heartbeat(broker: Broker, request: HeartbeatRequest, context: RequestContext) -> HeartbeatResponse:
    instance_id = request.group_instance_id if context.api_version >= 3 else None
    code = broker.groups.heartbeat(request.group_id, request.generation_id, request.member_id, instance_id)
    return HeartbeatResponse(version=context.api_version, throttle_time_ms=0, error_code=code)
