"""AlterConfigs, versions 0-2.

Behaviour: replaces all configs of a topic by the given ones; nothing changes if one of them is refused.
Unlike Kafka: the broker's own configs are fixed at its start; changing them is refused (42).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import AlterConfigsRequest, AlterConfigsResponse

from gokamsg.broker.config_changes import change_configs
from gokamsg.broker.configs import check_topic_configs
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic


@api(33, AlterConfigsRequest, AlterConfigsResponse)
async def alter_configs(broker: Broker, request: Any, context: RequestContext) -> Any:
    return await change_configs(broker, request, AlterConfigsResponse, context.api_version, _replaced)


def _replaced(topic: Topic, asked: Any) -> dict[str, str]:
    return check_topic_configs({config.name: config.value for config in asked.configs})
