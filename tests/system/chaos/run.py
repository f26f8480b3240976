"""One run: everything started, the schedule carried out under load, everything healed, the account taken.

The report is printed whatever the outcome, with the seed, so that a failure can be repeated:
the same seed, length and brokers give the same schedule.
"""

import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import Processes, eventually, run_gokamsg, say, slowness, times_slower
from tests.system.chaos.account import Account
from tests.system.chaos.brokers import Brokers
from tests.system.chaos.faults import CLEAN_STOP_S, Faults
from tests.system.chaos.load import TRANSLATED, Drizzle, Speaker, talk
from tests.system.chaos.schedule import KINDS, SAME_HOST_S, Fault, Parts, draw
from tests.system.chaos.service import COMMANDS, Service
from tests.system.chaos.watch import Stall, Watch, by_id
from tests.system.fold import partition_of
from tests.system.messaging import Ledger, Messaging
from tests.system.traffic import PEOPLE, SPAMMER

SPEAKERS = 4
RATE = 20.0  # of each speaker, messages a second
CALM_WITHIN_S = 60.0
GRACE_S = 5.0  # beyond a bar, on a machine as quick as an idle one
LONG_S, ALONE, ALONE_IN_SHORT = 120.0, 0.5, 0.0


@dataclass
class Injected:
    """A fault as it really happened, in time.monotonic()."""

    fault: Fault
    began: float
    ended: float = float("inf")


@dataclass
class Report:
    """What a run showed; `broken` is empty if every invariant held."""

    seed: int
    brokers: str
    injected: list[Injected] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    stalls: dict[str, float] = field(default_factory=dict)


