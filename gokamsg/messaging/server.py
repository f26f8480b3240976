"""Serves the HTTP application on one thread, and stops without breaking off an answer.

1. Requests are answered one after the other on the loop's thread, without being handed to another: an answer takes a
   fraction of a millisecond. One that waits for the brokers is pending and costs no thread (pending.py).
2. Clients that hold connections open without asking take nothing from others: when there are too many connections, the
   one that has waited longest, for its client or for news, gives way to a new one.
3. stop() closes the door: no connection is accepted any more, requests that were received are answered, then run()
   returns.

Why not a library's server: deadlines for every state, giving way, refusals that come in their turn and bounded
pipelining are most of what stands here, and with uvicorn they were overrides of its internals, two thirds as long.

Threads: run() belongs to one thread; stop() may be called from any thread and from signal handlers.
"""

import asyncio
import contextlib
import errno
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

from gokamsg.errors import GokamsgError

from .connection import Application, Connection, Limits

DRAIN_S: Final = 1.0  # for requests that wait for the brokers, once it is to stop
FLUSH_S: Final = 0.3  # for clients to take their last answer
READ_BYTES: Final = 32 * 1024


def listen(host: str, port: int, *, flags: tuple[str, str] = ("--host", "--port")) -> socket.socket:
    """A listening socket. Raises GokamsgError if the address cannot be had; `flags` choose another host or port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise GokamsgError(f"cannot listen on {host!r}: {(error.strerror or str(error)).lower()}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        flag = flags[0] if error.errno == errno.EADDRNOTAVAIL else flags[1]
        raise GokamsgError(f"cannot listen on {host}:{port}: {reason}. Choose another with {flag}.") from error
    return listener


class HttpServer:
    """One listening socket and the WSGI application behind it."""

    def __init__(self, app: Application, listener: socket.socket, *, limits: Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Limits()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self.environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self._limit = min(self.limits.connections, _descriptors() * 3 // 4)
        self._connections: set[Connection] = set()
        self._due: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._woken = False
        self._sweeping = False
        self._date = (0.0, "")
        self.stopping = False

    def stop(self) -> None:
        self.stopping = True
        if self._loop is not None and self._stopped is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stopped.set)

    def run(self) -> None:
        """Serves until stop()."""
        asyncio.run(self._serve())

    @property
    def connections(self) -> int:
        """How many there are. Any thread."""
        return len(self._connections)

    def requests_under_way(self) -> int:
        """How many connections have a request that is not answered in full. Any thread."""
        return sum(connection.answering for connection in tuple(self._connections))

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = await self._loop.create_server(lambda: Connection(self), sock=self._listener, backlog=1024)
        if not self.stopping:
            await self._stopped.wait()
        # What was accepted a moment ago becomes a connection first: a closed asyncio server drops it with its socket.
        self._loop.remove_reader(self._listener.fileno())
        await asyncio.sleep(0.01)
        server.close()
        for connection in tuple(self._connections):
            connection.finish()
        await self._until(lambda: not any(connection.owed for connection in self._connections), DRAIN_S)
        for connection in tuple(self._connections):
            connection.late()
        await self._until(lambda: not self._connections, FLUSH_S)
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # they are told that they are lost

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = self.time() + timeout_s
        while not condition() and self.time() < deadline:
            await asyncio.sleep(0.02)

    # --- for the connections; on the loop's thread, but for soon() ----------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """Whether it may stay."""
        if len(self._connections) >= self._limit:
            waiting = [other for other in self._connections if other.gives_way]
            if not waiting:
                return False
            longest = min(waiting, key=lambda other: other.since)
            self._connections.discard(longest)
            longest.abort()
        self._connections.add(connection)
        self._sweep_later()
        return True

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def soon(self, call: Callable[[], None]) -> None:
        """Calls on the loop's thread; from any. Many calls wake it once."""
        self._due.append(call)
        if not self._woken and self._loop is not None:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._run_due)

    def time(self) -> float:
        return time.monotonic()

    def date(self) -> str:
        """Now, as a Date header has it."""
        now = time.time()
        if now - self._date[0] >= 1:
            self._date = (now // 1, formatdate(now, usegmt=True))
        return self._date[1]

    def _run_due(self) -> None:
        self._woken = False  # first: what is added from here on wakes the loop again
        for _ in range(len(self._due)):
            self._due.popleft()()

    def _sweep_later(self) -> None:
        if not self._sweeping and self._loop is not None:
            self._sweeping = True
            self._loop.call_later(1.0, self._sweep)

    def _sweep(self) -> None:
        """Looks for deadlines that have passed, each second while there are connections."""
        self._sweeping = False
        now = self.time()
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.late()
        if self._connections:
            self._sweep_later()


def url_of(listener: socket.socket) -> str:
    """Where the socket is reached by HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether the socket listens to this machine only."""
    host = str(listener.getsockname()[0])
    return host.startswith("127.") or host == "::1"


def _descriptors() -> int:
    """How many files the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
