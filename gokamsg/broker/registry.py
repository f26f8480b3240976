"""The table of Kafka APIs: who answers which key, at which versions.

1. A handler registers itself with @api when its file in broker/api is imported; a second one for a key is an error.
2. Whatever lists APIs (ApiVersions, dispatch, the README) is rendered from this table, so it cannot disagree with it.

A handler is called on the broker's loop with (broker, decoded request, context). It returns a response built with
version=context.api_version, or the encoded body as bytes; or a Deferred, or an awaitable of a response or a body.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct

from gokamsg.broker.readahead import ReadAhead
from gokamsg.broker.state import Broker
from gokamsg.broker.store import WriteUnit


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


def api(key: int, name: str, versions: tuple[int, int], request: Any, response: Any) -> Callable[[Handler], Handler]:
    """Register the decorated handler for an API key; raises ValueError when the key is taken."""

    def register(handler: Handler) -> Handler:
        if key in _table:
            raise ValueError(f"API key {key} ({name!r}) is registered twice: {_table[key].module!r} has it already")
        low, high = versions
        _table[key] = Api(key, name, low, high, request, response, handler, handler.__module__)
        return handler

    return register


def load() -> Mapping[int, Api]:
    """Import every file in broker/api and return the table, in the order of keys."""
    from gokamsg.broker import api as package  # the handlers import this module, so it cannot import them first

    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
    return MappingProxyType(dict(sorted(_table.items())))


def registered() -> Iterable[Api]:
    """The rows that load() has brought in, in the order of keys."""
    return [row for _, row in sorted(_table.items())]


def render_apis() -> str:
    """The table of APIs in Markdown, as the README shows it."""
    rows = [f"| {row.key} | {row.name} | {row.min_version}-{row.max_version} |" for row in load().values()]
    return "\n".join(["| key | API | versions |", "|---|---|---|", *rows]) + "\n"
