"""The service under chaos: its commands on three "hosts" (state directories), and what became of each.

    host a   one command for each role, the filter with two workers, and the HTTP service
    host b   one command for all roles; its state may lie on a small disk
    host c   workers that are added for a while

A command that ends by itself is started again, as a machine's service manager would do, and that is written down: no
broker within 5 s of its start is a reason, a full disk is one, everything else is not. Commands belong to the thread
that injects the fault, one at a time; `keep` is called by the main thread alone.
"""

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import Process, eventually, free_port
from tests.system.chaos.schedule import ROLES
from tests.system.messaging import Messaging
from tests.system.traffic import DETECTION

HOSTS = ("a", "b", "c")
SERVICE = "service"
COMMANDS = (*(f"{role} on a" for role in ROLES), "all on b")
_RUNNING = re.compile(r"running, .*(partition)")
_REASONS = re.compile(r"no broker|no Kafka|cannot be reached|not answer|answers? at|did not answer")


class Command:
    """One command line that should be running, or should not. `lock` is held by whoever breaks or mends it."""

    def __init__(self, service: "Service", name: str, *arguments: str, host: str) -> None:
        self.name = name
        self.host = host
        self.lock = threading.RLock()
        self.wanted = False
        self.process: Process | None = None
        self._service = service
        self._arguments = arguments

    def start(self) -> None:
        with self.lock:
            self.wanted = True
            self.process = self._service.spawn(self.name, self._arguments, self.host)

    def kill(self) -> None:
        with self.lock:
            self.wanted = False
            if self.process is not None:
                self.process.kill9()

    def stop(self) -> float:
        """SIGTERM; the seconds that it took."""
        with self.lock:
            self.wanted = False
            assert self.process is not None
            began = _now()
            self.process.signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s=60)
            finally:
                self.process.kill9()
            return _now() - began

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        assert self.process is not None
        return self.process.children()

    @property
    def ready(self) -> bool:
        return self.process is not None and bool(_RUNNING.search(self.process.stdout() + self.process.stderr()))

    def _signal(self, number: signal.Signals) -> None:
        with self.lock:
            if self.process is not None and self.process.running:
                os.killpg(self.process.pid, number)


class Service:
    """All of it. `ended` says of each command that ended by itself why, and whether that is a reason."""

    def __init__(self, messaging: Messaging, address: str) -> None:
        self.messaging = messaging
        self.port = messaging.port = free_port()
        self.ended: list[str] = []
        self.excused: list[str] = []
        self.full: set[str] = set()
        self._address = address
        self._starts = 0
        self.commands: dict[str, Command] = {}
        for name in COMMANDS:
            role, _, host = name.split()
            options = ("--workers", "2") if role == "filter" else ()
            self.commands[name] = Command(self, name, "process", "--role", role, *options, *DETECTION, host=host)
        self.commands[SERVICE] = Command(self, SERVICE, "serve", "--port", str(self.port), host="a")

    def state(self, host: str) -> Path:
        return self.messaging.directory / f"host-{host}"

    def added(self, role: str, number: int) -> Command:
        """A worker more for a role, not started."""
        name = f"{role} on c #{number}"
        command = Command(self, name, "process", "--role", role, *DETECTION, host="c")
        self.commands[name] = command
        return command

    def spawn(self, name: str, arguments: tuple[str, ...], host: str) -> Process:
        environment = {"GOKAMSG_BROKERS": self._address, "GOKAMSG_STATE_DIR": str(self.state(host))}
        return self.messaging.start(*arguments, name=name.replace(" ", "-"), env=environment)

    def start(self) -> None:
        """Returns when everything is at work."""
        for command in self.commands.values():
            command.start()
        for command in self.commands.values():
            if command.name != SERVICE:
                process = command.process
                assert process is not None
                for role in ROLES if command.name.startswith("all") else [command.name.split()[0]]:
                    self.messaging.running(process, role, timeout_s=90)
        eventually("the service is ready", lambda: self.messaging.get("/-/ready")[0] == 200, timeout_s=60)

    def keep(self) -> None:
        """Starts again what ended by itself."""
        for command in list(self.commands.values()):
            if not command.lock.acquire(blocking=False):
                continue  # somebody is at it
            try:
                process = command.process
                if command.wanted and process is not None and not process.running:
                    self._note(command, process)
                    process.kill9()
                    command.start()
            finally:
                command.lock.release()

    def _note(self, command: Command, process: Process) -> None:
        said = process.stderr().splitlines()
        error = next((line for line in reversed(said) if line.startswith("Error")), said[-1] if said else "nothing")
        text = f"{command.name} ended with {process.returncode} by itself: {error}"
        unreachable = not command.ready and _REASONS.search(error)
        (self.excused if unreachable or command.host in self.full else self.ended).append(text)

    def said(self) -> str:
        """The last lines of every command that should run: a worker that waits says for what."""
        return "\n".join(
            f"{name}: {line}"
            for name, command in self.commands.items()
            if command.wanted and command.process is not None
            for line in command.process.stderr().splitlines()[-3:]
        )

    def heal(self) -> None:
        """Everything that should run runs, and nothing is frozen."""
        for command in self.commands.values():
            command.thaw()
        self.keep()

    def stop(self) -> dict[str, float]:
        """Ends everything at once, each as a user would; the seconds that each took."""
        wanted = {name: command for name, command in self.commands.items() if command.wanted}
        with ThreadPoolExecutor(len(wanted)) as pool:
            return dict(zip(wanted, pool.map(Command.stop, wanted.values()), strict=True))


def _now() -> float:
    return os.times().elapsed
