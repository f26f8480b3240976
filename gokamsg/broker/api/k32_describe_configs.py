"""DescribeConfigs, versions 0-4.

Behaviour: topics (type 2) with every config of the table and where its value comes from; the broker (type 4, name "1")
with its own, all read-only.
Unlike Kafka: documentation is never sent; broker loggers (type 8) are refused (42).
"""

from __future__ import annotations

from typing import Any

from kafka.protocol.admin import DescribeConfigsRequest, DescribeConfigsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.configs import TOPIC_CONFIGS, ConfigSource, ConfigType, broker_configs, default_of
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import Topic

TOPIC, BROKER = 2, 4
_Result = DescribeConfigsResponse.DescribeConfigsResult
_Config = _Result.DescribeConfigsResourceResult


@api(32, DescribeConfigsRequest, DescribeConfigsResponse)
def describe_configs(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    results = [_describe(broker, asked, request, version) for asked in request.resources]
    return DescribeConfigsResponse(version=version, results=results)


def _describe(broker: Broker, asked: Any, request: Any, version: int) -> Any:
    code, message = Code.NONE, None
    configs: list[Any] = []
    wanted = None if not asked.configuration_keys else set(asked.configuration_keys)
    synonyms = bool(request.include_synonyms)
    if asked.resource_type == TOPIC:
        topic = broker.topics.get(asked.resource_name)
        if topic is None:
            code, message = Code.UNKNOWN_TOPIC_OR_PARTITION, f"there is no topic {asked.resource_name!r}"
        else:
            configs = _topic_configs(broker, topic, version, wanted, synonyms=synonyms)
    elif asked.resource_type == BROKER and asked.resource_name in ("", str(broker.node_id)):
        for name, (kind, value) in broker_configs(broker.settings).items():
            if wanted is None or name in wanted:
                configs.append(_config(version, name, value, ConfigSource.STATIC_BROKER, kind, [], read_only=True))
    elif asked.resource_type == BROKER:
        code, message = Code.INVALID_REQUEST, f"there is no broker {asked.resource_name!r}, only {broker.node_id}"
    else:
        code, message = Code.INVALID_REQUEST, f"configs of resource type {asked.resource_type} are not kept here"
    return _Result(
        version=version,
        error_code=int(code),
        error_message=message,
        resource_type=asked.resource_type,
        resource_name=asked.resource_name,
        configs=configs,
    )


def _topic_configs(broker: Broker, topic: Topic, version: int, wanted: set[str] | None, *, synonyms: bool) -> list[Any]:
    configs = []
    for row in TOPIC_CONFIGS.values():
        if wanted is not None and row.name not in wanted:
            continue
        default = default_of(row, broker.settings)
        value = topic.configs.get(row.name)
        source = ConfigSource.DEFAULT if value is None else ConfigSource.TOPIC
        names = []
        if synonyms:
            if value is not None:
                names.append((row.name, value, ConfigSource.TOPIC))
            names.append((row.broker_name or f"log.{row.name}", default, ConfigSource.DEFAULT))
        configs.append(
            _config(version, row.name, default if value is None else value, source, row.type, names, read_only=False)
        )
    return configs


def _config(
    version: int,
    name: str,
    value: str,
    source: ConfigSource,
    kind: ConfigType,
    synonyms: list[tuple[str, str, ConfigSource]],
    *,
    read_only: bool,
) -> Any:
    fields: dict[str, Any] = {}
    if version == 0:
        fields["is_default"] = source is ConfigSource.DEFAULT
    else:
        fields["config_source"] = int(source)
        fields["synonyms"] = [
            _Config.DescribeConfigsSynonym(version=version, name=other, value=its_value, source=int(its_source))
            for other, its_value, its_source in synonyms
        ]
    if version >= 3:
        fields["config_type"] = int(kind)
        fields["documentation"] = None
    return _Config(version=version, name=name, value=value, read_only=read_only, is_sensitive=False, **fields)
