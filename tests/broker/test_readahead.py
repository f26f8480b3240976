"""How long a fetch may wait whose client is still busy with partitions of an earlier answer."""

from gokamsg.broker.cache import CacheBudget
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.readahead import FIRST_WAIT_S, ReadAhead
from tests.broker.fake_clock import FakeClock

LONGEST_S = 0.5


def log(partition: int) -> PartitionLog:
    return PartitionLog("t", partition, number=partition, budget=CacheBudget(1), clock=FakeClock())


def early_waits(read_ahead: ReadAhead) -> list[float]:
    """Of requests that find nothing, one after the other, until one waits its full time."""
    waits = []
    while (wait_s := read_ahead.wait_s(LONGEST_S)) < LONGEST_S:
        waits.append(round(wait_s / FIRST_WAIT_S))
        read_ahead.answered_early(LONGEST_S)
    return waits


def test_who_asks_for_everything_waits_the_full_time() -> None:
    read_ahead, (one, other) = ReadAhead(), (log(0), log(1))
    assert early_waits(read_ahead) == []
    read_ahead.gave(one)
    read_ahead.asked([other, one])
    assert early_waits(read_ahead) == []


def test_what_is_never_asked_for_again_is_forgotten() -> None:
    """A partition that is paused, or another member's since, costs five answers and no more."""
    read_ahead, (one, other) = ReadAhead(), (log(0), log(1))
    read_ahead.gave(one)
    read_ahead.asked([other])
    assert early_waits(read_ahead) == [1, 2, 4, 8, 16]
    assert early_waits(read_ahead) == []


def test_going_on_with_one_starts_the_waits_anew() -> None:
    read_ahead, (one, other, third) = ReadAhead(), (log(0), log(1), log(2))
    read_ahead.gave(one)
    read_ahead.gave(other)
    read_ahead.asked([third])
    read_ahead.answered_early(LONGEST_S)
    assert read_ahead.wait_s(LONGEST_S) == 2 * FIRST_WAIT_S
    read_ahead.asked([third, one])
    assert read_ahead.wait_s(LONGEST_S) == FIRST_WAIT_S, "the other one is still left out"
    read_ahead.asked([third, one, other])
    assert read_ahead.wait_s(LONGEST_S) == LONGEST_S
