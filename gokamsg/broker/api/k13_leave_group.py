"""LeaveGroup, versions 0-5.

Behaviour: one member (up to v2) or several (v3+) leave at once, and the others rebalance. A static member may be named
by its instance id alone, which is how an administrator removes it. The codes of members that are unknown (25) or fenced
(82) stand at the members since v3.
Unlike Kafka: the reason (v5) is not logged.
"""

from __future__ import annotations

from kafka.protocol.consumer import LeaveGroupRequest, LeaveGroupResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(13, LeaveGroupRequest, LeaveGroupResponse)
def leave_group(broker: Broker, request: LeaveGroupRequest, context: RequestContext) -> LeaveGroupResponse:
    version = context.api_version
    if version < 3:
        codes = broker.groups.leave(request.group_id, [(request.member_id, None)])
        return LeaveGroupResponse(version=version, throttle_time_ms=0, error_code=codes[0])
    leaving = [(member.member_id, member.group_instance_id) for member in request.members]
    codes = broker.groups.leave(request.group_id, leaving)
    return LeaveGroupResponse(
        version=version,
        throttle_time_ms=0,
        error_code=Code.NONE,
        members=[
            LeaveGroupResponse.MemberResponse(member_id=member_id, group_instance_id=instance_id, error_code=code)
            for (member_id, instance_id), code in zip(leaving, codes, strict=True)
        ],
    )