class Run:
    """See the module. `disks` are the hosts whose state lies on a small disk, and where that is mounted."""

    def __init__(
        self, seed: int, seconds: float, brokers: Brokers, started: Processes, directory: Path, disks: dict[str, Path]
    ) -> None:
        self.report = Report(seed, brokers.name)
        self._seed = seed
        self._seconds = seconds
        self._brokers = brokers
        self._directory = directory
        self._messaging = Messaging(brokers.cluster, started, directory)
        self._service = Service(self._messaging, brokers.address)
        self._faults = Faults(self._service, brokers, disks)
        parts = Parts(COMMANDS, len(brokers.nodes), len(brokers.markers), disks=tuple(f"disk {host}" for host in disks))
        self.schedule = draw(seed, seconds, parts, alone=ALONE if seconds >= LONG_S else ALONE_IN_SHORT)
        self._watch = Watch(brokers.cluster)
        self._speakers = [
            Speaker(lambda: self._service.port, talk(seed, number, SPEAKERS), rate=RATE) for number in range(SPEAKERS)
        ]
        self._wake = threading.Event()
        self._slowness = 1.0
        self._starts: list[float] = []

    def go(self) -> Report:
        """Runs it to its end, and prints the report."""
        report = self.report
        say(f"chaos on {report.brokers}: seed {report.seed}, {self._seconds:.0f} s, {len(self.schedule)} faults")
        self._prepare()
        drizzle = Drizzle(self._brokers.cluster, self._seed)
        self._watch.start()
        drizzle.start()
        for speaker in self._speakers:
            speaker.start()
        try:
            self._carry_out()
        finally:
            for speaker in self._speakers:
                speaker.stop()
        self._service.heal()
        healed = time.monotonic()
        for speaker in self._speakers:
            speaker.join()
        drizzle.close()
        self._calm(healed)
        self._last_words()
        self._watch.close()
        self._account()
        self._tell_stalls()
        return report

    def _prepare(self) -> None:
        self._service.start()
        for word, translation in TRANSLATED.items():
            self._messaging.done("translate", word, translation)
        self._messaging.drained("translator")

    def _carry_out(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(max(1, len(self.schedule))) as pool:
            running: list[Future[None]] = []
            for fault in self.schedule:
                self._pass_until(began + fault.at_s)
                running.append(pool.submit(self._inject, fault))
            self._pass_until(began + self._seconds)
            eventually("every fault is undone", lambda: self._undone(running), timeout_s=120, interval_s=0.3)
            for each in running:
                each.result()

    def _undone(self, running: list[Future[None]]) -> bool:
        self._service.keep()
        return all(each.done() for each in running)

    def _pass_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self._wake.wait(min(left, 0.3))
            self._service.keep()

    def _inject(self, fault: Fault) -> None:
        if self._seconds >= LONG_S and KINDS[fault.kind].bar_s == SAME_HOST_S:
            self._starts.append(run_gokamsg("--version").seconds)
        injected = Injected(fault, time.monotonic())
        self.report.injected.append(injected)
        undo = self._faults.inject(fault)
        if undo is not None:
            self._wake.wait(fault.lasts_s)
            undo()
        injected.ended = time.monotonic()

    def _calm(self, healed: float) -> None:
        """Every lag goes back to 0 in bounded time."""

        def caught_up() -> bool:
            self._service.keep()
            behind = self._watch.behind()
            assert not behind, f"behind: {behind}"
            assert self._messaging.get("/-/ready")[0] == 200, "the service is not ready"
            return True

        try:
            self._slowness = slowness()
            eventually(
                "every lag is 0 and the service ready",
                caught_up,
                timeout_s=CALM_WITHIN_S * self._slowness,
                interval_s=0.3,
            )
            say(f"every lag was 0 {time.monotonic() - healed:.1f} s after the last fault")
        except AssertionError as error:
            self.report.broken.append(f"{error}\n{self._service.said()}")

    def _last_words(self) -> None:
        """The service takes messages again, into every partition."""
        voices = {partition_of(person, 8): person for person in PEOPLE}
        for partition, sender in sorted(voices.items()):
            speaker = Speaker(lambda: self._service.port, iter([(sender, "Alice", f"bye #end.{partition}")]), rate=100)
            speaker.start()
            speaker.join()
            self._speakers.append(speaker)
            if speaker.answers != {"200": 1}:
                self.report.broken.append(f"{sender} cannot send afterwards: {speaker.answers}")

    def _account(self) -> None:
        ledger = self._ledger()
        account = Account(self._messaging, ledger)
        account.check()
        stops = [*self._faults.stops, *((took, name) for name, took in self._service.stop().items())]
        account.check_files([self._service.state(host) for host in "abc"])
        account.check_logs(self._directory / "logs")
        self.report.broken += account.broken
        self.report.broken += self._service.ended
        self._tell(account, ledger, stops)

    def _ledger(self) -> Ledger:
        ledger = Ledger()
        for speaker in self._speakers:
            ledger.acknowledged += speaker.ledger.acknowledged
            ledger.unknown += speaker.ledger.unknown
        return ledger

    def _tell(self, account: Account, ledger: Ledger, stops: list[tuple[float, str]]) -> None:
        kinds = Counter(injected.fault.kind for injected in self.report.injected)
        say(f"faults: {', '.join(f'{kind} {number}' for kind, number in sorted(kinds.items()))}")
        answers: Counter[str] = Counter()
        for speaker in self._speakers:
            answers.update(speaker.answers)
        sent, known = ledger.acknowledged.total() + ledger.unknown.total(), ledger.acknowledged.total()
        say(
            f"messages: {sent} sent, {known} acknowledged ({account.spam} of them spam), {account.delivered} delivered,"
            f" {account.doubled} doubled, {account.lost} lost; answers: {dict(sorted(answers.items()))}"
        )
        say(f"a machine {self._slowness:.1f} times slower than an idle one at the end{self._busy_text()}")
        longest, name = max(stops)
        say(f"clean stops: {len(stops)}, longest {longest:.1f} s, {name} (bar {CLEAN_STOP_S:.0f})")
        for text in self._service.excused:
            say(f"started again: {text}")

    def _tell_stalls(self) -> None:
        acknowledged: dict[tuple[str, str, str], float] = {}
        for speaker in self._speakers:
            acknowledged |= by_id(speaker.acknowledged_at)
        stalls = [*self._watch.stalls, *self._watch.delivery_stalls(acknowledged, {SPAMMER})]
        longest: dict[str, tuple[Stall, list[Injected]]] = {}
        for stall in stalls:
            blamed = self._blamed(stall)
            name = blamed[0].fault.kind if len(blamed) == 1 else "several at once" if blamed else "nothing"
            if name not in longest or longest[name][0].seconds < stall.seconds:
                longest[name] = stall, blamed
        for name, (stall, blamed) in sorted(longest.items()):
            self.report.stalls[name] = stall.seconds
            bar = ""
            if len(blamed) == 1:
                injected = blamed[0]
                kind = KINDS[name]
                limit = kind.bar_s + (injected.ended - injected.began if kind.blocks else 0.0)
                bar = f" (bar {limit:.1f} s, fault of {injected.ended - injected.began:.1f} s)"
                if stall.seconds > limit:
                    bar += " OVER" if stall.seconds > limit * self._busy else " OVER, but for a busy machine"
                if stall.seconds > (limit + GRACE_S) * self._slowness:
                    self.report.broken.append(f"{name}: a stall of {stall.seconds:.1f} s, {stall.where}{bar}")
            say(f"longest stall, {name}: {stall.seconds:.1f} s, {stall.where}{bar}")
            if len(blamed) > 1:
                for each in blamed:
                    began, ended = each.began - stall.began, each.ended - stall.began
                    say(f"    from {began:.1f} to {ended:.1f} s of it: {each.fault.kind}, {each.fault.target}")

    @property
    def _busy(self) -> float:
        """How many times slower than an idle machine this one was at work, as a command starts on it."""
        return times_slower(self._starts) if self._starts else 1.0

    def _busy_text(self) -> str:
        return f", {self._busy:.1f} times while it ran" if self._starts else ""

    def _blamed(self, stall: Stall) -> list[Injected]:
        return [
            injected
            for injected in self.report.injected
            if injected.began <= stall.ended and injected.ended + KINDS[injected.fault.kind].settles_s >= stall.began
        ]
