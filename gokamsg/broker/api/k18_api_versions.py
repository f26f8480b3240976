"""ApiVersions, versions 0-4.

Behaviour: the versions of every API in the table. A version that is too new is answered in version 0 with error 35 and
the same list (by the listener, since such a request cannot be decoded).
Unlike Kafka: no features are announced; those that a client would turn on change how it runs transactions.
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse

from gokamsg.broker.registry import APIS, RequestContext, api
from gokamsg.broker.state import Broker


@api(18, ApiVersionsRequest, ApiVersionsResponse)
def api_versions(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    keys = [
        ApiVersionsResponse.ApiVersion(version=version, api_key=key, min_version=lowest, max_version=highest)
        for key, (_, lowest, highest) in APIS.items()
    ]
    return ApiVersionsResponse(version=version, error_code=0, api_keys=keys)
