"""What `gokamsg up` starts: a broker, the five roles, the service; stopped in reverse order.

1. What all parts need at their start is loaded once (nursery.py).
2. The broker is a child like the others, with a supervisor of its own: it starts first and ends last, and one that
   crashes is started again while the others wait for it.
3. `prepare` is called with the broker's address once it accepts connections (None without a broker of our own); it
   makes the topics and says which parts to start.
4. run() returns when stop() was called and everything has ended; it raises the error of a part that cannot be kept
   running. A second signal (kill()) ends everything at once.

Knows nothing of what its parts do; prints nothing.
Threads: run() belongs to one thread. Messages and events come on it, those of the broker on a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import GokamsgError
from .nursery import Nursery
from .supervisor import ChildSpec, Supervisor, SupervisorOptions

BROKER_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what the parts say and what happens to them: (part, message), (part, text), (part, line)."""

    on_message: Callable[[str, dict[str, Any]], None]
    on_event: Callable[[str, str], None]
    on_log: Callable[[str, str], None]


class Up:
    """See the module."""

    def __init__(
        self,
        broker: ChildSpec | None,
        listener: Listener,
        *,
        prepare: Callable[[str | None], Sequence[ChildSpec]],
        load: Callable[[], None],
        children: int,
        options: SupervisorOptions | None = None,
    ) -> None:
        """`children` blanks are made ready for the parts, after `load` (nursery.py)."""
        self._prepare = prepare
        self._load = load
        self._children = children
        self._nursery = Nursery()
        self._listener = listener
        self._options = options or SupervisorOptions()
        self._stopping = threading.Event()
        self._answers = threading.Event()
        self._broker = self._supervisor([broker], self._on_broker_message) if broker is not None else None
        self._broker_failure: BaseException | None = None
        self._address: str | None = None
        self._parts: Supervisor | None = None

    def run(self) -> None:
        """Start everything, keep it running until stop()."""
        thread = None
        if self._broker is not None:
            self._broker.launch()
        self._nursery.prepare(self._load, blanks=self._children)  # while the broker starts, and before any thread
        if self._broker is not None:
            thread = threading.Thread(target=self._run_broker, args=(self._broker,), name="broker-supervisor")
            thread.start()
        try:
            if thread is not None:
                self._await_broker()
            if not self._stopping.is_set():
                self._parts = self._supervisor(self._prepare(self._address), self._listener.on_message)
                if self._stopping.is_set():
                    self._parts.stop()
                self._parts.run()
        finally:
            self._nursery.close()
            if self._broker is not None and thread is not None:
                self._broker.stop()
                thread.join()
        if self._broker_failure is not None:
            raise self._broker_failure

    def stop(self) -> None:
        """End run() in reverse order; from any thread and from signal handlers."""
        self._stopping.set()
        self._answers.set()
        if self._parts is not None:
            self._parts.stop()

    def kill(self) -> None:
        """End run() at once."""
        self.stop()
        if self._parts is not None:
            self._parts.kill()
        if self._broker is not None:
            self._broker.kill()

    def pids(self) -> Mapping[str, int]:
        """The running parts' process ids by name."""
        pids: dict[str, int] = {}
        for supervisor in (self._broker, self._parts):
            pids.update(supervisor.pids() if supervisor is not None else {})
        return pids

    def _supervisor(self, specs: Sequence[ChildSpec], on_message: Callable[[str, dict[str, Any]], None]) -> Supervisor:
        return Supervisor(
            specs,
            on_message=on_message,
            on_event=self._listener.on_event,
            on_log=self._listener.on_log,
            options=self._options,
            nursery=self._nursery,
        )

    def _run_broker(self, supervisor: Supervisor) -> None:
        try:
            supervisor.run()
        except BaseException as error:
            self._broker_failure = error
        # Without a broker nothing else can go on; after a stop this changes nothing.
        self.stop()

    def _on_broker_message(self, part: str, message: dict[str, Any]) -> None:
        self._listener.on_message(part, message)
        if "ready" in message:
            self._address = str(message["ready"])
            self._answers.set()

    def _await_broker(self) -> None:
        if not self._answers.wait(BROKER_START_S):
            raise GokamsgError(
                f"the broker did not accept connections within {BROKER_START_S:.0f} s; see its log above"
            )
        if self._broker_failure is not None:
            raise self._broker_failure
