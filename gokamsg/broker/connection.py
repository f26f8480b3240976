"""One client's connection: frames in, responses out in the order of requests.

1. Produce requests are pipelined: each is staged as it arrives, so that a group commit can carry many of them. Every
   other request waits until those before it are answered, and those after it wait for it.
2. A connection that has too much under way, or does not read its answers, is not read from until that changes.
3. Bytes that are no request, or a request of a kind or version that is not in the table, close the connection.
   ApiVersions is the exception: it answers any version, so that clients can find the one to speak.

Threads: the broker's loop only.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from functools import partial
from typing import Any, Protocol

from gokamsg.broker import wire
from gokamsg.broker.control import Answer, Delay, Drop, DropAfter
from gokamsg.broker.decoding import DecodeError
from gokamsg.broker.readahead import ReadAhead
from gokamsg.broker.registry import Api, Deferred, RequestContext
from gokamsg.broker.state import Broker
from gokamsg.broker.store import StoreError
from gokamsg.broker.wire import API_VERSIONS, LENGTH, WireError

logger = logging.getLogger(__name__)

_PRODUCE, _FETCH = 0, 1
_LONG_POLLS = (_FETCH, 11, 14)  # Fetch, JoinGroup, SyncGroup
_GROWTH = 1024 * 1024  # a frame's buffer grows with what has arrived, not with what is announced
_MAX_QUEUED = 64  # requests received and not begun


class Dispatcher(Protocol):
    """What a connection needs of its server."""

    broker: Broker
    receive_buffer: memoryview
    slow: set[Connection]  # those with answers that their clients do not read

    def api(self, key: int, version: int) -> Api | None: ...

    def decode(self, api: Api, version: int, frame: memoryview, position: int) -> Any: ...

    def unsupported_versions(self, correlation_id: int) -> bytes: ...

    def opened(self, connection: Connection) -> bool: ...

    def closed(self, connection: Connection) -> None: ...

    def holds(self, connection: Connection, size: int) -> None: ...

    def overloaded(self, connection: Connection) -> bool: ...


class _Slot:
    """A request's place in the order of answers."""

    __slots__ = ("api_key", "body", "correlation_id", "done", "drop", "flexible", "size")

    def __init__(self, api_key: int, correlation_id: int, size: int, *, flexible: bool) -> None:
        self.api_key = api_key
        self.correlation_id = correlation_id
        self.size = size
        self.flexible = flexible
        self.done = False
        self.drop = False
        self.body: bytes | None = None  # framed


