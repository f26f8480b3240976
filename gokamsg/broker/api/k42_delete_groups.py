"""DeleteGroups, versions 0-2.

Behaviour: deletes groups without members, with their offsets; refuses others (68) and unknown ones (69).
Unlike Kafka: nothing.
"""

from __future__ import annotations

from kafka.protocol.admin import DeleteGroupsRequest, DeleteGroupsResponse

from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(42, DeleteGroupsRequest, DeleteGroupsResponse)
async def delete_groups(broker: Broker, request: DeleteGroupsRequest, context: RequestContext) -> DeleteGroupsResponse:
    results = [
        DeleteGroupsResponse.DeletableGroupResult(group_id=name, error_code=await broker.groups.delete(name))
        for name in request.groups_names
    ]
    return DeleteGroupsResponse(version=context.api_version, throttle_time_ms=0, results=results)
