"""An answer that is not known yet: what a WSGI application hands to a server that can wait for many at once. Leaf.

A server that can puts a function under PENDING into the environment. An application that finds it there may call it
with a Pending, once, and return no body; the server calls finish() when the answer is known, or when its time is over.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

PENDING: Final = "gokamsg.pending"


class Pending(Protocol):
    """An answer to come."""

    @property
    def timeout_s(self) -> float:
        """How long to wait."""

    @property
    def gives_way(self) -> bool:
        """Whether it may be asked for at any time, and nothing is lost by that: when the server stops, the client sends
        no more, or its place is needed."""

    def on_done(self, call: Callable[[], None]) -> None:
        """Calls when the answer is known, once at least: at once, or later on any thread."""

    def drop(self) -> None:
        """The client has gone."""

    def finish(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The answer, as a WSGI application gives it; if it is not known yet, the one for that case."""
