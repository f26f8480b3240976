"""How each kind of fault is done to the running service and undone, by name.

A fault's function returns what undoes it, or None if nothing remains. What it decides by chance it draws from the
fault's dice. Where the brokers are three, one is let go only when the cluster is whole.
"""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from tests.system.chaos.brokers import Brokers
from tests.system.chaos.schedule import Fault
from tests.system.chaos.service import COMMANDS, Command, Service
from tests.system.messaging import GROUPS

Undo = Callable[[], None] | None

CLEAN_STOP_S = 3.0
KILLS = 5
_CHUNK = b"\0" * 65536


class Faults:
    """Does them; threads of different parts may do so at once."""

    def __init__(self, service: Service, brokers: Brokers, disks: dict[str, Path]) -> None:
        self.service = service
        self.brokers = brokers
        self.disks = disks
        self.stops: list[tuple[float, str]] = []
        self._one_broker = threading.Lock()
        self._wait = threading.Event()
        self._kinds: dict[str, Callable[[Fault, random.Random], Undo]] = {
            "workers killed": self._workers_killed,
            "command killed": self._command_killed,
            "command gone": self._command_killed,
            "command stopped": self._command_stopped,
            "command frozen": self._frozen,
            "zombie": self._zombie,
            "worker added, stopped": self._added_stopped,
            "worker added, killed": self._added_killed,
            "member removed": self._member_removed,
            "service killed": self._command_killed,
            "service frozen": self._frozen,
            "broker killed": self._broker_killed,
            "broker restarted": self._broker_restarted,
            "broker frozen": self._broker_frozen,
            "connections cut": self._cut,
            "connections refused": self._refused,
            "network slow": self._slow,
            "network silent": self._silent,
            "answers lost": self._answers_lost,
            "disk full": self._disk_full,
            "markers late": self._markers_late,
        }

    def inject(self, fault: Fault) -> Undo:
        return self._kinds[fault.kind](fault, random.Random(fault.dice))

    def _stop(self, command: Command) -> None:
        self.stops.append((command.stop(), command.name))

    def _command(self, fault: Fault) -> Command:
        return self.service.commands[fault.target]

    def _workers_killed(self, fault: Fault, rng: random.Random) -> Undo:
        """One worker of the command, then others anywhere: each kill finds its worker at another point of its work."""
        names = [fault.target, *rng.sample(COMMANDS, len(COMMANDS))]
        for name in names[:KILLS]:
            if workers := self.service.commands[name].workers():
                _send(rng.choice(workers), signal.SIGKILL)
            self._wait.wait(rng.uniform(0.05, 0.3))
        return None

    def _command_killed(self, fault: Fault, rng: random.Random) -> Undo:
        command = self._command(fault)
        command.kill()
        return command.start

    def _command_stopped(self, fault: Fault, rng: random.Random) -> Undo:
        command = self._command(fault)
        self._stop(command)
        return command.start

    def _frozen(self, fault: Fault, rng: random.Random) -> Undo:
        command = self._command(fault)
        command.freeze()
        return command.thaw

    def _zombie(self, fault: Fault, rng: random.Random) -> Undo:
        """A whole command, or one of its workers: its supervisor does not see it stand still, or does."""
        command = self._command(fault)
        workers = command.workers()
        if not workers or rng.random() < 0.5:
            return self._frozen(fault, rng)
        worker = rng.choice(workers)
        _send(worker, signal.SIGSTOP)
        return lambda: _send(worker, signal.SIGCONT)

    def _added(self, fault: Fault) -> Command:
        command = self.service.added(fault.target, fault.number)
        command.start()
        return command

    def _added_stopped(self, fault: Fault, rng: random.Random) -> Undo:
        command = self._added(fault)
        return lambda: self._stop(command)

    def _added_killed(self, fault: Fault, rng: random.Random) -> Undo:
        return self._added(fault).kill

    def _member_removed(self, fault: Fault, rng: random.Random) -> Undo:
        """A worker is put out of its group while it works: its open transaction is refused, and it keeps its tables."""
        group = GROUPS[fault.target]
        with contextlib.suppress(KafkaError), self.brokers.cluster.admin() as admin:
            members = admin.describe_groups([group])[group]["members"]
            instances = sorted(member["group_instance_id"] for member in members if member["group_instance_id"])
            if instances:
                admin.remove_group_members(group, [MemberToRemove(group_instance_id=rng.choice(instances))])
        return None

    def _broker_killed(self, fault: Fault, rng: random.Random) -> Undo:
        number = _number(fault)
        self._one_broker.acquire()
        self.brokers.proxies[number].refuse()
        self.brokers.nodes[number].kill()
        return lambda: self._broker_back(number)

    def _broker_restarted(self, fault: Fault, rng: random.Random) -> Undo:
        number = _number(fault)
        self._one_broker.acquire()
        self.brokers.nodes[number].stop()
        self.brokers.proxies[number].refuse()
        return lambda: self._broker_back(number)

    def _broker_back(self, number: int) -> None:
        try:
            self.brokers.proxies[number].accept()
            self.brokers.nodes[number].start()
            self.brokers.wait_until_whole()
        finally:
            self._one_broker.release()

    def _broker_frozen(self, fault: Fault, rng: random.Random) -> Undo:
        number = _number(fault)
        self._one_broker.acquire()
        self.brokers.nodes[number].pause()

        def thaw() -> None:
            try:
                self.brokers.nodes[number].resume()
                self.brokers.wait_until_whole()
            finally:
                self._one_broker.release()

        return thaw

    def _cut(self, fault: Fault, rng: random.Random) -> Undo:
        self.brokers.proxies[_number(fault)].cut(rng.choice((0.3, 0.6, 1.0)), rng)
        return None

    def _refused(self, fault: Fault, rng: random.Random) -> Undo:
        proxy = self.brokers.proxies[_number(fault)]
        proxy.refuse()
        proxy.cut(1.0, rng)
        return proxy.accept

    def _slow(self, fault: Fault, rng: random.Random) -> Undo:
        proxy = self.brokers.proxies[_number(fault)]
        proxy.slow(rng.uniform(0.02, 0.25))
        return lambda: proxy.slow(0.0)

    def _silent(self, fault: Fault, rng: random.Random) -> Undo:
        return self._held(fault, rng, "up", "down")

    def _answers_lost(self, fault: Fault, rng: random.Random) -> Undo:
        return self._held(fault, rng, "down")

    def _held(self, fault: Fault, rng: random.Random, *ways: str) -> Undo:
        proxy = self.brokers.proxies[_number(fault)]
        proxy.hold(*ways)
        deliver = rng.random() < 0.5
        return lambda: proxy.release(deliver=deliver)

    def _markers_late(self, fault: Fault, rng: random.Random) -> Undo:
        """One broker is not told that transactions have ended, while partitions of all roles move: whoever takes one
        over finds offsets that are committed, and a changelog whose end is not."""
        proxy = self.brokers.markers[_number(fault)]
        proxy.hold("up")
        self._wait.wait(rng.uniform(0.3, 1.0))
        command = self.service.commands["all on b"]
        with command.lock:
            if command.wanted:
                self._stop(command)
                command.start()
        return lambda: proxy.release(deliver=True)

    def _disk_full(self, fault: Fault, rng: random.Random) -> Undo:
        host = fault.target.split()[-1]
        disk = self.disks[host]
        self.service.full.add(host)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(_CHUNK)
                file.flush()
        return filler.unlink


def _number(fault: Fault) -> int:
    return int(fault.target.split()[-1])


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
