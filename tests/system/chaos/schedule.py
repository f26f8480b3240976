"""What breaks when: drawn from a seed, and from nothing else. Pure.

The same seed, length and parts give the same schedule, fault by fault. Kinds come in turn, out of a bag that is filled
again when it is empty; one whose parts are all in use waits.
Some faults begin while others still last; the others have the system for themselves until it should be well again, so
that the longest stall can be told by kind. No part is hit while an earlier fault holds it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

ROLES = ("blocker", "translator", "collector", "filter", "detector")
SESSION_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Kind:
    """How one kind of fault is drawn. `bar_s`: how long work may rest after it, where nothing else is broken; the time
    the fault lasts comes on top where nobody could work meanwhile (`blocks`). `settles_s`: for so long after its end it
    may still be to blame for a stall, and what follows it leaves it that time where it has the system for itself."""

    name: str
    targets: str
    least_s: float
    most_s: float
    bar_s: float
    blocks: bool = False
    weight: int = 1
    settles_s: float = 6.0


SAME_HOST_S, TAKEOVER_S, BROKER_S = 2.0, 15.0, 30.0

KINDS = {
    kind.name: kind
    for kind in (
        Kind("workers killed", "commands", 0.0, 0.0, SAME_HOST_S, weight=3),
        Kind("command killed", "commands", 0.0, 0.5, SAME_HOST_S, blocks=True, weight=2),
        Kind("command gone", "commands", 14.0, 18.0, TAKEOVER_S),
        Kind("command stopped", "commands", 0.5, 3.0, SAME_HOST_S),
        Kind("command frozen", "commands", 1.0, 5.0, SAME_HOST_S, blocks=True),
        Kind("zombie", "commands", SESSION_TIMEOUT_S + 2, SESSION_TIMEOUT_S + 6, TAKEOVER_S, weight=2),
        Kind("worker added, stopped", "roles", 4.0, 12.0, SAME_HOST_S),
        Kind("worker added, killed", "roles", 4.0, 12.0, TAKEOVER_S, settles_s=TAKEOVER_S),  # it is killed at the end
        Kind("member removed", "roles", 0.0, 0.0, SAME_HOST_S, weight=3),
        Kind("service killed", "service", 0.0, 2.0, SAME_HOST_S, blocks=True),
        Kind("service frozen", "service", 1.0, 12.0, SAME_HOST_S, blocks=True),
        Kind("broker killed", "brokers", 0.2, 4.0, BROKER_S, blocks=True),
        Kind("broker restarted", "brokers", 0.2, 2.0, BROKER_S, blocks=True),
        Kind("broker frozen", "brokers", 1.0, 12.0, BROKER_S, blocks=True),
        Kind("connections cut", "networks", 0.0, 0.0, BROKER_S, weight=3),
        Kind("connections refused", "networks", 1.0, 6.0, BROKER_S, blocks=True),
        Kind("network slow", "networks", 3.0, 8.0, BROKER_S, blocks=True),
        Kind("network silent", "networks", 6.0, 14.0, BROKER_S, blocks=True, weight=2),
        Kind("answers lost", "networks", 4.0, 14.0, BROKER_S, blocks=True, weight=2),
        Kind("disk full", "disks", 3.0, 8.0, BROKER_S),
        Kind("markers late", "markers", 2.0, 5.0, BROKER_S, blocks=True, weight=4),
    )
}


@dataclass(frozen=True)
class Parts:
    """What there is to break."""

    commands: Sequence[str]
    brokers: int
    markers: int = 0
    disks: Sequence[str] = ()

    def targets(self, kind: Kind) -> list[str]:
        numbers = [str(number) for number in range(self.brokers)]
        return {
            "commands": list(self.commands),
            "roles": list(ROLES),
            "service": ["service"],
            "brokers": [f"broker {number}" for number in numbers],
            "networks": [f"network {number}" for number in numbers],
            "disks": list(self.disks),
            "markers": [f"markers {number}" for number in range(self.markers)],
        }[kind.targets]


@dataclass(frozen=True)
class Fault:
    """One of the schedule; `dice` seeds what is drawn while it is injected, `part` is what it holds meanwhile."""

    number: int
    at_s: float
    kind: str
    target: str
    lasts_s: float
    dice: int
    alone: bool

    @property
    def part(self) -> str:
        return "a broker" if self.target.startswith("broker") else self.target

    def __str__(self) -> str:
        return f"#{self.number} {self.at_s:.1f} s: {self.kind}, {self.target}, for {self.lasts_s:.1f} s"


def draw(seed: int, seconds: float, parts: Parts, *, alone: float = 0.5) -> list[Fault]:
    """The faults of a run; `alone` is the share that have the system for themselves."""
    rng = random.Random(f"chaos {seed}")
    schedule: list[Fault] = []
    bag: list[str] = []
    free: dict[str, float] = {}
    at = 1.0
    while at < seconds:
        bag = bag or _bag(rng, parts)
        is_alone = rng.random() < alone
        if is_alone:
            at = max(at, max(free.values(), default=0.0) + 1.0)
        fault = _next(rng, bag, parts, free, seconds, Fault(len(schedule), at, "", "", 0.0, 0, is_alone))
        if fault is None:
            at += 0.5
            continue
        schedule.append(fault)
        free[fault.part] = at + fault.lasts_s + 3.0
        at += fault.lasts_s + KINDS[fault.kind].settles_s if is_alone else rng.uniform(0.3, 4.0)
    return schedule


def _next(
    rng: random.Random, bag: list[str], parts: Parts, free: dict[str, float], seconds: float, blank: Fault
) -> Fault | None:
    """The first kind in the bag that has a part to hit now, and the time for it."""
    for index in reversed(range(len(bag))):
        kind = KINDS[bag[index]]
        lasts = rng.uniform(kind.least_s, kind.most_s)
        hits = [
            fault
            for target in parts.targets(kind)
            for fault in [replace(blank, kind=kind.name, target=target, lasts_s=lasts)]
            if free.get(fault.part, 0.0) <= blank.at_s
        ]
        if hits and blank.at_s + lasts <= seconds:
            del bag[index]
            return replace(rng.choice(hits), dice=rng.randrange(2**32))
    return None


def _bag(rng: random.Random, parts: Parts) -> list[str]:
    names = [name for name, kind in KINDS.items() if parts.targets(kind) for _ in range(kind.weight)]
    rng.shuffle(names)
    return names
