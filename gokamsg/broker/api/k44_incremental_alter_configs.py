"""IncrementalAlterConfigs, versions 0-1.

Behaviour: sets (0), deletes (1), appends to (2) or subtracts from (3) single configs of a topic; the latter two are for
lists only. Nothing changes if one operation on a topic is refused.
Unlike Kafka: the broker's own configs are fixed at its start; changing them is refused (42).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse

from gokamsg.broker.config_changes import change_configs
from gokamsg.broker.configs import TOPIC_CONFIGS, ConfigError, ConfigType, check_topic_configs, default_of
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic

SET, DELETE, APPEND, SUBTRACT = range(4)


@api(44, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse)
async def incremental_alter_configs(broker: Broker, request: Any, context: RequestContext) -> Any:
    def changed(topic: Topic, asked: Any) -> dict[str, str]:
        return _changed(broker, topic, asked.configs)

    return await change_configs(broker, request, IncrementalAlterConfigsResponse, context.api_version, changed)


def _changed(broker: Broker, topic: Topic, operations: list[Any]) -> dict[str, str]:
    """The topic's configs after the operations, checked."""
    configs: dict[str, str | None] = dict(topic.configs)
    for change in operations:
        row = TOPIC_CONFIGS.get(change.name)
        if row is None:
            raise ConfigError(f"there is no topic config {change.name!r}")
        if change.config_operation == SET:
            configs[change.name] = change.value
        elif change.config_operation == DELETE:
            configs.pop(change.name, None)
        elif change.config_operation in (APPEND, SUBTRACT):
            if row.type is not ConfigType.LIST:
                raise ConfigError(f"{change.name!r} is not a list; it can only be set or deleted")
            current = configs.get(change.name) or default_of(row, broker.settings)
            items = [item.strip() for item in current.split(",") if item.strip()]
            given = [item.strip() for item in (change.value or "").split(",") if item.strip()]
            if change.config_operation == APPEND:
                items += [item for item in given if item not in items]
            else:
                items = [item for item in items if item not in given]
            configs[change.name] = ",".join(items)
        else:
            raise ConfigError(f"there is no config operation {change.config_operation}")
    return check_topic_configs(configs)
