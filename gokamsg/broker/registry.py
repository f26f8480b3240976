"""The table of Kafka APIs: who answers which key, at which versions.

1. Whatever lists APIs (ApiVersions, dispatch, the README) is rendered from APIS, so it cannot disagree with it.
2. A handler registers itself with @api when its file in broker/api is imported; a second one for a key is an error.
   That is when a client first asks, or soon after the start: half of the start would else be spent on imports.

A handler is called on the broker's loop with (broker, decoded request, context). It returns a response built with
version=context.api_version, or the encoded body as bytes; or a Deferred, or an awaitable of a response or a body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from msgspec import Struct

from gokamsg.broker.readahead import ReadAhead
from gokamsg.broker.state import Broker
from gokamsg.broker.store import WriteUnit

APIS: Mapping[int, tuple[str, int, int]] = {
    0: ("Produce", 0, 11),
    1: ("Fetch", 4, 17),
    2: ("ListOffsets", 1, 9),
    3: ("Metadata", 0, 12),
    8: ("OffsetCommit", 2, 9),
    9: ("OffsetFetch", 1, 9),
    10: ("FindCoordinator", 0, 6),
    11: ("JoinGroup", 0, 9),
    12: ("Heartbeat", 0, 4),
    13: ("LeaveGroup", 0, 5),
    14: ("SyncGroup", 0, 5),
    15: ("DescribeGroups", 0, 5),
    16: ("ListGroups", 0, 5),
    18: ("ApiVersions", 0, 4),
    19: ("CreateTopics", 2, 7),
    20: ("DeleteTopics", 1, 6),
    21: ("DeleteRecords", 0, 2),
    22: ("InitProducerId", 0, 5),
    23: ("OffsetForLeaderEpoch", 2, 4),
    24: ("AddPartitionsToTxn", 0, 3),
    25: ("AddOffsetsToTxn", 0, 4),
    26: ("EndTxn", 0, 4),
    28: ("TxnOffsetCommit", 0, 4),
    32: ("DescribeConfigs", 0, 4),
    33: ("AlterConfigs", 0, 2),
    35: ("DescribeLogDirs", 1, 4),
    37: ("CreatePartitions", 0, 3),
    42: ("DeleteGroups", 0, 2),
    43: ("ElectLeaders", 0, 2),
    44: ("IncrementalAlterConfigs", 0, 1),
    46: ("ListPartitionReassignments", 0, 0),
    47: ("OffsetDelete", 0, 0),
    60: ("DescribeCluster", 0, 1),
    61: ("DescribeProducers", 0, 0),
    65: ("DescribeTransactions", 0, 0),
    66: ("ListTransactions", 0, 1),
}
"""Key: name, lowest and highest version."""


class RequestContext(Struct, frozen=True):
    """Who asks, and at which version."""

    client_id: str | None
    client_host: str
    api_version: int
    connection_id: int
    read_ahead: ReadAhead


class Deferred(NamedTuple):
    """An encoded body that is sent once a unit is durable; None sends nothing (Produce with acks=0)."""

    unit: WriteUnit
    body: bytes | None


Handler = Callable[[Broker, Any, RequestContext], Any | Awaitable[Any]]


class Api(Struct, frozen=True):
    """One row of the table."""

    key: int
    name: str
    min_version: int
    max_version: int
    request: Any
    response: Any
    handler: Handler
    module: str


_table: dict[int, Api] = {}


def api(key: int, request: Any, response: Any) -> Callable[[Handler], Handler]:
    """Register the decorated handler for an API key; raises ValueError when the key is taken."""

    def register(handler: Handler) -> Handler:
        if key in _table:
            raise ValueError(f"API key {key} is registered twice: {_table[key].module!r} has it already")
        _table[key] = Api(key, *APIS[key], request, response, handler, handler.__module__)
        return handler

    return register


def find(key: int, version: int) -> Api | None:
    """Who answers requests of this kind and version; None if nobody does."""
    if key not in APIS:
        return None
    name, lowest, highest = APIS[key]
    if not lowest <= version <= highest:
        return None
    if key not in _table:
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        import_module(f"gokamsg.broker.api.k{key:02d}_{snake}")
    return _table[key]


def load() -> Iterator[Api]:
    """The rows in the order of keys, each once its handler is imported."""
    for key, (_, lowest, _) in APIS.items():
        row = find(key, lowest)
        assert row is not None
        yield row


def render_apis() -> str:
    """The table of APIs in Markdown, as the README shows it."""
    rows = [f"| {key} | {name} | {lowest}-{highest} |" for key, (name, lowest, highest) in APIS.items()]
    return "\n".join(["| key | API | versions |", "|---|---|---|", *rows]) + "\n"
