"""Child processes: started in order, restarted when they fail, stopped in reverse order.

1. A child that ends by itself is started again, after a pause that grows with each failure in a row.
2. After `quick_failures` failures in a row, each within `quick_s` of its start, everything is stopped and run() raises
   the child's last error. A child that says that another try is useless (final) ends everything at once; one that
   found nobody to work with (waits) is started again for as long as it takes.
3. A child that says nothing for `stall_s` is asked for its stacks, killed and started again. Only messages count: what
   a hanging child logs from another thread, or prints, is no sign that it moves.
4. On stop(), stages end in reverse order: SIGTERM, then SIGKILL to those that are still there after `grace_s`.
   kill() does not wait. A child's standard input ends when this process does, however that happens.

A child talks to its supervisor in JSON lines on its standard output: {"error": text, "final": bool, "waits": bool}
before it fails, anything else is handed to on_message. What it writes to standard error is handed to on_log, line by
line.

Threads: run() belongs to one thread and calls all callbacks; stop() and kill() may be called from any thread and from
signal handlers.
"""

import contextlib
import faulthandler
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from .errors import GokamsgError
from .nursery import Nursery, Process

PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0)
LOOK_S = 0.25  # children that say nothing are looked after so often
ENDING_S = 0.01  # and one that has closed its output, which ends within a moment
STACKS_SIGNAL = signal.SIGUSR1


