"""Changes of topics' configs, asked for and answered alike by AlterConfigs and IncrementalAlterConfigs.

Each resource is checked and changed by itself; nothing of it changes if any part is refused. Loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gokamsg.broker.codes import Code
from gokamsg.broker.configs import ConfigError
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import TOPIC_RESOURCE, Topic, TopicError, Topics

Wanted = Callable[[Topic, Any], dict[str, str]]
"""The configs that a topic shall have, checked, from the topic and what is asked of it; raises ConfigError."""


async def change_configs(broker: Broker, request: Any, response: Any, version: int, wanted: Wanted) -> Any:
    """Do what the request asks of each resource; the response, of the given class and version."""
    responses = []
    for asked in request.resources:
        code, message = Code.NONE, None
        try:
            topic = _topic(broker.topics, asked.resource_type, asked.resource_name)
            configs = wanted(topic, asked)
            if not request.validate_only:
                await broker.topics.configure(topic, configs)
        except TopicError as error:
            code, message = error.code, error.message
        except ConfigError as error:
            code, message = Code.INVALID_CONFIG, str(error)
        responses.append(
            response.AlterConfigsResourceResponse(
                version=version,
                error_code=int(code),
                error_message=message,
                resource_type=asked.resource_type,
                resource_name=asked.resource_name,
            )
        )
    return response(version=version, responses=responses)


def _topic(topics: Topics, resource_type: int, name: str) -> Topic:
    if resource_type != TOPIC_RESOURCE:
        raise TopicError(
            Code.INVALID_REQUEST, "only configs of topics can be changed; the broker's are set at its start"
        )
    topic = topics.get(name)
    if topic is None:
        raise TopicError(Code.UNKNOWN_TOPIC_OR_PARTITION, f"there is no topic {name!r}")
    return topic
