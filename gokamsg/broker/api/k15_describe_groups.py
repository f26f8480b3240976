"""DescribeGroups, versions 0-5.

Behaviour: state, protocol and members; members' metadata and assignments only while the group is Stable. A group that
does not exist is described as Dead.
Unlike Kafka: there are no permissions, so the operations allowed (v3+, on request) are always read, delete, describe.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DescribeGroupsRequest, DescribeGroupsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.group import State
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

READ, DELETE, DESCRIBE = 3, 6, 8

_Group = DescribeGroupsResponse.DescribedGroup


@api(15, DescribeGroupsRequest, DescribeGroupsResponse)
def describe_groups(broker: Broker, request: DescribeGroupsRequest, context: RequestContext) -> DescribeGroupsResponse:
    version = context.api_version
    operations = {READ, DELETE, DESCRIBE} if version >= 3 and request.include_authorized_operations else None
    groups = [_described(broker, name, operations) for name in request.groups]
    return DescribeGroupsResponse(version=version, throttle_time_ms=0, groups=groups)


def _described(broker: Broker, name: str, operations: set[int] | None) -> Any:
    group = broker.groups.get(name)
    stable = group is not None and group.state is State.STABLE
    members = [] if group is None else group.members.values()
    return _Group(
        error_code=Code.NONE,
        group_id=name,
        group_state=(State.DEAD if group is None else group.state).value,
        protocol_type="" if group is None else group.protocol_type or "",
        protocol_data=(group.protocol_name or "") if group is not None and stable else "",
        members=[
            _Group.DescribedGroupMember(
                member_id=member.id,
                group_instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                member_metadata=member.metadata(group.protocol_name) if group is not None and stable else b"",
                member_assignment=member.assignment if stable else b"",
            )
            for member in members
        ],
        authorized_operations=operations,
    )
