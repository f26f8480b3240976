"""ListPartitionReassignments, versions 0-0.

Behaviour: nothing is ever being moved, so the list is empty.
Unlike Kafka: nothing.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse

from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker


@api(46, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse)
def list_partition_reassignments(broker: Broker, request: Any, context: RequestContext) -> Any:
    return ListPartitionReassignmentsResponse(version=context.api_version, error_code=0, error_message=None, topics=[])
