"""A TCP proxy between the service and one broker, which breaks connections in the ways that networks do.

1. Only connections whose client id, in their first request, contains `concerns` are disturbed: by default the
   service's own; brokers among themselves, and the test that watches them, pass.
2. cut() ends connections at once, and may refuse new ones for a while, as a broker that is not there does.
3. slow() holds every byte back for a time; order is kept.
4. hold() keeps what is sent, in both directions or the answers only, and later either delivers it or ends the
   connections with it. What a client held on to no longer is gone.

Threads: the proxy has one of its own; everything public may be called from any.
"""

import asyncio
import contextlib
import random
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

CLIENT_ID = b"gokamsg"
_ID_AT = 14  # behind size, API key, version, correlation id and the length of the client id
_HIGH_WATER = 4 << 20


class Proxy:
    """Listens on a port of its own; `target` tells where the broker is now."""

    def __init__(self, target: Callable[[], tuple[str, int]], *, port: int = 0, concerns: bytes = CLIENT_ID) -> None:
        self.target = target
        self.concerns = concerns
        self.port = port
        self.delay_s = 0.0
        self.holds: frozenset[str] = frozenset()
        self.links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._listener: socket.socket | None = None
        self._accepting: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.accept()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def accept(self) -> None:
        """New connections are taken again."""
        self._run(self._listen())

    def refuse(self) -> None:
        """New connections are refused, whoever asks."""
        self._run(self._unlisten())

    def cut(self, share: float, rng: random.Random) -> int:
        """Ends so many of the service's connections, each with a reset; how many it were."""
        return int(self._run(self._cut(share, rng)))

    def slow(self, delay_s: float) -> None:
        """From now on every byte takes that much longer each way."""
        self.delay_s = delay_s

    def hold(self, *ways: str) -> None:
        """What is sent "up" to the broker and "down" from it stays here."""
        self.holds = frozenset(ways)

    def release(self, *, deliver: bool) -> None:
        """What is held arrives now, or never: its connections end."""
        self._run(self._release(deliver))

    def link(self) -> "Link":
        """For a connection that is made."""
        return Link(self)

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    # asyncio's own server drops connections that it is just accepting when it is closed; ours does not.

    async def _listen(self) -> None:
        if self._listener is None:
            listener = self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._loop.add_reader(listener, self._take)

    def _take(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection, _ = self._listener.accept()
                # asyncio does so for connections of its own listeners; without, an answer in two parts takes 40 ms.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = self._loop.create_task(self._loop.connect_accepted_socket(self.link, connection))
                self._accepting.add(task)
                task.add_done_callback(self._accepting.discard)

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _cut(self, share: float, rng: random.Random) -> int:
        ends = [link for link in self.links if link.concerned and rng.random() < share]
        for link in ends:
            link.abort()
        return len(ends)

    async def _release(self, deliver: bool) -> None:
        held, self.holds = self.holds, frozenset()
        for link in list(self.links):
            for way in (link.up, link.down):
                if way.name in held and way.waiting and not deliver:
                    link.abort()
                    break
                way.pump()

    async def _close(self) -> None:
        await self._unlisten()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for link in list(self.links):
            link.abort()
        await asyncio.sleep(0.1)  # connections are closed, and ones that were being made are given up


class _Way:
    """One direction of a connection: what waits to be written."""

    def __init__(self, name: str, link: "Link") -> None:
        self.name = name
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.to: asyncio.Transport | None = None
        self._link = link
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes) -> None:
        proxy = self._link.proxy
        if self.to is not None and not self.waiting and not self._disturbed():
            self.to.write(data)
            return
        delay_s = proxy.delay_s if self._link.concerned else 0.0
        self.waiting.append((proxy.loop.time() + delay_s, data))
        self.pump()

    def pump(self) -> None:
        """Writes what is due."""
        loop = self._link.proxy.loop
        while self.waiting and self.to is not None and not self._held():
            due, data = self.waiting[0]
            if (left := due - loop.time()) > 0:
                if self._timer is None:
                    self._timer = loop.call_later(left, self._due)
                return
            self.waiting.popleft()
            self.to.write(data)

    def _due(self) -> None:
        self._timer = None
        self.pump()

    def _held(self) -> bool:
        return self._link.concerned and self.name in self._link.proxy.holds

    def _disturbed(self) -> bool:
        return self._link.concerned and (bool(self._link.proxy.delay_s) or self._held())


class Link(asyncio.Protocol):
    """A client's connection and the one to the broker that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.concerned = False
        self.client_id = ""
        self.up, self.down = _Way("up", self), _Way("down", self)
        self._client: asyncio.Transport | None = None
        self._head = b""
        self._known = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.proxy.links.add(self)
        self._client = self.down.to = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._connecting = self.proxy.loop.create_task(self._connect())

    async def _connect(self) -> None:
        host, port = self.proxy.target()
        try:
            transport, _ = await self.proxy.loop.create_connection(lambda: _Upstream(self), host, port)
        except OSError:
            self.abort()
            return
        if self not in self.proxy.links:  # ended meanwhile
            transport.abort()
            return
        self.up.to = transport
        self.up.pump()

    def data_received(self, data: bytes) -> None:
        if not self._known:
            self._head += data
            end = _ID_AT + int.from_bytes(self._head[_ID_AT - 2 : _ID_AT], "big")
            if len(self._head) >= _ID_AT and len(self._head) >= end:
                self._known = True
                self.client_id = self._head[_ID_AT:end].decode(errors="replace")
                self.concerned = self.proxy.concerns in self._head[_ID_AT:end]
                self._head = b""
        self.sent(data)

    def sent(self, data: bytes) -> None:
        self.up.feed(data)

    def answered(self, data: bytes) -> None:
        self.down.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort()

    def abort(self) -> None:
        self.proxy.links.discard(self)
        for transport in (self._client, self.up.to):
            if transport is not None:
                with contextlib.suppress(OSError):
                    transport.abort()


class _Upstream(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link.down.waiting and not self._link.down._held():
            # What the broker said last still arrives.
            self._link.proxy.loop.call_later(self._link.proxy.delay_s + 0.01, self._link.abort)
        else:
            self._link.abort()
