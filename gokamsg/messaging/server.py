"""Serves the HTTP application with waitress, and stops without breaking off an answer.

stop() closes the door: no connection is accepted any more, requests that were received are answered, then run()
returns. Threads: run() belongs to one thread; stop() may be called from any thread and from signal handlers.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import waitress
from waitress import wasyncore

from gokamsg.errors import GokamsgError

THREADS = 32
DRAIN_S = 15.0
# Larger bodies than the application's own limit, so that it can refuse them in its own words.
RECEIVED_BYTES = 1024 * 1024


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
    """One listening socket and the application behind it."""

    def __init__(self, app: Callable[..., Iterable[bytes]], listener: socket.socket, *, threads: int = THREADS) -> None:
        self._map: dict[int, Any] = {}
        self._server = waitress.create_server(
            app,
            map=self._map,
            sockets=[listener],
            threads=threads,
            ident=None,
            connection_limit=1000,
            channel_timeout=60,
            max_request_body_size=RECEIVED_BYTES,
            clear_untrusted_proxy_headers=True,
            asyncore_use_poll=True,
        )
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self._server.pull_trigger()

    def run(self) -> None:
        """Serves until stop()."""
        while not self._stopping:
            self._turn(1.0)
        wasyncore.dispatcher.close(self._server)
        deadline = time.monotonic() + DRAIN_S
        while self.requests_under_way() and time.monotonic() < deadline:
            self._turn(0.1)
        self._server.task_dispatcher.shutdown()
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()
        self._server.trigger.close()

    def _turn(self, timeout_s: float) -> None:
        wasyncore.loop(timeout=timeout_s, map=self._map, use_poll=True, count=1)

    def requests_under_way(self) -> int:
        """How many connections have a request that is not answered in full. Any thread."""
        channels = list(self._server.active_channels.values())
        return sum(bool(channel.requests or channel.total_outbufs_len) for channel in channels)


def url_of(listener: socket.socket) -> str:
    """Where the socket is reached by HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether the socket listens to this machine only."""
    host = str(listener.getsockname()[0])
    return host.startswith("127.") or host == "::1"
