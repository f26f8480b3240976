"""SyncGroup, versions 0-5.

Behaviour: answers each member with its assignment once the leader's assignments are durable; members that the leader
left out get an empty one. A member that asks again later gets the same. Since v5 a protocol type or name that is
missing or not the group's is refused (23).
Unlike Kafka: nothing.
"""

from __future__ import annotations

from kafka.protocol.consumer import SyncGroupRequest, SyncGroupResponse

from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(14, SyncGroupRequest, SyncGroupResponse)
async def sync_group(broker: Broker, request: SyncGroupRequest, context: RequestContext) -> SyncGroupResponse:
    version = context.api_version
    synced = await broker.groups.sync(
        request.group_id,
        request.generation_id,
        request.member_id,
        request.group_instance_id if version >= 3 else None,
        protocol=(request.protocol_type or "", request.protocol_name or "") if version >= 5 else (None, None),
        assignments=[(entry.member_id, bytes(entry.assignment or b"")) for entry in request.assignments],
    )
    return SyncGroupResponse(
        version=version,
        throttle_time_ms=0,
        error_code=synced.code,
        protocol_type=synced.protocol_type,
        protocol_name=synced.protocol_name,
        assignment=synced.assignment,
    )
