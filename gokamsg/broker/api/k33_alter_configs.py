"""AlterConfigs, versions 0-2.

Behaviour: replaces all configs of a topic by the given ones; nothing changes if one of them is refused.
Unlike Kafka: the broker's own configs are fixed at its start; changing them is refused (42).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import AlterConfigsRequest, AlterConfigsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.configs import ConfigError, check_topic_configs
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import TopicError, altered_topic


@api(33, "AlterConfigs", versions=(0, 2), request=AlterConfigsRequest, response=AlterConfigsResponse)
async def alter_configs(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    responses = []
    for asked in request.resources:
        code, message = Code.NONE, None
        try:
            topic = altered_topic(broker.topics, asked.resource_type, asked.resource_name)
            configs = check_topic_configs({config.name: config.value for config in asked.configs})
            if not request.validate_only:
                await broker.topics.configure(topic, configs)
        except TopicError as error:
            code, message = error.code, error.message
        except ConfigError as error:
            code, message = Code.INVALID_CONFIG, str(error)
        responses.append(
            AlterConfigsResponse.AlterConfigsResourceResponse(
                version=version,
                error_code=int(code),
                error_message=message,
                resource_type=asked.resource_type,
                resource_name=asked.resource_name,
            )
        )
    return AlterConfigsResponse(version=version, responses=responses)
