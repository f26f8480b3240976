"""A worker's start whose brokers are away: whom it waits for, for how long, and what is said.

That a worker comes up after a real broker has gone and come back stands in test_cut_connections.py.
"""

import logging
import threading
import time
from collections.abc import Callable

import pytest

from gokamsg.engine.clients import Patience
from gokamsg.engine.opening import Opening
from gokamsg.errors import BrokerUnavailableError

NOBODY = "no Kafka broker answers at 127.0.0.1:9092"


def missing(tries: float, made: list[str]) -> Callable[[], str]:
    """What can be made after so many tries in vain."""

    def make() -> str:
        made.append("tried")
        if len(made) <= tries:
            raise BrokerUnavailableError(NOBODY)
        return "made"

    return make


def test_brokers_that_were_never_seen_are_not_waited_for() -> None:
    tried: list[str] = []
    with pytest.raises(BrokerUnavailableError, match=NOBODY):
        Opening(Patience()).outlast(missing(1, tried))
    assert tried == ["tried"]


def test_brokers_that_were_seen_are_waited_for_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    opening = Opening(Patience())
    opening.seen()
    with caplog.at_level(logging.WARNING):
        assert [opening.outlast(missing(2, [])) for _ in range(2)] == ["made", "made"]
        opening.over()
    assert caplog.messages == [f"{NOBODY}; trying again for 15 s", "the brokers answer again; going on"]


def test_a_start_that_met_nothing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    opening = Opening(Patience())
    opening.seen()
    assert opening.outlast(missing(0, [])) == "made"
    opening.over()
    assert caplog.messages == []


def test_brokers_that_stay_away_end_the_start() -> None:
    opening, tried = Opening(Patience(), lasts_s=0.3), list[str]()
    opening.seen()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=NOBODY):
        opening.outlast(missing(float("inf"), tried))
    assert time.monotonic() - began >= 0.3
    assert len(tried) > 1


def test_a_stop_ends_the_wait() -> None:
    patience = Patience()
    opening = Opening(patience)
    opening.seen()
    stopping = threading.Timer(0.2, patience.hurry)
    stopping.start()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=NOBODY):
        opening.outlast(missing(float("inf"), []))
    stopping.join()
    assert time.monotonic() - began < 2
