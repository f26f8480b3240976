"""ListGroups, versions 0-5.

Behaviour: every group, or those in the states (v4+) and of the types (v5) asked for, upper or lower case.
Unlike Kafka: every group is of the type "classic".
"""

from __future__ import annotations

from kafka.protocol.admin import ListGroupsRequest, ListGroupsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

CLASSIC = "classic"


@api(16, ListGroupsRequest, ListGroupsResponse)
def list_groups(broker: Broker, request: ListGroupsRequest, context: RequestContext) -> ListGroupsResponse:
    version = context.api_version
    states = {state.lower() for state in request.states_filter} if version >= 4 else set()
    types = {kind.lower() for kind in request.types_filter} if version >= 5 else set()
    groups = [
        ListGroupsResponse.ListedGroup(
            group_id=group.name,
            protocol_type=group.protocol_type or "",
            group_state=group.state.value,
            group_type=CLASSIC,
        )
        for group in broker.groups.all()
        if (not states or group.state.value.lower() in states) and (not types or CLASSIC in types)
    ]
    return ListGroupsResponse(version=version, throttle_time_ms=0, error_code=Code.NONE, groups=groups)
