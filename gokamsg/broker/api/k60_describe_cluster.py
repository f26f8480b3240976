"""DescribeCluster, versions 0-1.

Behaviour: one broker, which is the controller too.
Unlike Kafka: authorized operations are never told; controllers cannot be asked for apart (endpoint type 2: error 115).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DescribeClusterRequest, DescribeClusterResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_BROKERS = 1


@api(60, DescribeClusterRequest, DescribeClusterResponse)
def describe_cluster(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    code, message = Code.NONE, None
    nodes = []
    if version >= 1 and request.endpoint_type != _BROKERS:
        code, message = Code.UNSUPPORTED_ENDPOINT_TYPE, "only brokers can be asked for"
    else:
        nodes.append(
            DescribeClusterResponse.DescribeClusterBroker(
                version=version, broker_id=broker.node_id, host=broker.host, port=broker.port, rack=None
            )
        )
    fields: dict[str, Any] = {"endpoint_type": request.endpoint_type} if version >= 1 else {}
    return DescribeClusterResponse(
        version=version,
        error_code=int(code),
        error_message=message,
        cluster_id=broker.cluster_id,
        controller_id=broker.node_id,
        brokers=nodes,
        **fields,
    )
