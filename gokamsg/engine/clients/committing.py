"""A commit's steps, taken one after another by the producer's sender thread.

Between two requests of a commit nothing is left to decide, so its owner does not have to wake up for each of them: the
sender asks for the next step as soon as the answer to the last one is there. Steps: offsets into the transaction (while
the brokers still write what was sent), then, when all of it is acknowledged, the end of the transaction.

Threads: advance() is the sender's; done, failure and give_up() are the owner's.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from gokamsg.engine.clients.sending import SentBatch


class _Result(Protocol):
    @property
    def is_done(self) -> bool: ...
    @property
    def exception(self) -> Exception | None: ...


class Commit:
    """One commit. `asked` tells whether its end was asked for: until then it has not happened, and never will after
    give_up(); from then on only the answer tells."""

    def __init__(
        self, sent: Sequence[SentBatch], send_offsets: Callable[[], _Result] | None, end: Callable[[], _Result]
    ) -> None:
        """`send_offsets` and `end` enqueue a request each; `end` raises what forbids it."""
        self.done = threading.Event()
        self.failure: Exception | None = None
        self._sent = sent
        self._send_offsets = send_offsets
        self._end = end
        self._accepted: _Result | None = None
        self._ended: _Result | None = None
        self._given_up = False
        self._lock = threading.Lock()

    @property
    def asked(self) -> bool:
        return self._ended is not None

    def give_up(self) -> None:
        """The owner waits no longer: an end that was not asked for yet is not asked for any more."""
        with self._lock:
            self._given_up = True

    def missing(self) -> str:
        """What has not happened yet, in words."""
        for batch in self._sent:
            if not batch.done:
                return f"{batch} were not acknowledged"
        return "the offsets were not accepted"

    def advance(self) -> bool:
        """Take the next step if it can be taken; whether one was."""
        with self._lock:
            if self._given_up or self.done.is_set():
                return False
            try:
                return self._step()
            except Exception as failure:  # raised again by the owner
                self._finish(failure)
                return False

    def _step(self) -> bool:
        if self._send_offsets is not None:
            self._accepted, self._send_offsets = self._send_offsets(), None
            return True
        if self._ended is None:
            if not self._written():
                return False
            self._ended = self._end()
            return True
        if self._ended.is_done:
            self._finish(self._ended.exception)
        return False

    def _written(self) -> bool:
        for batch in self._sent:
            if batch.done and (error := batch.error()) is not None:
                raise RefusedError(batch) from error
        if self._accepted is not None and self._accepted.is_done and self._accepted.exception is not None:
            raise self._accepted.exception
        return all(batch.done for batch in self._sent) and (self._accepted is None or self._accepted.is_done)

    def _finish(self, failure: Exception | None) -> None:
        self.failure = failure
        self.done.set()


class RefusedError(Exception):
    """A batch of the transaction was not written; __cause__ says why."""

    def __init__(self, batch: SentBatch) -> None:
        super().__init__(str(batch))
