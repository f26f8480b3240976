"""CreateTopics, versions 2-7.

Behaviour: -1 partitions (version 4 and newer) are the broker's default; names that differ only in '.' and '_' collide;
configs are checked against the table; a name that comes twice in one request is refused both times.
Unlike Kafka: the replication factor is 1 whatever is asked for, so that a client's habit of asking for 3 works on one
node; a manual assignment gives the number of partitions, and its broker ids are ignored.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from kafka.protocol.admin import CreateTopicsRequest, CreateTopicsResponse

from gokamsg.broker.codes import Code
from gokamsg.broker.configs import TOPIC_CONFIGS, ConfigError, ConfigSource, check_topic_configs, default_of
from gokamsg.broker.registry import RequestContext, api
from gokamsg.broker.state import Broker
from gokamsg.broker.topics import TopicError

_Result = CreateTopicsResponse.CreatableTopicResult


@api(19, CreateTopicsRequest, CreateTopicsResponse)
async def create_topics(broker: Broker, request: Any, context: RequestContext) -> Any:
    version = context.api_version
    times = Counter(asked.name for asked in request.topics)
    results = []
    for asked in request.topics:
        try:
            if times[asked.name] > 1:
                raise TopicError(Code.INVALID_REQUEST, f"topic {asked.name!r} comes twice in the request")
            results.append(await _create(broker, asked, version, dry_run=request.validate_only))
        except TopicError as error:
            results.append(_refused(asked.name, error.code, error.message, version))
        except ConfigError as error:
            results.append(_refused(asked.name, Code.INVALID_CONFIG, str(error), version))
    return CreateTopicsResponse(version=version, topics=results)


async def _create(broker: Broker, asked: Any, version: int, *, dry_run: bool) -> Any:
    partitions = _partition_count(broker, asked)
    if asked.replication_factor < 1 and asked.replication_factor != -1:
        raise TopicError(
            Code.INVALID_REPLICATION_FACTOR, f"a replication factor of {asked.replication_factor} is impossible"
        )
    broker.topics.check_new(asked.name, partitions)
    configs = check_topic_configs({config.name: config.value for config in asked.configs or []})
    topic = None if dry_run else await broker.topics.create(asked.name, partitions, configs)
    fields: dict[str, Any] = {}
    if version >= 5:
        fields = {
            "num_partitions": partitions,
            "replication_factor": 1,
            "configs": _configs(broker, configs, version),
        }
    if version >= 7 and topic is not None:
        fields["topic_id"] = topic.id
    return _Result(version=version, name=asked.name, error_code=0, error_message=None, **fields)


def _partition_count(broker: Broker, asked: Any) -> int:
    if not asked.assignments:
        return broker.settings.default_partitions if asked.num_partitions == -1 else int(asked.num_partitions)
    if asked.num_partitions != -1 or asked.replication_factor != -1:
        raise TopicError(
            Code.INVALID_REQUEST, "with a manual assignment, partitions and replication factor must both be -1"
        )
    indexes = sorted(assignment.partition_index for assignment in asked.assignments)
    if indexes != list(range(len(indexes))):
        raise TopicError(
            Code.INVALID_REPLICA_ASSIGNMENT, f"the assigned partitions {indexes} are not 0 to {len(indexes) - 1}"
        )
    return len(indexes)


def _configs(broker: Broker, configs: dict[str, str], version: int) -> list[Any]:
    return [
        _Result.CreatableTopicConfigs(
            version=version,
            name=row.name,
            value=configs.get(row.name, default_of(row, broker.settings)),
            read_only=False,
            config_source=int(ConfigSource.TOPIC if row.name in configs else ConfigSource.DEFAULT),
            is_sensitive=False,
        )
        for row in TOPIC_CONFIGS.values()
    ]


def _refused(name: str, code: Code, message: str, version: int) -> Any:
    fields: dict[str, Any] = {"configs": []} if version >= 5 else {}
    return _Result(version=version, name=name, error_code=int(code), error_message=message, **fields)
