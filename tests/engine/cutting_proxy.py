"""A proxy that cuts connections at chosen requests, for a broker that has no control hook of its own.

What a test asks for is the embedded broker's own Control: an action that answers a request's API key with Drop ends the
service's connection in place of the request, with DropAfter in place of its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gokamsg.broker.control import Control, Drop, DropAfter
from tests.proxy import Link, Proxy


@dataclass(frozen=True)
class Asking:
    """What an action of the Control is told of who asks."""

    client_id: str


class CuttingProxy(Proxy):
    """See the module."""

    def __init__(self, target: Callable[[], tuple[str, int]]) -> None:
        self.control = Control()
        super().__init__(target)

    def link(self) -> Link:
        return _CuttingLink(self)


class _Frames:
    """Takes a stream apart into messages, each behind its size in four bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[bytes]:
        whole, self._rest = [], self._rest + data
        while len(self._rest) >= 4 and len(self._rest) >= (end := 4 + int.from_bytes(self._rest[:4], "big")):
            whole.append(self._rest[:end])
            self._rest = self._rest[end:]
        return whole


class _CuttingLink(Link):
    def __init__(self, proxy: CuttingProxy) -> None:
        super().__init__(proxy)
        self._control = proxy.control
        self._requests, self._answers = _Frames(), _Frames()
        self._unanswered: set[bytes] = set()

    def sent(self, data: bytes) -> None:
        for frame in self._requests.take(data):
            reaction = None
            if self.concerned:
                reaction = self._control.react(int.from_bytes(frame[4:6], "big"), None, Asking(self.client_id))
            if isinstance(reaction, Drop):
                self.abort()
                return
            if isinstance(reaction, DropAfter):
                self._unanswered.add(frame[8:12])  # its correlation id
            super().sent(frame)

    def answered(self, data: bytes) -> None:
        for frame in self._answers.take(data):
            if frame[4:8] in self._unanswered:
                self.abort()
                return
            super().answered(frame)