def show_stacks_when_asked() -> None:
    """For a child: from now on, its supervisor's request writes the stack of each of its threads to standard error.

    Done by the signal's C handler, so that it works whatever hangs, also where no Python code gets a turn.
    """
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child: its name in messages, its command line, and what it reads first. Lower stages start first."""

    name: str
    argv: Sequence[str]
    greeting: bytes = b""
    stage: int = 0
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """Patience."""

    quick_failures: int = 5
    quick_s: float = 10.0
    stall_s: float = 60.0
    stacks_s: float = 1.0
    grace_s: float = 20.0
    pauses_s: tuple[float, ...] = PAUSES_S


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: Process | None = None
    started: float = 0.0
    heard: float = 0.0
    failures: int = 0
    tries: int = 0
    last_failure: str | None = None
    restart_at: float | None = None
    error: str | None = None
    final: bool = False
    waits: bool = False
    asked: float | None = None
    stalled: bool = False
    rest: dict[int, bytes] = field(default_factory=dict)


class Supervisor:
    """Runs a set of children until stop() or until one of them cannot be kept running."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        on_message: Callable[[str, dict[str, Any]], None],
        on_event: Callable[[str, str], None],
        on_log: Callable[[str, str], None],
        options: SupervisorOptions | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self._nursery = nursery or Nursery()
        self._children = [_Child(spec) for spec in sorted(specs, key=lambda spec: spec.stage)]
        self._on_message = on_message
        self._on_event = on_event
        self._on_log = on_log
        self._options = options or SupervisorOptions()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._stopping = False
        self._killing = False
        self._failure: GokamsgError | None = None

    def stop(self) -> None:
        """Ends run() gracefully."""
        self._stopping = True
        self._wake()

    def kill(self) -> None:
        """Ends run() at once."""
        self._stopping = self._killing = True
        self._wake()

    def pids(self) -> dict[str, int]:
        """The running children's process ids by name."""
        return {child.spec.name: child.process.pid for child in self._children if child.process is not None}

    def launch(self) -> None:
        """Starts the children; run() does it unless it is done."""
        for child in self._children:
            if not self._stopping and child.process is None:
                self._start(child)

    def run(self) -> None:
        """Keeps the children running until stop(). Raises the error of a child that cannot be kept running."""
        try:
            self.launch()
            while not self._stopping:
                self._turn(self._rest_s())
                for child in self._children:
                    self._look_after(child)
        finally:
            self._stop_all()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        # Full (it wakes already) or closed (run() has ended).
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b".")

    def _start(self, child: _Child) -> None:
        # Ctrl-C reaches the whole terminal's group, but is for the supervisor, which then stops its children in order:
        # a child inherits the blocked signal, while one that comes now stays pending for us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child.process = self._nursery.spawn(child.spec.argv, child.spec.environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child.started = child.heard = time.monotonic()
        child.restart_at = child.error = child.asked = None
        child.final = child.waits = child.stalled = False
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.write(child.spec.greeting)
            child.process.stdin.flush()
        for stream in (child.process.stdout, child.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, child)

    def _rest_s(self) -> float:
        """How long nothing is to be done unless a child says something."""
        now = time.monotonic()
        rest_s = LOOK_S
        for child in self._children:
            if child.process is not None:
                if child.process.stdout is None or child.process.stdout.closed:
                    rest_s = min(rest_s, ENDING_S)
            elif child.restart_at is not None:
                rest_s = min(rest_s, max(0.0, child.restart_at - now))
        return rest_s

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                os.read(self._wake_read, 4096)
            else:
                self._read(key.data, key.fileobj)  # type: ignore[arg-type]

    def _read(self, child: _Child, stream: IO[bytes]) -> None:
        handle = stream.fileno()
        chunk = os.read(handle, 65536)
        lines = (child.rest.pop(handle, b"") + chunk).split(b"\n")
        if chunk:
            child.rest[handle] = lines.pop()
        else:
            self._selector.unregister(stream)
            stream.close()
        is_message = child.process is not None and stream is child.process.stdout
        for line in filter(None, lines):
            if is_message:
                self._hear(child, line)
            else:
                self._on_log(child.spec.name, line.decode(errors="replace"))

    def _hear(self, child: _Child, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):  # somebody prints
            self._on_log(child.spec.name, line.decode(errors="replace"))
            return
        child.heard = time.monotonic()
        if "error" in message:
            child.error = str(message["error"])
            child.final = bool(message.get("final"))
            child.waits = bool(message.get("waits"))
        else:
            self._on_message(child.spec.name, message)

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if child.restart_at is not None and now >= child.restart_at and not self._stopping:
                self._start(child)
            return
        if now - child.heard <= self._options.stall_s:
            child.asked = None
            if child.process.poll() is None:
                return
        elif child.process.poll() is None:
            if child.asked is None:
                # One that does not answer requests ends by this one.
                child.asked = now
                os.kill(child.process.pid, STACKS_SIGNAL)
            if now - child.asked < self._options.stacks_s:
                return
            child.process.kill()
            child.process.wait()
        child.stalled = child.asked is not None
        self._ended(child, now)

    def _ended(self, child: _Child, now: float) -> None:
        error = self._reap(child)
        is_quick = now - child.started < self._options.quick_s
        child.tries = child.tries + 1 if is_quick else 1
        if not child.waits:
            child.failures = child.failures + 1 if is_quick else 1
        if child.final or child.failures >= self._options.quick_failures:
            times = "" if child.final else f" {child.failures} times in a row"
            self._failure = GokamsgError(f"{child.spec.name} failed{times}: {error}")
            self._stopping = True
            return
        pause = self._options.pauses_s[min(child.tries, len(self._options.pauses_s)) - 1]
        child.restart_at = now + pause
        if child.stalled:
            stall = f"{self._options.stall_s:.0f} s"
            self._on_event(child.spec.name, f"did not move for {stall}; its stacks are above; it is replaced")
            child.last_failure = error
            return
        what = "failed again" if error == child.last_failure else f"failed: {error}"
        child.last_failure = error
        self._on_event(child.spec.name, f"{what}; it starts again in {pause:g} s")

    def _reap(self, child: _Child) -> str:
        """Reads what the ended child said last; returns its error in words."""
        process = child.process
        assert process is not None
        for stream in (process.stdout, process.stderr):
            while stream is not None and not stream.closed:
                try:
                    self._read(child, stream)
                except BlockingIOError:  # a grandchild still holds the pipe
                    self._selector.unregister(stream)
                    stream.close()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        child.process = None
        child.rest.clear()
        code = process.wait()
        if child.error:
            return child.error
        if child.stalled:
            return "it did not move"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def _stop_all(self) -> None:
        for stage in sorted({child.spec.stage for child in self._children}, reverse=True):
            running = [child for child in self._children if child.spec.stage == stage and child.process is not None]
            for child in reversed(running):
                assert child.process is not None
                child.process.terminate()
            deadline = time.monotonic() + self._options.grace_s
            while running:
                late = self._killing or time.monotonic() > deadline
                for child in list(running):
                    assert child.process is not None
                    if late and child.process.poll() is None:
                        child.process.kill()
                        child.process.wait()
                    if child.process.poll() is not None:
                        self._reap(child)
                        running.remove(child)
                if running:
                    self._turn(0.05)