class Connection(asyncio.BufferedProtocol):
    """See the module's contract; the server makes one for each client that connects."""

    def __init__(self, server: Dispatcher, number: int) -> None:
        self.number = number
        self.host = ""
        self.last_used = server.broker.clock.monotonic()
        self.held_bytes = 0  # of the frame that is arriving
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._partial = b""  # less than a frame
        self._frame: bytearray | None = None  # a large frame that is arriving
        self._frame_size = self._filled = 0
        self._waiting: deque[memoryview] = deque()
        self._slots: deque[_Slot] = deque()
        self._read_ahead = ReadAhead()
        self._exclusive = False  # a request is under way that nothing may overtake
        self._delayed = False  # likewise, held back by the control hook
        self._pumping = False
        self._closing = False
        self._reading = True
        self._writable = True
        self._task: asyncio.Task[Any] | None = None

    @property
    def idle(self) -> bool:
        return not self._slots and not self._waiting

    @property
    def busy(self) -> bool:
        """Whether a request is under way that will end by itself soon."""
        return bool(self._slots) and self._slots[0].api_key not in _LONG_POLLS

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if peer else ""
        self._transport = transport
        if not self._server.opened(self):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._hold(0)
        for slot in self._slots:
            self._server.holds(self, -slot.size)
        for frame in self._waiting:
            self._server.holds(self, -len(frame))
        if self._task is not None and self._slots and self._slots[0].api_key == _FETCH:
            self._task.cancel()  # nobody waits for the long poll; whatever changes state runs to its end
        self._slots.clear()
        self._waiting.clear()
        self._server.closed(self)

    def close(self) -> None:
        """Close the connection; answers that are not sent yet are dropped."""
        self._closing = True
        self._frame = None
        self._hold(0)
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable = False
        self._server.slow.add(self)

    def resume_writing(self) -> None:
        self._writable = True
        self._server.slow.discard(self)
        self.pump()

    def eof_received(self) -> bool:
        return False

    # ---- receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is None:
            return self._server.receive_buffer
        if self._filled == len(self._frame):
            grown = min(self._frame_size, max(2 * self._filled, _GROWTH))
            self._frame += bytes(grown - self._filled)
            self._hold(grown)
            if self._closing:  # it was too much
                return self._server.receive_buffer
        return memoryview(self._frame)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.last_used = self._server.broker.clock.monotonic()
        if self._closing:
            return
        try:
            if self._frame is not None:
                self._filled += nbytes
                if self._filled == self._frame_size:
                    frame, self._frame = memoryview(self._frame), None
                    self._hold(0)
                    self._enqueue(frame)
            else:
                self._split(nbytes)
        except WireError as error:
            logger.info("closing the connection from %s: %s", self.host, error)
            self.close()
            return
        self.pump()

    def _split(self, nbytes: int) -> None:
        """Cut what has arrived into frames; what is left waits for more."""
        data = self._partial + self._server.receive_buffer[:nbytes]
        view = memoryview(data)
        position, end = 0, len(data)
        limit = self._server.broker.settings.max_request_bytes
        while end - position >= 4:
            size = LENGTH.unpack_from(data, position)[0]
            if not 0 < size <= limit:
                raise WireError(f"a request of {size} bytes, where 1 to {limit} are allowed")
            if end - position - 4 < size:
                if size > len(self._server.receive_buffer) // 2:
                    self._frame = bytearray(view[position + 4 :])
                    self._frame_size, self._filled = size, len(self._frame)
                    position = end
                break
            self._enqueue(view[position + 4 : position + 4 + size])
            position += 4 + size
        self._partial = data[position:]

    def _enqueue(self, frame: memoryview) -> None:
        self._server.holds(self, len(frame))
        self._waiting.append(frame)

    def _hold(self, size: int) -> None:
        """The frame that is arriving takes so many bytes now."""
        change, self.held_bytes = size - self.held_bytes, size
        if change:
            self._server.holds(self, change)

    # ---- requests

    def pump(self) -> None:
        """Begin whatever may begin now, then decide whether to read on."""
        if self._pumping:  # a request was answered at once: the loop below goes on
            return
        self._pumping = True
        while self._waiting and self._writable and not (self._exclusive or self._delayed or self._closing):
            frame = self._waiting[0]
            pipelined = len(frame) >= 2 and frame[0] == 0 and frame[1] == _PRODUCE
            limit = self._server.broker.settings.max_in_flight_requests if pipelined else 1
            if len(self._slots) >= limit:
                break
            self._waiting.popleft()
            try:
                self._begin(frame, pipelined=pipelined)
            except (WireError, DecodeError) as error:
                logger.info("closing the connection from %s: %s", self.host, error)
                self._server.holds(self, -len(frame))
                self.close()
        self._pumping = False
        self.regulate()

    def regulate(self) -> None:
        """Read on, unless this connection or all of them together have too much under way."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        backlog = len(self._waiting) >= _MAX_QUEUED or not self._writable
        reading = not (backlog or (self._slots and self._server.overloaded(self)))
        if reading != self._reading:
            self._reading = reading
            (transport.resume_reading if reading else transport.pause_reading)()

    def _begin(self, frame: memoryview, *, pipelined: bool) -> None:
        header = wire.read_header(frame)
        version = header.api_version
        api = self._server.api(header.api_key, version)
        if api is None:
            if header.api_key != API_VERSIONS:
                raise WireError(f"API key {header.api_key} version {version} is not served")
            self._server.holds(self, -len(frame))
            self._write(self._server.unsupported_versions(header.correlation_id))
            return
        flexible = api.request.flexible_version_q(version)
        position = wire.skip_tags(frame, header.body_at) if flexible else header.body_at
        request = self._server.decode(api, version, frame, position)
        flexible_answer = flexible and header.api_key != API_VERSIONS
        slot = _Slot(header.api_key, header.correlation_id, len(frame), flexible=flexible_answer)
        self._slots.append(slot)
        self._exclusive = not pipelined
        context = RequestContext(header.client_id, self.host, version, self.number, self._read_ahead)
        reaction = self._server.broker.control.react(header.api_key, request, context)
        if reaction is None:
            self._handle(slot, api, request, context)
        elif isinstance(reaction, Drop):
            self.close()
        elif isinstance(reaction, Answer):
            self._answer(slot, reaction.response)
        elif isinstance(reaction, DropAfter):
            slot.drop = True
            self._handle(slot, api, request, context)
        elif isinstance(reaction, Delay):
            self._delayed = True
            self._server.broker.clock.call_later(reaction.seconds, lambda: self._resume(slot, api, request, context))

    def _resume(self, slot: _Slot, api: Api, request: Any, context: RequestContext) -> None:
        self._delayed = False
        if self._transport is not None:
            self._handle(slot, api, request, context)

    def _handle(self, slot: _Slot, api: Api, request: Any, context: RequestContext) -> None:
        try:
            result = api.handler(self._server.broker, request, context)
        except Exception:
            self._failed(api)
            return
        if isinstance(result, Deferred):
            self._server.broker.store.submit(result.unit, partial(self._durable, slot, api, result.body))
        elif inspect.iscoroutine(result):
            self._task = asyncio.ensure_future(result)
            self._task.add_done_callback(partial(self._settled, slot, api))
        elif isinstance(result, asyncio.Future):
            result.add_done_callback(partial(self._settled, slot, api))
        else:
            self._answer(slot, result)

    def _durable(self, slot: _Slot, api: Api, body: bytes | None, failure: StoreError | None) -> None:
        if failure is None:
            self._answer(slot, body)
        else:
            self._failed(api, failure)

    def _settled(self, slot: _Slot, api: Api, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.close()
            return
        error = future.exception()
        if error is not None:
            self._failed(api, error)
            return
        self._answer(slot, future.result())

    def _failed(self, api: Api, error: BaseException | None = None) -> None:
        if isinstance(error, StoreError):
            logger.error("%s from %s was not stored: %s", api.name, self.host, error)
        else:
            logger.error("%s from %s failed", api.name, self.host, exc_info=error if error is not None else True)
        self.close()  # the client asks again; an answer would have to be true

    def _answer(self, slot: _Slot, response: Any) -> None:
        """Fill a slot, send what is complete from the oldest request on, and go on."""
        if isinstance(response, bytes):
            slot.body = wire.frame_body(slot.correlation_id, response, flexible=slot.flexible)
        elif response is not None:
            slot.body = wire.frame_response(slot.correlation_id, response)
        slot.done = True
        if self._transport is None:
            return
        while self._slots and self._slots[0].done:
            first = self._slots.popleft()
            self._server.holds(self, -first.size)
            self._exclusive = False
            if first.drop:
                self.close()
                return
            if first.body is not None:
                self._write(first.body)
        self._task = None
        self.pump()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
