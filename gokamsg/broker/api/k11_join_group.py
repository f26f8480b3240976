"""JoinGroup, versions 0-9.

Behaviour: answers when the next generation begins. A new dynamic member is given its id first (79, v4+) and joins with
it. A static member that returns keeps its assignment without a rebalance as long as the selected protocol's name stays
the same; its former member id is fenced. Before v1 the rebalance timeout is the session timeout.
Unlike Kafka: the first rebalance of a group does not wait 3 s for more members unless told to; there is no limit on the
size of a group.
"""

from __future__ import annotations

from kafka.protocol.consumer import JoinGroupRequest, JoinGroupResponse

from gokamsg.broker.member import Joining
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(11, JoinGroupRequest, JoinGroupResponse)
async def join_group(broker: Broker, request: JoinGroupRequest, context: RequestContext) -> JoinGroupResponse:
    version = context.api_version
    joined = await broker.groups.join(
        request.group_id,
        Joining(
            member_id=request.member_id,
            instance_id=request.group_instance_id if version >= 5 else None,
            client_id=context.client_id or "",
            client_host=context.client_host,
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=request.rebalance_timeout_ms if version >= 1 else request.session_timeout_ms,
            protocol_type=request.protocol_type,
            protocols=[(protocol.name, bytes(protocol.metadata or b"")) for protocol in request.protocols],
            needs_known_id=version >= 4,
            can_skip_assignment=version >= 9,
        ),
    )
    return JoinGroupResponse(
        version=version,
        throttle_time_ms=0,
        error_code=joined.code,
        generation_id=joined.generation,
        protocol_type=joined.protocol_type,
        protocol_name=joined.protocol_name if version >= 7 else joined.protocol_name or "",
        leader=joined.leader,
        skip_assignment=joined.skip_assignment,
        member_id=joined.member_id,
        members=[
            JoinGroupResponse.JoinGroupResponseMember(
                member_id=member_id, group_instance_id=instance_id, metadata=metadata
            )
            for member_id, instance_id, metadata in joined.members
        ],
    )
