"""A second instance of filter and collector comes and goes under load.

Invariants: every message is accounted for (see Messaging.account); both instances have partitions while both run; the
one that stays has all of them again after the other one stopped.
"""

import random
import re

import pytest

from tests.helpers import Process, eventually, say
from tests.system.messaging import ROLES, Load, Messaging, pause
from tests.system.traffic import NO_DETECTION, chatter


def _partitions(process: Process, role: str) -> set[int]:
    """The partitions that the role's newest line names; empty before there is one."""
    found = re.findall(rf"{role}.*running.*\(([0-9, -]*)\)", process.stdout() + process.stderr())
    if not found:
        return set()
    numbers: set[int] = set()
    for part in found[-1].replace(" ", "").split(","):
        low, _, high = part.partition("-")
        if low:
            numbers |= set(range(int(low), int(high or low) + 1))
    return numbers


@pytest.mark.any_broker
@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.slow)], ids=lambda number: f"{number} times")
def test_a_second_filter_and_collector_come_and_go(messaging: Messaging, seed: int, times: int) -> None:
    rng = random.Random(seed)
    first: dict[str, Process] = {}
    for role in ROLES:
        first[role] = messaging.role(role, options=NO_DETECTION if role == "detector" else ())
    for role, process in first.items():
        messaging.running(process, role, timeout_s=60)
    messaging.serve()
    with Load(messaging, chatter(seed), rate=120) as load:
        for number in range(times):
            for role in rng.sample(("filter", "collector"), 2):
                # Beside the first one on its host (another slot of one state directory), or on another host.
                second = messaging.role(role, state=rng.choice((None, f"host-{number}")))
                _wait_for_both(first[role], second, role)
                pause(seconds=rng.uniform(0.2, 1.5))
                assert second.terminate() == 0, second.tail()
                _wait_for_all(first[role], role)
        load.stop()
    messaging.account(load.ledger)
    say(f"{2 * times} changes, {load.count} messages, all accounted for")


def _wait_for_both(first: Process, second: Process, role: str) -> None:
    def split() -> bool:
        ours, theirs = _partitions(first, role), _partitions(second, role)
        where = f"{ours} and {theirs}\n{first.tail()}\n{second.tail()}"
        assert ours, where
        assert theirs, where
        assert ours | theirs == set(range(8)), where
        assert not ours & theirs, where
        return True

    eventually(f"both instances of {role} have partitions", split, timeout_s=60)


def _wait_for_all(first: Process, role: str) -> None:
    eventually(
        f"the first {role} has all partitions again",
        lambda: _partitions(first, role) == set(range(8)),
        timeout_s=60,
    )
