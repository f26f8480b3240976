"""ElectLeaders, versions 0-2.

Behaviour: the one node leads every partition already, so no election is needed (84).
Unlike Kafka: a null list, all partitions, is answered with none, since none had to be elected.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import ElectLeadersRequest, ElectLeadersResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker

_Result = ElectLeadersResponse.ReplicaElectionResult


@api(43, ElectLeadersRequest, ElectLeadersResponse)
def elect_leaders(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    results = []
    for asked in request.topic_partitions or []:
        partitions = []
        for index in asked.partitions:
            code, message = Code.ELECTION_NOT_NEEDED, "the one node leads every partition"
            if broker.log(asked.topic, index) is None:
                code, message = Code.UNKNOWN_TOPIC_OR_PARTITION, f"there is no partition {asked.topic}/{index}"
            partitions.append(
                _Result.PartitionResult(
                    version=version, partition_id=index, error_code=int(code), error_message=message
                )
            )
        results.append(_Result(version=version, topic=asked.topic, partition_result=partitions))
    return ElectLeadersResponse(version=version, replica_election_results=results)
