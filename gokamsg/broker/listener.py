"""The listening socket and its connections: how many there may be, and what they may hold together.

1. A connection over max_connections is closed as soon as it is accepted; those that are open are not touched.
2. Requests that are received and not answered count against max_queued_bytes. Above it, no connection that has
   requests under way is read from. If frames that never become complete fill it, the largest of them is closed.
3. Answers that clients do not read count against max_unsent_bytes: Fetch answers shrink as it fills.
4. A connection without requests for idle_connection_s is closed.

Threads: the broker's loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from kafka.protocol.metadata import ApiVersionsResponse

from gokamsg.broker import registry, wire
from gokamsg.broker.codes import Code
from gokamsg.broker.connection import Connection
from gokamsg.broker.decoding import Decoders
from gokamsg.broker.registry import Api
from gokamsg.broker.state import Broker

logger = logging.getLogger(__name__)

_TURNS_TO_ACCEPT = 3  # of the loop, until an accepted connection has its protocol
_RECEIVE_BYTES = 256 * 1024  # shared: the loop fills it and a connection empties it before the next one reads


class Listener:
    """Accepts connections for a broker; dispatches by the table of APIs."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.receive_buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self.connections: set[Connection] = set()
        self.slow: set[Connection] = set()
        self.queued_bytes = 0
        self.port = 0
        self._decoders = Decoders()
        self._accepted = 0
        self._throttled = False
        self._server: asyncio.Server | None = None
        broker.answer_room = self.answer_room

    async def listen(self, host: str, port: int) -> int:
        """Accept connections from now on; the port that was taken. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, host, port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    def _connect(self) -> Connection:
        self._accepted += 1
        return Connection(self, self._accepted)

    async def close(self, *, grace_s: float) -> None:
        """Accept nothing more, let requests under way end within grace_s, close every connection."""
        if self._server is not None:
            await _accept_no_more(self._server)
        deadline = self.broker.clock.monotonic() + grace_s
        while any(connection.busy for connection in self.connections):
            if self.broker.clock.monotonic() >= deadline:
                break
            await asyncio.sleep(0.005)
        for connection in tuple(self.connections):
            connection.close()
        while self.connections:  # each one's connection_lost runs on the loop
            await asyncio.sleep(0)
        if self._server is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._server.wait_closed()

    def close_idle(self) -> None:
        """Close what has not been used for too long."""
        oldest = self.broker.clock.monotonic() - self.broker.settings.idle_connection_s
        for connection in tuple(self.connections):
            if connection.idle and connection.last_used < oldest:
                connection.close()

    def answer_room(self) -> int:
        """How many bytes of answers may wait in memory for clients to read them, before it is too much."""
        return self.broker.settings.max_unsent_bytes - sum(connection.unsent_bytes for connection in self.slow)

    # ---- what connections ask (Dispatcher)

    def api(self, key: int, version: int) -> Api | None:
        return registry.find(key, version)

    def decode(self, api: Api, version: int, frame: memoryview, position: int) -> Any:
        return self._decoders.decode(api.request, version, frame, position)

    def unsupported_versions(self, correlation_id: int) -> bytes:
        """The answer to an ApiVersions that is too new: version 0, error 35, and the versions to choose from."""
        keys = [
            ApiVersionsResponse.ApiVersion(key, lowest, highest) for key, (_, lowest, highest) in registry.APIS.items()
        ]
        response = ApiVersionsResponse(version=0, error_code=int(Code.UNSUPPORTED_VERSION), api_keys=keys)
        return wire.frame_response(correlation_id, response)

    def opened(self, connection: Connection) -> bool:
        if len(self.connections) >= self.broker.settings.max_connections:
            logger.warning("refusing a connection from %s: %d are open", connection.host, len(self.connections))
            return False
        self.connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.slow.discard(connection)

    def overloaded(self, connection: Connection) -> bool:
        return self.queued_bytes > self.broker.settings.max_queued_bytes

    def holds(self, connection: Connection, size: int) -> None:
        """A connection's requests take so many bytes more, or fewer."""
        self.queued_bytes += size
        limit = self.broker.settings.max_queued_bytes
        if self.queued_bytes > limit:
            self._throttled = True
            arriving = sum(other.held_bytes for other in self.connections)
            if size > 0 and arriving > limit:
                largest = max(self.connections, key=lambda other: other.held_bytes)
                logger.warning("closing the connection from %s: unfinished requests fill the memory", largest.host)
                largest.close()
        elif self._throttled:
            self._throttled = False
            for other in self.connections:
                asyncio.get_running_loop().call_soon(other.regulate)


async def _accept_no_more(server: asyncio.Server) -> None:
    """Close the server, once what it is just accepting is connected: asyncio would forget that, unclosed."""
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        with contextlib.suppress(NotImplementedError):  # by Windows' loop
            loop.remove_reader(listening)
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    server.close()
