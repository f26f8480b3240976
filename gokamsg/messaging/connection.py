"""One client's connection to the HTTP server: requests in, each given to the WSGI application, answers out in order.

1. One request at a time is with the application, and the next is not begun before its answer is handed over to the
   client's socket: what a client has under way is bounded whatever it sends.
2. No state lasts for ever. Each has a deadline: for the next request, for the rest of one, for an answer that is
   pending, for the client to take an answer. What happens when it passes is in late().
3. An answer that ends the connection reaches a client that is still sending: what it sends is thrown away for a while.

Threads: everything happens on the server's loop. The application must not wait; for what takes time it hands over a
Pending, which may be done on any thread.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol

from msgspec import Struct

from .pending import PENDING, Pending
from .requests import BODY_BYTES, Refusal, Request, RequestReader

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_BODILESS = (204, 304)


class Limits(Struct, frozen=True):
    """How many connections there may be, and how long each may take for what."""

    connections: int = 1000
    idle_s: float = 60.0
    """From an answer to the next request."""
    request_s: float = 20.0
    """From a request's first byte to its last."""
    send_s: float = 20.0
    """For the client to take an answer."""
    linger_s: float = 2.0
    """For a client that was refused to end."""


class Host(Protocol):
    """The server, as its connections see it."""

    @property
    def limits(self) -> Limits: ...
    @property
    def app(self) -> Application: ...
    @property
    def environ(self) -> dict[str, Any]: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def buffer(self) -> memoryview: ...
    def opened(self, connection: "Connection") -> bool: ...
    def closed(self, connection: "Connection") -> None: ...
    def soon(self, call: Callable[[], None]) -> None: ...
    def time(self) -> float: ...
    def date(self) -> str: ...


class Connection(asyncio.BufferedProtocol):
    """See the module."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self._reader = RequestReader()
        self._queue: deque[Request | Refusal] = deque()
        self._request: Request | None = None
        self._pending: Pending | None = None
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._full = False  # the client does not take what was written
        self._at_end = False  # the client sends no more
        self._paused = False
        self._ending = False
        self._address = ""
        self.since = host.time()
        """When its present state began."""
        self.deadline = self.since + self._limits.idle_s

    @property
    def owed(self) -> bool:
        """Whether a request was received that has no answer."""
        return self._request is not None or bool(self._queue)

    @property
    def gives_way(self) -> bool:
        """Whether nothing is lost to the client that it could not ask for again."""
        return not self.answering or self._only_watches

    @property
    def _only_watches(self) -> bool:
        return self._pending is not None and self._pending.gives_way and not self._queue

    @property
    def answering(self) -> bool:
        """Whether a request was received that is not answered in full."""
        return self.owed or self._transport.get_write_buffer_size() > 0

    # --- called by the loop -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        if not self._host.opened(self):
            self._refuse(Refusal(503, "there are too many connections; try again"), linger=False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pending is not None:
            self._pending.drop()
        self._request = self._pending = None
        self._ending = True
        self._queue.clear()
        self._reader.close()
        self._host.closed(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.buffer  # one for all: it is read before the loop does anything else

    def buffer_updated(self, nbytes: int) -> None:
        if not self._ending:
            self._received(bytes(self._host.buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._at_end = True
        self._give_way()
        return self.answering and not self._ending  # what it has sent is answered first

    def pause_writing(self) -> None:
        self._full = True
        self._state(self._limits.send_s)

    def resume_writing(self) -> None:
        self._full = False
        self._advance()

    # --- in -----------------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        begun = self._reader.begun
        self._queue.extend(self._reader.take(data))
        if self._reader.wants_continue and not self.answering:
            self._reader.wants_continue = False
            self._transport.write(_CONTINUE)
        if self._queue and self._request is None:
            self._advance()
        elif not self.answering and not begun:
            self._state(self._limits.request_s)
        self._throttle()

    def _advance(self) -> None:
        """Serves the next request, if there is one and its turn has come."""
        if self._request is not None or self._full or self._ending:
            return
        if not self._queue:
            if self._at_end or self._host.stopping:
                self._end()
            else:
                self._state(self._limits.request_s if self._reader.begun else self._limits.idle_s)
            return
        item = self._queue.popleft()
        if isinstance(item, Refusal):
            self._refuse(item)
        else:
            self._request = item
            self._ask(self._host.app, self._environ(item))

    def _throttle(self) -> None:
        """Reads no more from a client that is ahead of its answers."""
        wanted = bool(self._queue)
        if wanted != self._paused and not self._transport.is_closing():
            self._paused = wanted
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()

    def _state(self, lasts_s: float) -> None:
        self.since = self._host.time()
        self.deadline = self.since + lasts_s

    # --- the application ----------------------------------------------------------------------------------------

    def _environ(self, request: Request) -> dict[str, Any]:
        return (
            self._host.environ
            | request.headers
            | {
                "REQUEST_METHOD": request.method,
                "REQUEST_URI": request.target,
                "PATH_INFO": request.target.partition("?")[0],
                "QUERY_STRING": request.target.partition("?")[2],
                "SERVER_PROTOCOL": f"HTTP/{request.version}",
                "REMOTE_ADDR": self._address,
                "CONTENT_LENGTH": str(request.body_bytes),
                "wsgi.input": BytesIO(request.body),
                PENDING: self._pend,
            }
        )

    def _ask(self, app: Callable[..., Iterable[bytes]], *arguments: Any) -> None:
        """Has the application answer the request, now or later."""
        try:
            parts = app(*arguments, self._start_response)
            try:
                if self._pending is None:
                    self._answer(b"".join(parts))
            finally:
                if close := getattr(parts, "close", None):
                    close()
        except Exception:
            log.exception("the answer to a request failed")
            self._pending = None
            self._refuse(Refusal(500, "the service failed; its log says more"))

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        self._status, self._headers = status, headers

    def _pend(self, pending: Pending) -> None:
        self._pending = pending
        self._state(pending.timeout_s)
        pending.on_done(lambda: self._host.soon(lambda: self._finish(pending)))

    def _give_way(self) -> None:
        """Answers what may as well be answered now."""
        if self._pending is not None and self._only_watches:
            self._finish(self._pending)

    def _finish(self, pending: Pending) -> None:
        if self._pending is pending:  # else it was too late, or the client has gone
            self._pending = None
            self._ask(pending.finish)

    # --- out ----------------------------------------------------------------------------------------------------

    def _answer(self, body: bytes) -> None:
        request = self._request
        assert request is not None
        keep_alive = request.keep_alive and not (self._host.stopping and not self._queue)
        self._write(self._status, self._headers, body, version=request.version, keep_alive=keep_alive)
        if not keep_alive:
            self._end(linger=request.body_bytes > BODY_BYTES)
        elif self._queue:
            self._host.soon(self._next)  # other connections have their turn between two requests of this one
        else:
            self._request = None
            self._advance()

    def _next(self) -> None:
        self._request = None
        self._advance()
        self._throttle()

    def _refuse(self, refusal: Refusal, *, linger: bool = True) -> None:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
        body = f"error: {refusal.sentence}\n".encode(errors="replace")
        self._write(str(refusal.status), headers, body, version="1.1", keep_alive=False)
        self._end(linger=linger)

    def _write(
        self, status: str, headers: list[tuple[str, str]], body: bytes, *, version: str, keep_alive: bool
    ) -> None:
        code = int(status[:3])
        lines = [_STATUS_LINES.get(code, f"HTTP/1.1 {status}\r\n")]
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        if not any(name.lower() == "content-length" for name, _ in headers) and code not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines.append(f"Date: {self._host.date()}\r\n")
        if not keep_alive:
            lines.append("Connection: close\r\n")
        elif version == "1.0":
            lines.append("Connection: keep-alive\r\n")
        lines.append("\r\n")
        head = "".join(lines).encode("latin-1", "replace")
        bodiless = code in _BODILESS or (self._request is not None and self._request.method == "HEAD")
        self._transport.write(head if bodiless else head + body)

    # --- ends ---------------------------------------------------------------------------------------------------

    def _end(self, *, linger: bool = False) -> None:
        """Closes once everything is written; `linger`: the client may be sending, and is to see the answer first."""
        self._ending = True
        self._request = None
        self._queue.clear()
        if linger and not self._at_end and not self._transport.is_closing():
            self._transport.write_eof()
            self._throttle()
            self._state(self._limits.linger_s)
        else:
            self._transport.close()
            self._state(self._limits.send_s)

    def late(self) -> None:
        """The deadline has passed."""
        if self._pending is not None:
            self._finish(self._pending)
        elif self._ending or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reader.begun:
            self._reader.refuse(408, f"the request was not complete within {self._limits.request_s:g} s")
            self._received(b"")
        else:
            self._transport.close()

    def finish(self) -> None:
        """The server stops: ends it, after the answers that it is owed."""
        self._give_way()
        if not self.owed and not self._ending:
            self._end()

    def abort(self) -> None:
        """Ends it at once."""
        self._transport.abort()
